"""What the api answers on NATS: was it stored, who is here, send for somebody."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from shared.bus import Bus, BusError
from shared.identity import ThreadId, UserId, client_message_id, message_id, new_id
from shared.subjects import (
    SVC_MESSAGE_FIND,
    SVC_MESSAGE_POSITION,
    SVC_MESSAGE_SEND,
    SVC_USER_SEEN,
)
from tests.api.support import Api, entry_of, make_thread, message_body
from tests.support.fabric import new_message


async def ask(bus: Bus, subject: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    answer = await bus.request(subject, msgspec.json.encode(fields), timeout_s=10)
    decoded: dict[str, Any] = msgspec.json.decode(answer)
    return decoded


@pytest.fixture(name="platform")
async def platform_fixture(api: Api) -> AsyncIterator[Bus]:
    """A connection of the platform's own services."""
    bus = await api.fabric.bus("platform")
    yield bus
    await bus.close()


async def test_find_knows_stored_absent_and_unknown_apart(api: Api) -> None:
    thread_id = ThreadId((await make_thread(api.client("ava"), "ben"))["thread_id"])
    event = new_message(thread_id, "ava", "hello")
    asked = {
        "thread_id": thread_id,
        "sender_id": "ava",
        "client_msg_id": event.client_msg_id,
        "content_digest": "00",
    }
    # Nothing was ever stored: certainly absent
    assert await ask(api.fabric.edge, SVC_MESSAGE_FIND, **asked) == {"status": "absent"}
    # It is in the log, and no persister has read it: nobody can say
    seqs = await api.fabric.store([event])
    assert await ask(api.fabric.edge, SVC_MESSAGE_FIND, **asked) == {"status": "unknown"}
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
        # It is in PostgreSQL: here it is
        found = await ask(api.fabric.edge, SVC_MESSAGE_FIND, **asked)
        digest = await api.fabric.pool.fetchval(
            "SELECT encode(content_digest, 'hex') FROM messages"
        )
        assert found == {
            "status": "stored",
            "message_id": event.message_id,
            "seq": seqs[0],
            "sent_at": event.sent_at,
            "content_digest": digest,
        }
        # The persister has passed the tail, and another triple is not there: certainly absent
        other = {**asked, "client_msg_id": new_id()}
        assert await ask(api.fabric.edge, SVC_MESSAGE_FIND, **other) == {"status": "absent"}
    # Behind again, it waits for the persister rather than shrug
    later = await api.fabric.send(thread_id, "ava", "later")
    async with api.fabric.persister():
        assert await ask(api.fabric.edge, SVC_MESSAGE_FIND, **other) == {"status": "absent"}
        await api.fabric.reached(later[-1])


async def test_find_refuses_what_is_no_triple(api: Api) -> None:
    good = {"thread_id": new_id(), "sender_id": "ava", "client_msg_id": new_id()}
    for change in (
        {"thread_id": "*"},
        {"sender_id": "a b"},
        {"client_msg_id": "0" * 32},
        {"thread_id": 1},
    ):
        with pytest.raises(BusError):
            await ask(api.fabric.edge, SVC_MESSAGE_FIND, **{**good, **change})


async def test_a_position_is_that_of_a_message_or_of_the_newest_one_below(api: Api) -> None:
    # Given two messages of a thread, with those of another one between them
    thread_id = ThreadId((await make_thread(api.client("ava"), "ben"))["thread_id"])
    other = ThreadId((await make_thread(api.client("ava"), "cid"))["thread_id"])
    events = [new_message(thread, "ava") for thread in (thread_id, other, other, thread_id)]
    seqs = await api.fabric.store(events)

    async def position(**fields: Any) -> dict[str, Any]:  # noqa: ANN401
        return await ask(api.fabric.edge, SVC_MESSAGE_POSITION, thread_id=thread_id, **fields)

    # No persister has read them: nobody can say
    assert (await position(message_id=events[0].message_id))["status"] == "unknown"
    assert (await position(seq=seqs[2]))["status"] == "unknown"
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
        # By id: where it is, certainly absent when it is of another thread
        found = {"status": "stored", "seq": seqs[3]}
        assert await position(message_id=events[3].message_id) == found
        assert (await position(message_id=events[1].message_id))["status"] == "absent"
        # By position: the newest message at or below, 0 when there is none
        for seq, message_seq in (
            (seqs[3] + 9, seqs[3]),
            (seqs[3], seqs[3]),
            (seqs[2], seqs[0]),
            (seqs[0] - 1, 0),
        ):
            assert await position(seq=seq) == {"status": "stored", "seq": message_seq}, seq
    for wrong in ({"message_id": "*"}, {"seq": "1"}):
        with pytest.raises(BusError):
            await position(**wrong)


async def test_a_user_who_was_seen_has_an_entry_that_edges_can_read(api: Api) -> None:
    # When an edge tells of a new user, then of another name
    first = await ask(api.fabric.edge, SVC_USER_SEEN, user_id="ava", name="Ava", role="client")
    again = await ask(api.fabric.edge, SVC_USER_SEEN, user_id="ava", name="Ava", role="client")
    renamed = await ask(api.fabric.edge, SVC_USER_SEEN, user_id="ava", name="Eva", role="creator")
    nameless = await ask(api.fabric.edge, SVC_USER_SEEN, user_id="ava", name=None, role="creator")
    # Then the entry follows, and a token without a name takes none away
    assert (
        first
        == again
        == {"user_id": "ava", "revision": 1, "name": "Ava", "avatar_url": None, "role": "client"}
    )
    assert (renamed["revision"], renamed["name"], renamed["role"]) == (2, "Eva", "creator")
    assert nameless == renamed == await entry_of(api, "users", "ava")


async def test_a_lost_entry_of_a_known_user_is_written_again(api: Api) -> None:
    await ask(api.fabric.edge, SVC_USER_SEEN, user_id="ava", name="Ava", role="client")
    bus = await api.fabric.bus("provision")
    await bus.api("STREAM.PURGE.KV_users")
    await bus.close()
    await ask(api.fabric.edge, SVC_USER_SEEN, user_id="ava", name="Ava", role="client")
    assert (await entry_of(api, "users", "ava"))["name"] == "Ava"


async def test_impossible_users_are_refused(api: Api) -> None:
    for fields in (
        {"user_id": "a b", "role": "client"},
        {"user_id": "ava", "role": "king"},
        {"role": "client"},
    ):
        with pytest.raises(BusError):
            await ask(api.fabric.edge, SVC_USER_SEEN, **fields)
    assert await api.fabric.count("users") == 0


async def test_a_platform_service_sends_for_a_user_as_rest_would(api: Api, platform: Bus) -> None:
    # Given a thread of ava's
    thread_id = (await make_thread(api.client("ava"), "ben"))["thread_id"]
    body = message_body(thread_id, "welcome")
    # When a service sends there for her, and she herself repeats it over REST
    sent = await ask(platform, SVC_MESSAGE_SEND, sender_id="ava", **body)
    again = await api.client("ava").post("/api/messages", json=body)
    # Then it is the same message
    assert sent["body"] == "welcome"
    assert sent["message_id"] == message_id(
        ThreadId(thread_id), UserId("ava"), client_message_id(body["client_msg_id"])
    )
    assert (again.status_code, again.json()["seq"]) == (200, sent["seq"])


async def test_a_platform_service_is_told_why_not(api: Api, platform: Bus) -> None:
    thread_id = (await make_thread(api.client("ava"), "ben"))["thread_id"]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"sender_id": "eve", **message_body(thread_id)}, "not_found"),
        ({"sender_id": "ava", **message_body("*")}, "not_found"),
        ({"sender_id": "a b", **message_body(thread_id)}, "not_found"),
        (message_body(thread_id), "invalid"),
        ({"sender_id": "ava", **message_body(thread_id, "")}, "invalid"),
        ({"sender_id": "ava", **message_body(thread_id), "client_msg_id": "x"}, "invalid"),
    ]
    for fields, code in cases:
        answer = await ask(platform, SVC_MESSAGE_SEND, **fields)
        assert (answer["type"], answer["code"]) == ("error", code), fields
        assert answer["retryable"] is False
    assert await platform.request(SVC_MESSAGE_SEND, b"{", timeout_s=5)


async def test_services_are_counted(api: Api) -> None:
    await ask(api.fabric.edge, SVC_USER_SEEN, user_id="ava", name="Ava", role="client")
    metrics = (await api.client(None).get("/metrics")).text
    assert 'messaging_api_services_total{name="svc.user.seen",result="answered"} 1.0' in metrics
