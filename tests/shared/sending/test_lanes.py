"""Lanes: one sender's order, one publish at a time, through crashes, within bounds."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import cast

import pytest
import uuid_utils

from shared import identity, subjects
from shared.bus import Bus, BusError, PubAck
from shared.cursors import encode_cursor
from shared.events import MessageNew, decode_event
from shared.identity import ThreadId, UserId
from shared.protocol import ErrorCode
from shared.sending import Outcome, Refused, Sent, sender
from tests.shared.sending.lanes import (
    THREAD,
    Fabric,
    refused,
    request,
    sent,
    start,
)
from tests.support.eventually import eventually


async def test_a_sent_message_is_what_the_log_holds(fabric: Fabric) -> None:
    # Given a message with everything in it
    asked = request(
        "hëllo\n",
        reply_to="0190a0b1c2d37e4f8a9b0c1d2e3f4a5c",
        metadata={"a": [1, {"b": 2.5}]},
    )
    # When it is sent
    outcome = sent(await fabric.send(asked))
    # Then the log holds it under its own id, at the position that was told
    (message,) = await fabric.stored()
    event = decode_event(message.payload)
    assert isinstance(event, MessageNew)
    assert (event.message_id, event.sent_at) == (outcome.message_id, outcome.sent_at)
    assert (event.body, event.reply_to, event.metadata) == (
        asked.body,
        asked.reply_to,
        asked.metadata,
    )
    assert outcome.message_id == identity.message_id(THREAD, asked.sender_id, asked.client_msg_id)
    assert outcome.seq == message.seq == 1 << 40
    assert outcome.cursor == encode_cursor(THREAD, message.seq)
    assert not outcome.duplicate


async def test_five_hundred_pipelined_messages_keep_their_order(fabric: Fabric) -> None:
    # Given two senders who do not wait for their acknowledgements
    outcomes: dict[str, list[Outcome]] = {"ava": [], "ben": []}
    for number in range(500):
        for user, told in outcomes.items():
            asked = request(f"{user} {number}", sender_id=UserId(user))
            fabric.sender.submit(asked, told.append)
    # When all are answered
    await eventually(lambda: not fabric.sender.waiting, within_s=60)
    # Then each sender's messages are stored in the order of sending, and answered in that order
    bodies = await fabric.bodies()
    for user, told in outcomes.items():
        assert [body for body in bodies if body.startswith(user)] == [
            f"{user} {number}" for number in range(500)
        ]
        seqs = [sent(outcome).seq for outcome in told]
        assert seqs == sorted(seqs)
        assert len(seqs) == 500


class WatchedBus:
    """A bus that notes how many publishes of one subject are outstanding at once."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.outstanding: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def __getattr__(self, name: str) -> object:
        return getattr(self._bus, name)

    def publish_stored(
        self,
        subject: str,
        payload: bytes,
        done: Callable[[PubAck | BusError], None],
        *,
        message_id: str | None,
        timeout_s: float,
    ) -> None:
        self.outstanding[subject] += 1
        self.most[subject] = max(self.most[subject], self.outstanding[subject])

        def answered(outcome: PubAck | BusError) -> None:
            self.outstanding[subject] -= 1
            done(outcome)

        self._bus.publish_stored(
            subject, payload, answered, message_id=message_id, timeout_s=timeout_s
        )


async def test_one_publish_of_a_lane_is_outstanding_and_lanes_go_side_by_side(
    fabric: Fabric,
) -> None:
    # Given twenty threads in which the same user writes ten messages at once
    watched = WatchedBus(fabric.bus)
    busy = await start(fabric.server, cast("Bus", watched), fabric.settings)
    threads = [ThreadId(uuid_utils.uuid7().hex) for _ in range(20)]
    answers = [
        busy.send(request(f"{number}", thread_id=thread))
        for number in range(10)
        for thread in threads
    ]
    # When all are sent
    outcomes = await asyncio.gather(*answers)
    # Then no thread ever had two on their way
    assert all(isinstance(outcome, Sent) for outcome in outcomes)
    assert set(watched.most) == {subjects.msg_subject(thread) for thread in threads}
    assert set(watched.most.values()) == {1}


async def test_the_watch_would_see_two_outstanding_publishes(fabric: Fabric) -> None:
    # Given the watch of the test above, and somebody who does not wait
    watched = WatchedBus(fabric.bus)
    subject = subjects.msg_subject(THREAD)
    answers: list[object] = []
    # When two are published at once
    for _ in range(2):
        watched.publish_stored(subject, b"{}", answers.append, message_id=None, timeout_s=5)
    await eventually(lambda: len(answers) == 2)
    # Then it says so
    assert watched.most[subject] == 2


async def test_messages_survive_kill_9_of_the_server_each_once_and_in_order(
    fabric: Fabric,
) -> None:
    # Given twenty lanes that send while the server is killed twice
    threads = [ThreadId(uuid_utils.uuid7().hex) for _ in range(20)]
    outcomes: dict[ThreadId, list[Outcome]] = {thread: [] for thread in threads}
    for number in range(60):
        for thread, told in outcomes.items():
            fabric.sender.submit(request(f"{number}", thread_id=thread), told.append)
    for enough in (100, 400):
        await eventually(
            lambda enough=enough: sum(map(len, outcomes.values())) > enough,  # type: ignore[misc]
            within_s=20,
        )
        await asyncio.to_thread(fabric.server.restart, kill=True)
    # When all are answered
    await eventually(lambda: not fabric.sender.waiting, within_s=30)
    # Then each is stored once, in order, where its sender was told, and none counts as a duplicate
    for thread, told in outcomes.items():
        assert await fabric.bodies(thread) == [f"{number}" for number in range(60)]
        stored = [message.seq for message in await fabric.stored(thread)]
        assert [sent(outcome).seq for outcome in told] == stored
        assert not any(sent(outcome).duplicate for outcome in told)
    assert sum(fabric.metrics.retries.of(why).value for why in ("timeout", "disconnected")) > 0


async def test_one_conflict_does_not_hold_up_those_behind_it(fabric: Fabric) -> None:
    # Given a stored message
    asked = request("first")
    await fabric.send(asked)
    # When its conflicting copy and two others are sent at once
    outcomes = await asyncio.gather(
        fabric.send(asked._replace(body="changed")),
        fabric.send(request("second")),
        fabric.send(request("third")),
    )
    # Then only the copy is refused
    assert refused(outcomes[0]) is ErrorCode.CONFLICT
    assert await fabric.bodies() == ["first", "second", "third"]


async def test_a_lane_has_room_for_so_many_and_refuses_more(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given lanes of five
    monkeypatch.setattr(sender, "LANE_MAX", 5)
    # When one sender hands over eight at once, and another one
    eight = [fabric.send(request(f"{number}")) for number in range(8)]
    other = fabric.send(request("other", sender_id=UserId("ben")))
    outcomes = await asyncio.gather(*eight, other)
    # Then three of the eight are refused and the other lane is not touched
    assert [isinstance(outcome, Sent) for outcome in outcomes] == [True] * 5 + [False] * 3 + [True]
    assert {refused(outcome) for outcome in outcomes[5:8]} == {ErrorCode.UNAVAILABLE}


@pytest.mark.parametrize(("limit", "value"), [("WAITING_MAX", 5), ("WAITING_BYTES_MAX", 1200)])
async def test_all_lanes_together_have_a_bound(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    # Given room for few messages
    monkeypatch.setattr(sender, limit, value)
    # When ten senders send at once
    outcomes = await asyncio.gather(
        *(fabric.send(request(sender_id=UserId(f"u{number}"))) for number in range(10))
    )
    # Then those beyond are refused, and there is room again afterwards
    assert 0 < sum(isinstance(outcome, Refused) for outcome in outcomes) < 10
    assert isinstance(await fabric.send(request()), Sent)
    assert fabric.sender.waiting == 0


async def test_a_callers_bug_does_not_stop_the_lane(fabric: Fabric) -> None:
    # Given a callback that raises
    def broken(_outcome: Outcome) -> None:
        raise RuntimeError("a bug")

    # When it is told, with another message behind it
    fabric.sender.submit(request("first"), broken)
    outcome = await fabric.send(request("second"))
    # Then the other one is stored
    assert isinstance(outcome, Sent)
    assert await fabric.bodies() == ["first", "second"]


async def test_drain_waits_for_the_messages_taken(fabric: Fabric) -> None:
    # Given messages on their way
    outcomes: list[Outcome] = []
    for number in range(20):
        fabric.sender.submit(request(f"{number}"), outcomes.append)
    assert outcomes == []
    # When the sender is drained
    await fabric.sender.drain(within_s=10)
    # Then all have their outcome
    assert len(outcomes) == 20
