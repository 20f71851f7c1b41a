"""From one live event to the sessions of this node: order, ``prev_seq`` chains, one encoding. Pure: no I/O.

Rules of a thread (architecture, section 4), with ``last`` as the newest seq this node has handed on:

* ``seq <= last``: dropped, it was here before. Around a leader change a server may republish twice.
* The event before it in the log is not newer than ``last``: handed on.
* Otherwise something is missing: events are held until the log was read from ``last`` on.

Rules of a subscription, with ``position`` as the seq its session saw last: what is not newer is passed over, and the
frame's ``prev_seq`` is the position. Sessions at the same position get the same bytes.
"""

import enum
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from edge.outbound import text_frame
from shared.bus import Subscription as Interest
from shared.cursors import cursor_suffix
from shared.events import audience_of, frame_of, message_id_in
from shared.identity import MessageId, ThreadId, UserId
from shared.protocol import CloseCode
from shared.provision.streams import GENERATION_BITS

HELD_MAX: Final = 1_024
"""Events held while a thread is attached or repaired; beyond it they are dropped and read from the log once more."""

PENDING_MAX: Final = 256
"""Events held for one session while its subscription is being answered; beyond it the log is read."""

RECENT_MAX: Final = 64


class Receiver(Protocol):
    """A session, as far as fan-out knows it."""

    user_id: UserId
    subscriptions: dict[ThreadId, "Subscription"]

    @property
    def has_room(self) -> bool:
        """Whether less than half of the outbound queue is taken, and more may be sent that can wait."""
        ...

    async def room(self) -> None:
        """Wait until ``has_room``, or until the session has ended."""

    def push(self, frame: bytes) -> None:
        """Queue an encoded frame; the session is closed when there is no room."""

    def push_ephemeral(self, frame: bytes) -> None:
        """Queue an encoded frame that may be dropped."""

    def close(self, code: CloseCode) -> None:
        """Close the socket."""


class Event(NamedTuple):
    """A stored event as it came live; ``before`` is the seq before it in the log, 0 when there is none left."""

    seq: int
    before: int
    payload: bytes


class Verdict(enum.Enum):
    """Why a live event was not handed on: it is up to the caller to do something."""

    GAP = "events are missing before it; it is held, and the log must be read"
    GENERATION = "it is of a later life of the stream: what was stored before may be lost"


class Subscription:
    """One session's place in one thread: answered, then perhaps read from the log, then live."""

    __slots__ = (
        "feed",
        "floor",
        "held",
        "is_answered",
        "is_live",
        "overflowed",
        "position",
        "replaced",
        "session",
    )

    def __init__(
        self, feed: "ThreadFeed", session: Receiver, replaced: "Subscription | None"
    ) -> None:
        self.feed = feed
        self.session = session
        self.replaced = replaced
        self.floor = feed.last
        self.position = 0
        self.held: list[Event] = []
        self.overflowed = False
        self.is_answered = False
        self.is_live = False

    @property
    def is_current(self) -> bool:
        """Whether the session has this subscription and no other: it may be sent to."""
        return self.feed.subscriptions.get(self.session) is self

    @property
    def is_known(self) -> bool:
        """Whether its session counts on events: it was answered, or replaces one that was."""
        return self.is_answered or self.replaced is not None

    @property
    def is_suspended(self) -> bool:
        """Whether another subscription is being answered, and this one goes on if that one is refused."""
        current = self.feed.subscriptions.get(self.session)
        return current is not None and current.replaced is self

    def hold(self, event: Event) -> None:
        """Keep an event until the subscription is answered; while it reads the log, the log has it."""
        if self.is_answered:
            return
        if len(self.held) < PENDING_MAX:
            self.held.append(event)
        else:
            self.overflowed = True

    def answer(self, position: int) -> None:
        """The subscription takes effect, and its session is at ``position``; the one before it is over."""
        self.replaced = None
        self.is_answered = True
        self.position = position

    def begin(self) -> int:
        """Hand on what was held and is newer than the position; from here on events come live.

        Returns:
            How many frames that were.
        """
        held, self.held = self.held, []
        self.is_live = True
        return sum(self.take(event) for event in held)

    def take(self, event: Event) -> bool:
        """Hand one event on; False when the session has seen it, or may not see it.

        The event with which the user leaves the thread is the last one: the subscription ends.
        """
        if event.seq <= self.position or not self.is_current:
            return False
        payload, user_id, is_last = event.payload, self.session.user_id, False
        audience = audience_of(payload)
        if audience is not None:
            if not audience.sees(user_id):
                return False
            payload, is_last = audience.payload, audience.leaver == user_id
        self.show(event.seq, payload)
        if is_last:
            self.end()
            self.feed.on_left(user_id)
        return True

    def show(self, seq: int, payload: bytes) -> None:
        """Send an event that the session may see, as the next one of its chain."""
        frame = self.feed.encode(seq, self.position, payload)
        self.position = seq
        self.session.push(frame)

    def end(self) -> None:
        """Take the subscription out of thread and session. Twice does nothing."""
        if self.is_current:
            del self.feed.subscriptions[self.session]
            if not self.feed.subscriptions:
                self.feed.on_empty(self.feed)
        if self.session.subscriptions.get(self.feed.thread_id) is self:
            del self.session.subscriptions[self.feed.thread_id]


def _nothing(_about: object) -> None:
    return None


class ThreadFeed:
    """One thread on this node: who is subscribed, and up to where it was handed on."""

    __slots__ = (
        "_recent",
        "_suffix",
        "generation_end",
        "held",
        "interests",
        "known",
        "last",
        "on_empty",
        "on_left",
        "overflowed",
        "subscriptions",
        "thread_id",
    )

    def __init__(
        self,
        thread_id: ThreadId,
        *,
        on_empty: "Callable[[ThreadFeed], None]" = _nothing,
        on_left: Callable[[UserId], None] = _nothing,
    ) -> None:
        self.thread_id = thread_id
        self.on_empty = on_empty
        self.on_left = on_left
        self.last = 0
        self.known = 0
        self.generation_end = 0
        self.held: list[Event] | None = []
        self.overflowed = False
        self.interests: list[Interest] = []
        self.subscriptions: dict[Receiver, Subscription] = {}
        self._suffix = cursor_suffix(thread_id).encode()
        # Ids of the newest messages, oldest first: a late retry may have stored a message a second time.
        self._recent: dict[bytes, int] = {}

    def encode(self, seq: int, prev_seq: int, payload: bytes) -> bytes:
        """Return the WebSocket frame of an event for everybody whose position is ``prev_seq``."""
        return text_frame(frame_of(payload, seq, prev_seq, self._suffix))

    def receive(self, event: Event) -> int | Verdict:
        """Take an event from the live subject.

        Returns:
            The number of frames queued, or what the caller has to see to.
        """
        if event.seq >= self.generation_end and self.last:
            return Verdict.GENERATION
        if self.held is not None:
            self._hold(event)
            return 0
        if event.before > self.last:
            self.held = [event]
            return Verdict.GAP
        return self.deliver(event)

    def deliver(self, event: Event) -> int:
        """Hand an event on to every session that has not seen it, and return how many that are.

        The order of calls is the order of the thread; gaps are the caller's business.
        """
        seq = event.seq
        if seq <= self.last:
            return 0
        if not self.last:
            self._note_generation(seq)
        self.last = seq
        if self._is_second_copy(event.payload, seq):
            return 0
        if audience_of(event.payload) is not None:
            return self._deliver_one_by_one(event)
        count = 0
        frame, frame_position = b"", -1
        encoded: dict[int, bytes] = {}
        # A copy: a session that is too slow is closed by push, and leaves the table.
        for subscription in tuple(self.subscriptions.values()):
            if not subscription.is_live:
                subscription.hold(event)
                continue
            position = subscription.position
            if seq <= position:
                continue
            if position != frame_position:
                found = encoded.get(position)
                if found is None:
                    found = encoded[position] = self.encode(seq, position, event.payload)
                frame, frame_position = found, position
            subscription.position = seq
            subscription.session.push(frame)
            count += 1
        return count

    def begin(self, tail: int) -> None:
        """Start with ``tail`` as the newest event that the log held when the live subject was already listened to."""
        self.last = max(self.last, tail)
        self._note_generation(self.last)
        for subscription in self.subscriptions.values():
            subscription.floor = self.last

    def suspend(self) -> None:
        """Hold live events from now on: the log is about to be read."""
        if self.held is None:
            self.held = []

    def release(self) -> tuple[int, bool]:
        """Hand on what was held, in order, up to a gap or to something that had to be dropped.

        Returns:
            The number of frames queued, and whether the thread is live again: False when events are missing still.
        """
        count = 0
        held, self.held = self.held or [], None
        if self.overflowed:
            # Everything that was dropped is in the log; what was kept is there as well.
            self.overflowed = False
            self.held = []
            return 0, False
        for index, event in enumerate(held):
            if event.before > self.last or (self.last and event.seq >= self.generation_end):
                self.held = held[index:]
                return count, False
            count += self.deliver(event)
        return count, True

    def missing_up_to(self) -> int:
        """Return the seq up to which the log must be read before held events can be released, 0 if any will do."""
        return max(self.known, self.held[0].before if self.held else 0)

    def seq_of(self, message_id: MessageId) -> int | None:
        """Return the position of one of the newest messages handed on; None when it is not among them."""
        return self._recent.get(message_id.encode())

    def message_at(self, seq: int) -> int | None:
        """Return the largest message at or below ``seq``; None when that is newer or older than what is remembered."""
        if seq > self.last:
            return None
        # From the newest on: a marker is hardly ever put to an old message.
        return next((known for known in reversed(self._recent.values()) if known <= seq), None)

    def forward(self, frame: bytes, *, but: UserId) -> int:
        """Hand an ephemeral frame to every subscribed session but those of one user; return how many."""
        count = 0
        for subscription in tuple(self.subscriptions.values()):
            if subscription.is_live and subscription.session.user_id != but:
                subscription.session.push_ephemeral(frame)
                count += 1
        return count

    def _hold(self, event: Event) -> None:
        assert self.held is not None, "only a suspended thread holds"  # noqa: S101
        if len(self.held) < HELD_MAX:
            self.held.append(event)
        else:
            self.held.clear()
            self.overflowed = True
            self.known = max(self.known, event.seq)

    def _deliver_one_by_one(self, event: Event) -> int:
        count = 0
        for subscription in tuple(self.subscriptions.values()):
            if subscription.is_live:
                count += subscription.take(event)
            else:
                subscription.hold(event)
        return count

    def _note_generation(self, seq: int) -> None:
        self.generation_end = ((seq >> GENERATION_BITS) + 1) << GENERATION_BITS

    def _is_second_copy(self, payload: bytes, seq: int) -> bool:
        message_id = message_id_in(payload)
        if message_id is None:
            return False
        if message_id in self._recent:
            return True
        if len(self._recent) >= RECENT_MAX:
            del self._recent[next(iter(self._recent))]
        self._recent[message_id] = seq
        return False
