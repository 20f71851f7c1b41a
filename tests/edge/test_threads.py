"""Attaching, repairing and comparing tails, with a bus whose timing the test decides."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, cast

import pytest

from edge.threads import Threads
from shared.bus import Bus, BusDisconnectedError, Page, StoredMessage
from shared.identity import ThreadId
from shared.metrics import EdgeMetrics
from shared.subjects import eph_subject, live_subject, msg_subject
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
        tail = self.stored[-1] if self.stored else None
        await self.gate.wait()
        return None if tail is None else self._message(tail)

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
        headers = b"NATS/1.0\r\nNats-Sequence: %d\r\nNats-Last-Sequence: %d\r\n\r\n" % (seq, before)
        self.heard[live_subject(THREAD)](b"", b"", headers, event(seq).payload)

    def _message(self, seq: int) -> StoredMessage:
        return StoredMessage("MSG_0", seq, msg_subject(THREAD), "", b"", event(seq).payload)


class World:
    """The threads of a node on that bus."""

    def __init__(self) -> None:
        self.log = Log()
        self.tasks: set[asyncio.Task[None]] = set()
        bus = cast("Bus", self.log)
        self.threads = Threads(bus, bus, streams=1, spawn=self._spawn, metrics=EdgeMetrics("test"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def subscribed(self) -> Receiver:
        receiver = Receiver()
        subscription = self.threads.prepare(receiver, THREAD)
        self.threads.begin(subscription, await self.threads.tail(subscription))
        return receiver


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A node with a log of its own."""
    world = World()
    yield world
    for task in tuple(world.tasks):
        task.cancel()


async def test_the_tail_is_read_only_after_the_server_knows_the_interest(world: World) -> None:
    await world.subscribed()
    assert world.log.calls == [live_subject(THREAD), eph_subject(THREAD), "flush", "tail"]


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
    world.threads.begin(subscription, tail)
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
    assert world.log.heard == {}
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
    world.threads.begin(subscription, await reading)
    # Then the event that no connection heard is found
    await eventually(lambda: receiver.frames)
    assert receiver.chain == [(0, 1)]


async def test_a_position_that_cannot_be_repaired_closes_the_session(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a log that does not hold what the live event says came before it
    monkeypatch.setattr("edge.threads.REPAIR_S", 0.2)
    closed: list[int] = []
    receiver = await world.subscribed()
    monkeypatch.setattr(receiver, "close", closed.append)
    world.log.stored = [7]
    world.log.hear(7)
    assert receiver.chain == [(0, 7)]
    headers = b"NATS/1.0\r\nNats-Sequence: 9\r\nNats-Last-Sequence: 8\r\n\r\n"
    world.log.heard[live_subject(THREAD)](b"", b"", headers, event(9).payload)
    # Then nothing with a hole is shown: the session has to resume
    await eventually(lambda: closed)
    assert closed == [4409]
    assert receiver.chain == [(0, 7)]
    assert receiver.subscriptions == {}


async def test_only_members_keep_their_subscription(world: World) -> None:
    from shared.access import AccessEntry, Member

    ava, ben = await world.subscribed(), await world.subscribed()
    ben.user_id = cast("Any", "ben")
    entry = AccessEntry(
        thread_id=THREAD,
        revision=2,
        kind="group",
        owner_id="ava",
        archived=False,
        members={"ava": Member("owner", "")},
    )
    world.threads.revoke(entry)
    world.log.store(1)
    world.log.hear(1)
    assert (len(ava.frames), len(ben.frames)) == (1, 0)
    world.threads.leave(ava, ThreadId(THREAD))
    assert world.log.heard == {}
