"""Attaching, repairing and comparing tails, with a bus whose timing the test decides."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, cast

import pytest

from edge.fanout import Subscription
from edge.log import ThreadLog
from edge.replay import Replay, Replays
from edge.tails import TailChecks
from edge.threads import Threads
from shared.access import AccessEntry, Member
from shared.bus import Bus, BusDisconnectedError, Page, StoredMessage
from shared.events import MessageDeleted, ThreadMember, encode_event
from shared.identity import UserId
from shared.metrics import EdgeMetrics
from shared.provision.streams import first_seq_of
from shared.subjects import LEADER_ELECTED, eph_subject, live_subject, msg_subject
from tests.edge.test_fanout import THREAD, Receiver, event
from tests.support.eventually import eventually

Heard = Callable[[bytes, bytes, bytes, bytes], None]


class Interest:
    """A subscription of the bus below."""

    def __init__(self, bus: "Log", subject: str) -> None:
        self.bus = bus
        self.subject = subject

    def close(self) -> None:
        self.bus.heard.pop(self.subject, None)


class Log:
    """A stream and its live subject, for one thread. What is stored is heard only when the test says so."""

    def __init__(self) -> None:
        self.connected = True
        self.on_reconnect: list[Callable[[], None]] = []
        self.calls: list[str] = []
        self.heard: dict[str, Heard] = {}
        self.stored: list[int] = []
        self.payloads: dict[int, bytes] = {}
        self.lag = 0
        """How many of the newest events the replica that tells the tail does not have yet."""
        self.gate = asyncio.Event()
        self.gate.set()

    def subscribe(self, subject: str, callback: Heard) -> Interest:
        self.calls.append(subject)
        self.heard[subject] = callback
        return Interest(self, subject)

    async def flush(self) -> None:
        self.calls.append("flush")
        if not self.connected:
            raise BusDisconnectedError("test")

    async def get_last(self, stream: str, subject: str) -> StoredMessage | None:
        assert (stream, subject) == ("MSG_0", msg_subject(THREAD))
        self.calls.append("tail")
        stored = self.stored[: len(self.stored) - self.lag]
        tail = stored[-1] if stored else None
        await self.gate.wait()
        return None if tail is None else self._message(tail)

    async def get_seq(self, stream: str, seq: int) -> StoredMessage | None:
        assert stream == "MSG_0"
        return self._message(seq) if seq in self.stored else None

    async def get_last_many(self, stream: str, subjects: Sequence[str]) -> list[StoredMessage]:
        assert stream == "MSG_0"
        if not self.connected:
            raise BusDisconnectedError("test")
        known = msg_subject(THREAD) in subjects and self.stored
        return [self._message(self.stored[-1])] if known else []

    async def get_range(
        self, stream: str, subject: str, *, from_seq: int, max_messages: int, max_bytes: int
    ) -> Page:
        assert (stream, subject) == ("MSG_0", msg_subject(THREAD))
        assert max_bytes
        found = [self._message(seq) for seq in self.stored if seq >= from_seq]
        return Page(found[:max_messages], more=len(found) > max_messages)

    def store(self, seq: int) -> None:
        """Store an event that nobody hears."""
        self.stored.append(seq)

    def hear(self, seq: int) -> None:
        """Let the live subject carry a stored event."""
        before = max((other for other in self.stored if other < seq), default=0)
        self.hear_payload(seq, event(seq).payload, before=before)

    def hear_payload(self, seq: int, payload: bytes, *, before: int = 0) -> None:
        """Let the live subject carry a payload."""
        headers = b"NATS/1.0\r\nNats-Sequence: %d\r\nNats-Last-Sequence: %d\r\n\r\n" % (seq, before)
        self.heard[live_subject(THREAD)](b"", b"", headers, payload)

    async def api(self, suffix: str) -> dict[str, Any]:
        assert suffix == "STREAM.INFO.MSG_0"
        first, last = (self.stored[0], self.stored[-1]) if self.stored else (1, 0)
        times = {"first_ts": "2026-11-24T00:00:00Z", "messages": len(self.stored)}
        return {"state": {"first_seq": first, "last_seq": last, **times}}

    def _message(self, seq: int) -> StoredMessage:
        return StoredMessage(
            "MSG_0", seq, msg_subject(THREAD), "", b"", self.payloads.get(seq, event(seq).payload)
        )


class World:
    """The threads of a node on that bus."""

    def __init__(self, *, replicas_lag: bool = False) -> None:
        self.log = Log()
        self.tasks: set[asyncio.Task[None]] = set()
        bus, metrics = cast("Bus", self.log), EdgeMetrics("test")
        log = ThreadLog(bus, streams=1)
        self.replays = Replays(log, spawn=self._spawn, metrics=metrics)
        self.threads = Threads(log, bus, self.replays, spawn=self._spawn, metrics=metrics)
        self.tails = TailChecks(
            self.threads, log, bus, spawn=self._spawn, metrics=metrics, replicas_lag=replicas_lag
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def subscribed(self) -> Receiver:
        receiver = Receiver()
        subscription = self.threads.prepare(receiver, THREAD)
        self.begin(subscription, await self.threads.tail(subscription))
        return receiver

    def begin(self, subscription: Subscription, position: int) -> None:
        """Answer a subscription without a replay."""
        subscription.answer(position)
        self.replays.start(subscription, Replay(reached=position))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A node with a log of its own."""
    world = World()
    yield world
    for task in tuple(world.tasks):
        task.cancel()


async def test_the_tail_is_read_only_after_the_server_knows_the_interest(world: World) -> None:
    await world.subscribed()
    assert world.log.calls[1:] == [live_subject(THREAD), eph_subject(THREAD), "flush", "tail"]


async def test_an_event_between_tail_and_answer_is_the_first_one(world: World) -> None:
    # Given a tail that is being read while an event is stored and heard
    world.log.store(3)
    world.log.gate.clear()
    receiver = Receiver()
    subscription = world.threads.prepare(receiver, THREAD)
    reading = asyncio.create_task(world.threads.tail(subscription))
    await eventually(lambda: "tail" in world.log.calls)
    world.log.store(4)
    world.log.hear(4)
    world.log.gate.set()
    tail = await reading
    # When the subscription is answered with that tail
    assert tail == 3
    assert receiver.frames == []
    world.begin(subscription, tail)
    # Then the event follows
    assert receiver.chain == [(3, 4)]


async def test_what_a_refused_replacement_held_goes_to_the_subscription_that_stays(
    world: World,
) -> None:
    # Given a subscription that is about to be replaced while an event comes
    receiver = await world.subscribed()
    replacement = world.threads.prepare(receiver, THREAD)
    world.log.store(1)
    world.log.hear(1)
    assert receiver.frames == []
    # When the replacement is refused
    world.threads.give_up(replacement)
    # Then the old one has missed nothing and goes on
    world.log.store(2)
    world.log.hear(2)
    assert receiver.chain == [(0, 1), (1, 2)]


async def test_a_failed_first_subscription_leaves_nothing_behind(world: World) -> None:
    world.log.connected = False
    receiver = Receiver()
    subscription = world.threads.prepare(receiver, THREAD)
    with pytest.raises(BusDisconnectedError):
        await world.threads.tail(subscription)
    world.threads.give_up(subscription)
    assert len(world.threads) == 0
    assert receiver.subscriptions == {}
    assert world.log.heard.keys() == {LEADER_ELECTED}
    # And the next one begins anew
    world.log.connected = True
    assert (await world.subscribed()).subscriptions.keys() == {THREAD}


async def test_a_gap_is_repaired_page_by_page(world: World) -> None:
    receiver = await world.subscribed()
    for seq in range(1, 501):
        world.log.store(seq)
    world.log.hear(500)
    await eventually(lambda: len(receiver.frames) == 500)
    assert receiver.chain == [(seq - 1, seq) for seq in range(1, 501)]


async def test_after_a_reconnect_a_lost_last_event_is_found_without_another_one(
    world: World,
) -> None:
    receiver = await world.subscribed()
    world.log.store(1)
    world.log.store(2)
    for hook in world.log.on_reconnect:
        hook()
    await eventually(lambda: len(receiver.frames) == 2)
    assert receiver.chain == [(0, 1), (1, 2)]


async def test_tails_are_compared_when_the_other_connection_is_back(world: World) -> None:
    receiver = await world.subscribed()
    world.log.store(1)
    world.log.connected = False
    for hook in world.log.on_reconnect:
        hook()
    await asyncio.sleep(0.1)
    world.log.connected = True
    await eventually(lambda: receiver.frames)


async def test_a_reconnect_during_the_attach_is_repaired(world: World) -> None:
    # Given a tail that is being read when the live connection is replaced
    world.log.gate.clear()
    receiver = Receiver()
    subscription = world.threads.prepare(receiver, THREAD)
    reading = asyncio.create_task(world.threads.tail(subscription))
    await eventually(lambda: "tail" in world.log.calls)
    world.log.store(1)
    for hook in world.log.on_reconnect:
        hook()
    world.log.gate.set()
    world.begin(subscription, await reading)
    # Then the event that no connection heard is found
    await eventually(lambda: receiver.frames)
    assert receiver.chain == [(0, 1)]


async def test_a_hole_that_cannot_be_repaired_ends_the_subscription_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a log that does not hold what the live event says came before it
    monkeypatch.setattr("edge.repair.REPAIR_S", 0.2)
    receiver = await world.subscribed()
    world.log.stored = [7]
    world.log.hear(7)
    headers = b"NATS/1.0\r\nNats-Sequence: 9\r\nNats-Last-Sequence: 8\r\n\r\n"
    world.log.heard[live_subject(THREAD)](b"", b"", headers, event(9).payload)
    # Then nothing is shown over the hole: the session has to load the thread anew
    await eventually(lambda: len(receiver.frames) == 2)
    shown, reset = receiver.seen
    assert (shown["prev_seq"], shown["seq"]) == (0, 7)
    assert reset == {"type": "thread.reset", "thread_id": THREAD, "reason": "gap"}
    assert receiver.subscriptions == {}
    assert world.log.heard.keys() == {LEADER_ELECTED}


async def test_what_the_log_has_lost_is_no_page_to_hand_on(world: World) -> None:
    # Given a thread at 1 whose events 2 to 5 were not heard, and have left the log when they are read
    receiver = await world.subscribed()
    world.log.store(1)
    world.log.hear(1)
    world.log.stored = [6, 7]
    headers = b"NATS/1.0\r\nNats-Sequence: 6\r\nNats-Last-Sequence: 5\r\n\r\n"
    world.log.heard[live_subject(THREAD)](b"", b"", headers, event(6).payload)
    # Then the reset comes at once, and 6 is not shown
    await eventually(lambda: len(receiver.frames) == 2)
    assert [frame["type"] for frame in receiver.seen] == ["message.new", "thread.reset"]


async def test_an_event_of_a_later_life_of_the_stream_resets(world: World) -> None:
    # Given a session at an event of the first life
    receiver = await world.subscribed()
    world.log.store(first_seq_of(1))
    world.log.hear(first_seq_of(1))
    # When the stream has been begun anew, and holds its first event
    world.log.stored = [first_seq_of(2)]
    world.log.hear(first_seq_of(2))
    # Then what lies between is not known, and the session is told so
    assert [frame["type"] for frame in receiver.seen] == ["message.new", "thread.reset"]
    assert receiver.seen[1]["reason"] == "generation"
    # And a thread that had no event goes on
    receiver = await world.subscribed()
    world.log.store(first_seq_of(2) + 1)
    world.log.hear(first_seq_of(2) + 1)
    assert receiver.chain == [(first_seq_of(2), first_seq_of(2) + 1)]


async def test_reading_ends_with_the_event_of_the_removal(world: World) -> None:
    # Given two members, one of whom the entry does not name any more
    ava, ben = await world.subscribed(), await world.subscribed()
    ben.user_id = UserId("ben")
    world.threads.revoke(entry_of("ava"))
    # When a message and then the removal come
    world.log.store(1)
    world.log.hear(1)
    world.log.hear_payload(2, removal("ben"))
    world.log.store(3)
    world.log.hear(3)
    # Then the removal is the last event that the ex-member sees
    assert ben.chain == [(0, 1), (1, 2)]
    assert ben.subscriptions == {}
    assert ava.chain == [(0, 1), (1, 2), (2, 3)]


async def test_a_removal_whose_event_never_comes_ends_the_reading_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.threads.LEAVING_S", 0.05)
    receiver = await world.subscribed()
    world.threads.revoke(entry_of("somebody-else"))
    assert receiver.subscriptions.keys() == {THREAD}
    await eventually(lambda: receiver.subscriptions == {})
    assert world.log.heard.keys() == {LEADER_ELECTED}


async def test_who_is_a_member_again_reads_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.threads.LEAVING_S", 0.05)
    receiver = await world.subscribed()
    world.threads.revoke(entry_of("somebody-else"))
    world.threads.revoke(entry_of("somebody-else", "ava"))
    await asyncio.sleep(0.1)
    assert receiver.subscriptions.keys() == {THREAD}


async def test_a_subscription_that_is_not_answered_yet_ends_with_the_entry(world: World) -> None:
    receiver = Receiver()
    subscription = world.threads.prepare(receiver, THREAD)
    world.threads.revoke(entry_of("somebody-else"))
    assert not subscription.is_current
    assert receiver.subscriptions == {}


async def test_the_directory_hears_whose_reading_ended(world: World) -> None:
    left: list[tuple[str, str]] = []
    world.threads.on_left.append(lambda thread_id, user_id: left.append((thread_id, user_id)))
    await world.subscribed()
    world.log.hear_payload(1, removal("ava"))
    assert left == [(THREAD, "ava")]


async def test_an_event_is_shown_to_those_it_is_visible_to_and_nobody_hears_who_they_are(
    world: World,
) -> None:
    # Given two members and an event for one of them
    ava, ben = await world.subscribed(), await world.subscribed()
    ben.user_id = UserId("ben")
    deleted = MessageDeleted(
        thread_id=THREAD, event_id="e", message_id="m", deleted_at="t", by="ben", visible_to=["ben"]
    )
    # When it comes between two messages
    world.log.hear_payload(1, event(1).payload)
    world.log.hear_payload(2, encode_event(deleted), before=1)
    world.log.hear_payload(3, event(3).payload, before=2)
    # Then the chain of the other passes over it
    assert ava.chain == [(0, 1), (1, 3)]
    assert ben.chain == [(0, 1), (1, 2), (2, 3)]
    assert b"visible_to" not in b"".join(ben.frames)


async def test_what_the_feed_says_of_a_lost_last_event_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.tails.GRACE_S", 0.02)
    receiver = await world.subscribed()
    world.log.store(1)
    world.threads.note(THREAD, 1)
    await eventually(lambda: receiver.chain == [(0, 1)])


async def test_after_an_election_the_tails_of_that_stream_are_compared(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a last event that nobody heard
    monkeypatch.setattr("edge.tails.LEADER_S", (0.01, 0.01))
    receiver = await world.subscribed()
    world.log.store(1)
    # When a stream of somebody else gets a leader, nothing happens; when ours does, the event is found
    for stream, chain in ((b"MSG_7", []), (b"MSG_0", [(0, 1)])):
        world.log.heard[LEADER_ELECTED](LEADER_ELECTED.encode()[:-1] + stream, b"", b"", b"{}")
        if chain:
            await eventually(lambda: receiver.frames)
        else:
            await asyncio.sleep(0.4)
        assert receiver.chain == chain


async def test_a_tail_from_a_replica_that_lags_is_compared_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a thread whose tail came from a replica that lacks the last event, which was stored before the SUB
    monkeypatch.setattr("edge.tails.ATTACHED_S", 0.01)
    world = World(replicas_lag=True)
    world.log.stored, world.log.lag = [1, 2], 1
    receiver = await world.subscribed()
    await eventually(lambda: receiver.chain == [(1, 2)])


async def test_a_cursor_that_a_lagging_replica_does_not_know_is_no_invalid_one(
    world: World,
) -> None:
    # Given a replica that lacks what a client has seen on another edge
    world.log.stored, world.log.lag = [1, 2], 1
    other = await world.subscribed()
    receiver = Receiver()
    subscription = world.threads.prepare(receiver, THREAD)
    # Then the cursor is where that client is, and what it names is found for the others too
    assert await world.threads.tail(subscription, at_least=3) == 1
    assert await world.threads.tail(subscription, at_least=2) == 2
    world.begin(subscription, 2)
    await eventually(lambda: other.chain == [(1, 2)])
    assert receiver.chain == []


def entry_of(*members: str) -> AccessEntry:
    return AccessEntry(
        thread_id=THREAD,
        revision=2,
        kind="group",
        owner_id=members[0],
        archived=False,
        members={user: Member("member", "") for user in members},
    )


def removal(user: str) -> bytes:
    return encode_event(
        ThreadMember(
            thread_id=THREAD,
            event_id="e",
            at="2026-11-24T00:00:00.000Z",
            by="owner",
            user_id=user,
            role="member",
            change="removed",
        )
    )
