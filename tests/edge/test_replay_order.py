"""Replays on a bus whose timing the test decides: order, pace, places, what happens when something fails."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as property_settings
from hypothesis import strategies as st
from typing_extensions import override

from edge.fanout import Subscription
from edge.outbound import text_frame
from edge.replay import Replay
from edge.turns import EDGE_MAX, SESSION_MAX, Turns
from shared.bus import BusDisconnectedError, BusOverloadedError
from tests.edge.test_fanout import THREAD, Receiver
from tests.edge.test_threads import World, removal
from tests.support.eventually import eventually

CAUGHT_UP = text_frame(b'{"type":"thread.caught_up","prev_seq":-1,"seq":-1}')


class Reader(Receiver):
    """A session that reads only when the test lets it."""

    def __init__(self, room: int = 1_000_000, user: str = "ava") -> None:
        super().__init__(user)
        self.left = room
        self._changed = asyncio.Event()

    @property
    @override
    def has_room(self) -> bool:
        return self.left > 0

    @override
    async def room(self) -> None:
        while not self.has_room:
            self._changed.clear()
            await self._changed.wait()

    @override
    def push(self, frame: bytes) -> None:
        super().push(frame)
        self.left -= 1

    def read(self, frames: int) -> None:
        self.left += frames
        self._changed.set()

    def has_seen(self, seqs: list[int]) -> bool:
        return [seq for seq in self.seqs if seq > 0] == seqs

    @property
    def seqs(self) -> list[int]:
        return [seq for _, seq in self.chain]


class Story(World):
    """Threads and replays of a node, and what a subscribe command does."""

    async def resume(self, reader: Receiver, after: int, *, visible_from: int = 0) -> Subscription:
        subscription = self.threads.prepare(reader, THREAD)
        tail = await self.threads.tail(subscription)
        replay = await self.replays.open(
            subscription, after=after, newest=tail, visible_from=visible_from
        )
        assert replay is not None
        subscription.answer(after)
        replay.caught_up = CAUGHT_UP
        self.replays.start(subscription, replay)
        return subscription

    def happen(self, *seqs: int) -> None:
        for seq in seqs:
            self.log.store(seq)
            self.log.hear(seq)


@pytest.fixture
async def story() -> AsyncIterator[Story]:
    """A node with a log of its own."""
    story = Story()
    yield story
    for task in tuple(story.tasks):
        task.cancel()


async def test_what_was_missed_then_caught_up_then_live(story: Story) -> None:
    story.log.stored = [1, 2, 3, 4]
    reader = Reader()
    await story.resume(reader, 2)
    story.happen(5)
    assert reader.chain == [(2, 3), (3, 4), (-1, -1), (4, 5)]


async def test_a_replay_stops_when_the_queue_is_half_full_and_live_events_wait_in_the_log(
    story: Story,
) -> None:
    # Given a reader who has room for 3 frames and has missed 10
    story.log.stored = list(range(1, 11))
    reader = Reader(room=3)
    await story.resume(reader, 0)
    # When events come live meanwhile
    story.happen(11, 12)
    await asyncio.sleep(0.05)
    # Then no more than fits was sent, and nothing out of turn
    assert reader.seqs == [1, 2, 3]
    reader.read(4)
    await eventually(lambda: reader.seqs == list(range(1, 8)))
    reader.read(100)
    await eventually(lambda: reader.seqs == [*range(1, 11), -1, 11, 12])
    # And then it is live
    story.happen(13)
    assert reader.chain[-3:] == [(10, 11), (11, 12), (12, 13)]
    assert story.replays.under_way == 0


async def test_a_replay_meets_the_live_end_however_fast_that_moves(story: Story) -> None:
    story.log.stored = [1, 2]
    reader = Reader(room=1)
    await story.resume(reader, 0)
    for seq in range(3, 40):
        story.happen(seq)
        reader.read(2)
        await asyncio.sleep(0)
    reader.read(100)
    await eventually(lambda: len(reader.frames) == 40)
    assert [seq for seq in reader.seqs if seq > 0] == list(range(1, 40))


async def test_a_reader_who_is_too_slow_is_told_so(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.replay.REPLAY_S", 0.1)
    story.log.stored = list(range(1, 11))
    reader = Reader(room=3)
    await story.resume(reader, 0)
    await eventually(lambda: len(reader.frames) == 4)
    assert reader.seen[-1] == {"type": "thread.reset", "thread_id": THREAD, "reason": "slow"}
    assert reader.subscriptions == {}
    assert story.replays.under_way == 0


async def test_a_log_that_lacks_what_was_heard_ends_the_replay(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.replay.REPLAY_S", 0.2)
    story.log.stored = [1, 2, 3]
    reader = Reader(room=1)
    await story.resume(reader, 0)
    story.happen(4)
    story.log.stored.remove(4)
    reader.read(100)
    await eventually(lambda: reader.subscriptions == {})
    assert reader.seen[-1]["reason"] == "gap"


async def test_a_subscription_that_is_replaced_sends_nothing_more(story: Story) -> None:
    # Given a replay under way
    story.log.stored = [1, 2, 3, 4]
    reader = Reader(room=2)
    await story.resume(reader, 0)
    # When the session subscribes again, from another place
    await story.resume(reader, 1)
    reader.read(100)
    # Then the second replay is the only one that goes on
    await eventually(lambda: len(reader.frames) == 6)
    assert reader.chain == [(0, 1), (1, 2), (1, 2), (2, 3), (3, 4), (-1, -1)]
    await eventually(lambda: story.replays.under_way == 0)


async def test_a_replay_goes_on_when_its_replacement_is_refused(story: Story) -> None:
    story.log.stored = [1, 2, 3]
    reader = Reader(room=1)
    await story.resume(reader, 0)
    replacement = story.threads.prepare(reader, THREAD)
    reader.read(100)
    await asyncio.sleep(0.1)
    assert reader.seqs == [1]
    story.threads.give_up(replacement)
    await eventually(lambda: reader.seqs == [1, 2, 3, -1])


async def test_a_live_subscription_whose_refused_replacement_dropped_events_reads_them(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.fanout.PENDING_MAX", 2)
    receiver = await story.subscribed()
    replacement = story.threads.prepare(receiver, THREAD)
    story.happen(1, 2, 3, 4)
    assert replacement.overflowed
    story.threads.give_up(replacement)
    await eventually(lambda: receiver.chain == [(0, 1), (1, 2), (2, 3), (3, 4)])
    story.happen(5)
    assert receiver.chain[-1] == (4, 5)


async def test_more_than_can_be_held_during_the_attach_is_read_from_the_log(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.fanout.PENDING_MAX", 2)
    await story.subscribed()
    receiver = Receiver()
    subscription = story.threads.prepare(receiver, THREAD)
    tail = await story.threads.tail(subscription)
    story.happen(1, 2, 3, 4)
    story.begin(subscription, tail)
    await eventually(lambda: receiver.chain == [(0, 1), (1, 2), (2, 3), (3, 4)])


async def test_a_replay_waits_for_a_replica_that_lags(story: Story) -> None:
    # Given a tail that one replica told, and another one that has only the first event
    story.log.stored = [1]
    reader = Reader()
    subscription = story.threads.prepare(reader, THREAD)
    await story.threads.tail(subscription)
    opening = asyncio.create_task(
        story.replays.open(subscription, after=0, newest=3, visible_from=0)
    )
    await asyncio.sleep(0.1)
    assert not opening.done()
    # When it has caught up
    story.log.stored = [1, 2, 3]
    replay = await opening
    # Then everything is there
    assert replay is not None
    assert [event.seq for event in replay.past] == [1, 2, 3]
    story.replays.abandon(subscription, replay)


async def test_beyond_its_limits_and_beyond_the_log_nothing_is_replayed(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.replay.EVENTS_MAX", 3)
    story.log.stored = [11, 12, 13, 14]
    subscription = story.threads.prepare(Reader(), THREAD)
    await story.threads.tail(subscription)

    async def opened(after: int, visible_from: int = 0) -> Replay | None:
        return await story.replays.open(
            subscription, after=after, newest=14, visible_from=visible_from
        )

    assert await opened(10) is None
    assert await opened(11) is not None
    assert await opened(9, visible_from=12) is not None
    monkeypatch.setattr("edge.replay.BYTES_MAX", 100)
    assert await opened(11) is None
    monkeypatch.setattr("edge.replay.BYTES_MAX", 10_000)
    monkeypatch.setattr("edge.replay.EVENTS_MAX", 30)
    monkeypatch.setattr("edge.log.first_seq_of", lambda _generation: 1)
    assert await opened(10) is not None
    assert await opened(9) is None
    assert story.replays.under_way == 3


async def test_what_the_log_forgets_while_it_is_read_makes_the_replay_no_whole_one(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a log that loses its first event between the first look at it and the reading
    monkeypatch.setattr("edge.log.first_seq_of", lambda _generation: 1)
    story.log.stored = [11, 12, 13]
    subscription = story.threads.prepare(Reader(), THREAD)
    await story.threads.tail(subscription)
    read = story.log.get_range

    async def forgetful(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        story.log.stored = story.log.stored[-2:]
        return await read(*arguments, **options)

    monkeypatch.setattr(story.log, "get_range", forgetful)
    assert (await story.replays.open(subscription, after=10, newest=13, visible_from=0)) is None


async def test_a_log_that_cannot_be_read_takes_no_place(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_arguments: Any, **_options: Any) -> Any:  # noqa: ANN401
        raise BusDisconnectedError("test")

    subscription = story.threads.prepare(Reader(), THREAD)
    await story.threads.tail(subscription)
    monkeypatch.setattr(story.log, "get_range", broken)
    with pytest.raises(BusDisconnectedError):
        await story.replays.open(subscription, after=0, newest=1, visible_from=0)
    assert story.replays.under_way == 0


async def test_reading_ends_with_the_removal_in_a_replay_too(story: Story) -> None:
    # Given a replay that is under way when its reader is removed
    story.log.stored = [1, 2]
    reader = Reader(room=1)
    await story.resume(reader, 0)
    story.log.store(3)
    story.log.payloads[3] = removal("ava")
    story.log.hear_payload(3, removal("ava"), before=2)
    story.happen(4)
    reader.read(100)
    # Then the removal is its last frame
    await eventually(lambda: reader.subscriptions == {})
    assert reader.seqs == [1, 2, -1, 3]


async def test_places_are_few_and_waiting_for_one_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge.turns.WAIT_S", 0.05)
    turns = Turns()
    # Given a session with as many replays as it may have
    for _ in range(SESSION_MAX):
        await turns.take("a")
    with pytest.raises(BusOverloadedError):
        await turns.take("a")
    # When one ends, then the one that waits begins
    waiting = asyncio.create_task(turns.take("a"))
    await asyncio.sleep(0.01)
    turns.give_back("a")
    await waiting
    # And an edge has so many places for all of its sessions
    for number in range(EDGE_MAX - SESSION_MAX):
        await turns.take(number)
    with pytest.raises(BusOverloadedError):
        await turns.take("b")
    assert len(turns) == EDGE_MAX
    turns.give_back(0)
    await turns.take("b")


@st.composite
def plots(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Events that are heard, lost or heard twice; sessions that come back with any position, and read at any pace."""
    kinds = ["hear", "hear", "lose", "again", "resume", "read", "yield"]
    return draw(
        st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 12)), min_size=5, max_size=60)
    )


@given(plots())
@property_settings(max_examples=150)
def test_whatever_is_lost_each_session_sees_everything_after_its_cursor_once_and_in_order(
    plot: list[tuple[str, int]],
) -> None:
    asyncio.run(_play(plot))


async def _play(plot: list[tuple[str, int]]) -> None:
    story, readers, stored = Story(), list[tuple[Reader, int]](), 0
    for kind, number in plot:
        if kind in ("hear", "lose"):
            stored += 1 + number % 3
            story.log.store(stored)
            if kind == "hear" and story.threads.positions():
                story.log.hear(stored)
        elif kind == "again" and stored and story.threads.positions():
            story.log.hear(story.log.stored[-1 - number % len(story.log.stored)])
        elif kind == "resume":
            reader = Reader(room=number % 5)
            await story.resume(reader, min(number, stored))
            readers.append((reader, min(number, stored)))
        elif kind == "read" and readers:
            readers[number % len(readers)][0].read(number)
        else:
            await asyncio.sleep(0)
    # In the end everybody reads, and the log is compared once more
    for reader, _ in readers:
        reader.read(10_000)
    if stored:
        story.threads.note(THREAD, stored)
        story.threads.repair(THREAD)
    for reader, after in readers:
        expected = [seq for seq in story.log.stored if seq > after]
        await eventually(partial(reader.has_seen, expected))
        chain = [link for link in reader.chain if link[1] > 0]
        assert chain == list(zip([after, *expected], expected, strict=False))
    for task in tuple(story.tasks):
        task.cancel()
