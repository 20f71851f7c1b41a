"""A retry is the same message: through any node, minutes or months later, or it is refused."""

import asyncio
from typing import Any

import pytest

from shared import identity, subjects
from shared.cursors import encode_cursor
from shared.events import MessageNew, encode_event, timestamp
from shared.identity import UserId
from shared.protocol import ErrorCode
from shared.sending import Sent
from tests.shared.sending.lanes import (
    THREAD,
    Fabric,
    Find,
    client_id,
    configured,
    refused,
    request,
    sent,
    start,
)
from tests.support.nats_streams import connected, make_streams
from tests.support.servers import NatsServer


async def test_a_retry_gets_the_original_message_through_any_node(fabric: Fabric) -> None:
    # Given a message sent through one edge
    asked = request(metadata={"price": 1.0})
    first = sent(await fabric.send(asked))
    # When it is sent again through another edge, spelled a little differently
    async with connected(fabric.server, "edge", "other") as bus:
        other = await start(fabric.server, bus, fabric.settings)
        again = sent(await other.send(asked._replace(metadata={"price": 1})))
    # Then the answer is the first message, and nothing more is stored
    assert again == first._replace(duplicate=True)
    assert await fabric.bodies() == ["hello"]


@pytest.mark.parametrize(
    "change",
    [
        {"body": "another"},
        {"metadata": {"a": 1}},
        {"reply_to": "0190a0b1c2d37e4f8a9b0c1d2e3f4a5c"},
        {"attachment_ids": ["0190a0b1c2d37e4f8a9b0c1d2e3f4a5c"]},
    ],
)
async def test_the_same_ids_with_another_content_are_a_conflict(
    fabric: Fabric, change: dict[str, Any]
) -> None:
    # Given a stored message
    asked = request()
    await fabric.send(asked)
    # When its ids come again with another content
    code = refused(await fabric.send(asked._replace(**change)))
    # Then they are refused and nothing changes
    assert code is ErrorCode.CONFLICT
    assert await fabric.bodies() == ["hello"]


def _of_another_sender() -> bytes:
    """A message with the same content, stored under a foreign id: only a bug could do that."""
    other = identity.message_id(THREAD, UserId("ben"), client_id())
    event = MessageNew(
        other, THREAD, client_id(), "ben", "text", "hello", [], None, {}, timestamp()
    )
    return encode_event(event)


@pytest.mark.parametrize(
    "payload",
    [_of_another_sender(), b'{"type":"void"}', b"not json", b'{"type":"thread.updated"}', b""],
)
async def test_ids_that_something_else_took_are_gone(fabric: Fabric, payload: bytes) -> None:
    # Given something else stored under the message's id, as a void is
    asked = request()
    name = identity.message_id(THREAD, asked.sender_id, asked.client_msg_id)
    await fabric.bus.store(subjects.msg_subject(THREAD), payload, message_id=name)
    # When the message comes
    code = refused(await fabric.send(asked))
    # Then it can never be stored, and its sender is told to make another one
    assert code is ErrorCode.GONE


async def test_a_late_retry_of_a_stored_message_gets_the_original(fabric: Fabric) -> None:
    # Given an api that holds the message of an old id
    asked = request(client_msg_id=client_id(age_s=3600))
    name = identity.message_id(THREAD, asked.sender_id, asked.client_msg_id)
    digest = identity.content_digest("hello", [], None, {}).hex()
    answer = {
        "status": "stored",
        "message_id": name,
        "seq": 77,
        "sent_at": "2026-01-01T00:00:00.000Z",
        "content_digest": digest,
    }
    find = Find(answer)
    async with connected(fabric.server, "api") as api:
        api.serve(subjects.SVC_MESSAGE_FIND, subjects.SVC_QUEUE, find, concurrency=4)
        await api.flush()
        # When it is sent again, and with another content
        again = sent(await fabric.send(asked))
        changed = refused(await fabric.send(asked._replace(body="changed")))
    # Then the original comes back, the other content is a conflict, and nothing is published
    assert again == Sent(
        name, 77, encode_cursor(THREAD, 77), "2026-01-01T00:00:00.000Z", duplicate=True
    )
    assert changed is ErrorCode.CONFLICT
    assert find.questions[0] == {
        "thread_id": THREAD,
        "sender_id": "ava",
        "client_msg_id": asked.client_msg_id,
        "content_digest": digest,
    }
    assert await fabric.bodies() == []


async def test_a_late_message_that_is_surely_absent_is_published(fabric: Fabric) -> None:
    # Given an api that knows that nothing of it is stored
    async with connected(fabric.server, "api") as api:
        api.serve(
            subjects.SVC_MESSAGE_FIND, subjects.SVC_QUEUE, Find({"status": "absent"}), concurrency=4
        )
        await api.flush()
        # When a message with an old id is sent, with another one behind it
        outcomes = await asyncio.gather(
            fabric.send(request("late", client_msg_id=client_id(age_s=3600))),
            fabric.send(request("young")),
        )
    # Then it is stored, and the lane kept its order
    assert [sent(outcome).duplicate for outcome in outcomes] == [False, False]
    assert await fabric.bodies() == ["late", "young"]


@pytest.mark.parametrize(
    "answer",
    [
        {"status": "unknown"},
        {"status": "nonsense"},
        {"status": "stored", "message_id": "0" * 32, "seq": 1},
        None,
    ],
)
async def test_a_late_message_of_which_nobody_can_tell_is_unavailable(
    fabric: Fabric, answer: dict[str, Any] | None
) -> None:
    # Given an api that cannot tell, or none at all
    async with connected(fabric.server, "api") as api:
        if answer is not None:
            api.serve(subjects.SVC_MESSAGE_FIND, subjects.SVC_QUEUE, Find(answer), concurrency=4)
            await api.flush()
        # When a message with an old id is sent
        outcome = await fabric.send(request(client_msg_id=client_id(age_s=3600)))
    # Then it is neither acknowledged nor published
    assert refused(outcome) is ErrorCode.UNAVAILABLE
    assert await fabric.bodies() == []


async def test_in_a_new_generation_of_a_stream_every_message_is_looked_up_first(
    nats_server: NatsServer,
) -> None:
    # Given the second life of the stream, which has forgotten the ids of the first
    settings = configured()
    await make_streams(nats_server, settings, generation=2)
    find = Find({"status": "absent"})
    async with connected(nats_server, "edge") as bus, connected(nats_server, "api") as api:
        api.serve(subjects.SVC_MESSAGE_FIND, subjects.SVC_QUEUE, find, concurrency=4)
        await api.flush()
        fabric = await start(nats_server, bus, settings)
        # When a message is sent whose id is young
        outcome = sent(await fabric.send(request()))
    # Then it was looked up, and stored above everything of the first life
    assert len(find.questions) == 1
    assert outcome.seq == 2 << 40


async def test_an_id_from_a_clock_too_far_ahead_is_invalid(fabric: Fabric) -> None:
    # Given ids made just within and just beyond the allowance
    near, far = client_id(age_s=-55), client_id(age_s=-65)
    # When both are sent
    # Then the one beyond would look young for too long
    assert isinstance(await fabric.send(request(client_msg_id=near)), Sent)
    assert refused(await fabric.send(request(client_msg_id=far))) is ErrorCode.INVALID
