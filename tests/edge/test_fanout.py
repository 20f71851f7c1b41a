"""Order, ``prev_seq`` chains and encoding of the fan-out, against any order of subscriptions and events."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from edge.fanout import HELD_MAX, PENDING_MAX, Event, Subscription, ThreadFeed, Verdict
from edge.outbound import payload_of
from shared.cursors import encode_cursor
from shared.events import MessageNew, encode_event
from shared.identity import ThreadId, UserId
from shared.protocol import CloseCode

THREAD = ThreadId("0" * 32)


class Receiver:
    """A session that keeps what it is sent."""

    def __init__(self, user: str = "ava") -> None:
        self.user_id = UserId(user)
        self.subscriptions: dict[ThreadId, Subscription] = {}
        self.frames: list[bytes] = []
        self.ephemeral: list[bytes] = []

    @property
    def has_room(self) -> bool:
        return True

    async def room(self) -> None:
        return

    def push(self, frame: bytes) -> None:
        self.frames.append(frame)

    def push_ephemeral(self, frame: bytes) -> None:
        self.ephemeral.append(frame)

    def close(self, code: CloseCode) -> None:
        raise AssertionError(code)

    @property
    def seen(self) -> list[dict[str, Any]]:
        return [json.loads(payload_of(frame)) for frame in self.frames]

    @property
    def chain(self) -> list[tuple[int, int]]:
        """(prev_seq, seq) of everything seen."""
        return [(frame["prev_seq"], frame["seq"]) for frame in self.seen]


def event(seq: int, before: int = 0, message_id: str = "") -> Event:
    message = MessageNew(
        message_id=message_id or f"{seq:032x}",
        thread_id=THREAD,
        client_msg_id="c",
        sender_id="ava",
        kind="text",
        body=f"body {seq}",
        attachments=[],
        reply_to=None,
        metadata={},
        sent_at="2026-11-24T00:00:00.000Z",
    )
    return Event(seq, before, encode_event(message))


def attached(tail: int = 0) -> ThreadFeed:
    feed = ThreadFeed(THREAD)
    feed.begin(tail)
    assert feed.release() == (0, True)
    return feed


def subscribe(feed: ThreadFeed, receiver: Receiver, position: int | None = None) -> Subscription:
    subscription = Subscription(feed, receiver, None)
    feed.subscriptions[receiver] = subscription
    if position is not None:
        subscription.answer(position)
        subscription.begin()
    return subscription


def test_an_event_is_encoded_once_for_a_thousand_sessions() -> None:
    # Given a thousand sessions at the same position
    feed = attached(tail=5)
    receivers = [Receiver(f"u{number}") for number in range(1_000)]
    for receiver in receivers:
        subscribe(feed, receiver, 5)
    # When two events come
    assert feed.receive(event(6, before=5)) == 1_000
    assert feed.receive(event(9, before=6)) == 1_000
    # Then all of them hold the very same bytes
    assert len({id(receiver.frames[0]) for receiver in receivers}) == 1
    assert len({id(receiver.frames[1]) for receiver in receivers}) == 1
    assert receivers[0].chain == [(5, 6), (6, 9)]
    assert receivers[0].seen[1]["cursor"] == encode_cursor(THREAD, 9)


def test_sessions_at_other_positions_get_their_own_prev_seq() -> None:
    feed = attached(tail=5)
    old, ahead, other = Receiver(), Receiver(), Receiver()
    subscribe(feed, old, 5)
    subscribe(feed, ahead, 8)
    subscribe(feed, other, 5)
    for seq in (6, 8, 9):
        feed.receive(event(seq))
    assert old.chain == other.chain == [(5, 6), (6, 8), (8, 9)]
    assert ahead.chain == [(8, 9)]


def test_what_was_handed_on_before_is_dropped() -> None:
    feed = attached(tail=5)
    receiver = Receiver()
    subscribe(feed, receiver, 5)
    for seq in (6, 6, 4, 7, 6):
        feed.receive(event(seq))
    assert receiver.chain == [(5, 6), (6, 7)]
    assert feed.last == 7


def test_an_aged_out_predecessor_is_no_gap() -> None:
    feed = attached(tail=5)
    receiver = Receiver()
    subscribe(feed, receiver, 5)
    assert feed.receive(event(9, before=0)) == 1
    assert receiver.chain == [(5, 9)]


def test_a_gap_holds_events_until_the_log_was_read() -> None:
    # Given a thread at 5, with 6 and 7 lost on their way
    feed = attached(tail=5)
    receiver = Receiver()
    subscribe(feed, receiver, 5)
    # When 8 and 9 come
    assert feed.receive(event(8, before=7)) is Verdict.GAP
    assert feed.receive(event(9, before=8)) == 0
    # Then nothing is shown until the log was read
    assert receiver.frames == []
    assert feed.missing_up_to() == 7
    for seq in (6, 7, 8):
        feed.deliver(event(seq))
    assert feed.release() == (1, True)
    assert receiver.chain == [(5, 6), (6, 7), (7, 8), (8, 9)]


def test_a_second_gap_among_held_events_is_seen() -> None:
    feed = attached(tail=5)
    receiver = Receiver()
    subscribe(feed, receiver, 5)
    feed.receive(event(8, before=7))
    feed.receive(event(12, before=11))
    feed.deliver(event(7))
    assert feed.release() == (1, False)
    assert feed.missing_up_to() == 11
    assert receiver.chain == [(5, 7), (7, 8)]


def test_more_than_can_be_held_is_read_from_the_log() -> None:
    # Given a suspended thread and more events than it holds
    feed = attached(tail=0)
    receiver = Receiver()
    subscribe(feed, receiver, 0)
    feed.suspend()
    for seq in range(1, HELD_MAX + 10):
        feed.receive(event(seq, before=seq - 1))
    # When it is released, then it says that the log has to be read, and shows nothing of what it kept
    assert feed.release() == (0, False)
    assert receiver.frames == []
    for seq in range(1, HELD_MAX + 10):
        feed.deliver(event(seq))
    assert feed.release() == (0, True)
    assert [seq for _, seq in receiver.chain] == list(range(1, HELD_MAX + 10))


def test_events_during_the_attach_come_after_the_tail() -> None:
    # Given a thread that is being attached while 4, 5 and 6 come live
    feed = ThreadFeed(THREAD)
    receiver = Receiver()
    subscription = subscribe(feed, receiver)
    for seq in (4, 5, 6):
        assert feed.receive(event(seq, before=seq - 1)) == 0
    # When the log says that 5 was its tail
    feed.begin(5)
    assert feed.release() == (0, True)
    assert subscription.floor == 5
    subscription.answer(5)
    subscription.begin()
    # Then only what came after it is shown
    assert receiver.chain == [(5, 6)]


def test_a_pending_subscription_that_overflows_says_so() -> None:
    feed = attached(tail=0)
    subscription = subscribe(feed, Receiver())
    for seq in range(1, PENDING_MAX + 2):
        feed.receive(event(seq, before=seq - 1))
    assert subscription.overflowed


def test_the_second_copy_of_a_message_is_passed_over() -> None:
    # Given a message that a late retry stored a second time
    feed = attached(tail=0)
    receiver = Receiver()
    subscribe(feed, receiver, 0)
    feed.receive(event(1, message_id="a" * 32))
    feed.receive(event(2, before=1, message_id="b" * 32))
    feed.receive(event(3, before=2, message_id="a" * 32))
    feed.receive(event(4, before=3, message_id="c" * 32))
    # Then it is shown once, and the chain has no hole
    assert receiver.chain == [(0, 1), (1, 2), (2, 4)]


def test_typing_never_comes_back_to_the_typist() -> None:
    feed = attached()
    ava, ava_too, ben, late = Receiver("ava"), Receiver("ava"), Receiver("ben"), Receiver("cleo")
    for receiver in (ava, ava_too, ben):
        subscribe(feed, receiver, 0)
    subscribe(feed, late)
    assert feed.forward(b"typing", but=UserId("ava")) == 1
    assert (ava.ephemeral, ava_too.ephemeral) == ([], [])
    assert ben.ephemeral == [b"typing"]
    assert late.ephemeral == []


def test_a_session_may_leave_while_it_is_served() -> None:
    # Given a session that is closed by being sent something
    class Slow(Receiver):
        @override
        def push(self, frame: bytes) -> None:
            del feed.subscriptions[self]

    feed = attached()
    slow, fast = Slow(), Receiver()
    subscribe(feed, slow, 0)
    subscribe(feed, fast, 0)
    assert feed.receive(event(1)) == 2
    assert fast.chain == [(0, 1)]
    assert slow not in feed.subscriptions


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], list[tuple[str, int]]]:
    """A log of seqs, and what happens: live deliveries (some lost, some twice), subscriptions, repairs."""
    count = draw(st.integers(1, 40))
    steps = draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    seqs = [sum(steps[: index + 1]) for index in range(count)]
    happenings: list[tuple[str, int]] = []
    for index in range(count):
        kind = draw(st.sampled_from(["live", "live", "live", "lost", "twice", "late"]))
        happenings.append((kind, index))
        if draw(st.booleans()):
            happenings.append((draw(st.sampled_from(["subscribe", "answer"])), index))
    return seqs, happenings


class Replay:
    """A thread whose live events are lost, repeated and late, with sessions that come at any time."""

    def __init__(self, seqs: list[int]) -> None:
        self.seqs = seqs
        self.feed = attached()
        self.pending: list[tuple[Receiver, Subscription, int]] = []
        self.answered: list[tuple[Receiver, int]] = []
        self._before = dict(zip(seqs, [0, *seqs], strict=False))

    def repair(self, stored: int) -> None:
        for seq in self.seqs[: stored + 1]:
            self.feed.deliver(event(seq, self._before[seq]))
        assert self.feed.release()[1]

    def hear(self, index: int) -> None:
        seq = self.seqs[index]
        if self.feed.receive(event(seq, self._before[seq])) is Verdict.GAP:
            self.repair(index)

    def happen(self, kind: str, index: int) -> None:
        if kind in ("live", "twice"):
            for _ in range(1 if kind == "live" else 2):
                self.hear(index)
        elif kind == "late":  # An old one comes again.
            self.hear(max(0, index - 3))
        elif kind == "subscribe":
            receiver = Receiver()
            # The tail as the log has it now, whatever was heard live so far.
            self.pending.append((receiver, subscribe(self.feed, receiver), self.seqs[index]))
        elif kind == "answer" and self.pending:
            receiver, subscription, tail = self.pending.pop(0)
            position = max(subscription.floor, tail)
            subscription.answer(position)
            subscription.begin()
            self.answered.append((receiver, position))


@given(histories())
def test_every_session_sees_the_log_from_its_position_on_once_and_in_order(
    history: tuple[list[int], list[tuple[str, int]]],
) -> None:
    # Given a log, and any luck of its live events
    seqs, happenings = history
    replay = Replay(seqs)
    for kind, index in happenings:
        replay.happen(kind, index)
    replay.repair(len(seqs) - 1)
    # Then whatever a session saw is the log after its position
    for receiver, position in replay.answered:
        expected = [seq for seq in seqs if seq > position]
        assert receiver.chain == list(zip([position, *expected], expected, strict=False))
