"""From one live event to the sessions of this node: order, ``prev_seq`` chains, one encoding. Pure: no I/O.

Rules of a thread (architecture, section 4), with ``last`` as the newest seq this node has handed on:

* ``seq <= last``: dropped, it was here before. Around a leader change a server may republish twice.
* The event before it in the log is not newer than ``last``: handed on.
* Otherwise something is missing: events are held until the log was read from ``last`` on.

Rules of a subscription, with ``position`` as the seq its session saw last: what is not newer is passed over, and the
frame's ``prev_seq`` is the position. Sessions at the same position get the same bytes.
"""

from typing import Final, NamedTuple, Protocol

from edge.outbound import text_frame
from shared.bus import Subscription as Interest
from shared.cursors import cursor_suffix
from shared.events import frame_of
from shared.identity import ThreadId, UserId
from shared.protocol import CloseCode

HELD_MAX: Final = 1_024
"""Events held while a thread is attached or repaired; beyond it they are dropped and read from the log once more."""

PENDING_MAX: Final = 256
"""Events held for one session while its subscription is being answered."""

RECENT_MAX: Final = 64
_MESSAGE_ID: Final = slice(len(b'{"type":"message.new","message_id":"'), 68)
_NEW_MESSAGE: Final = b'{"type":"message.new","message_id":"'


class Receiver(Protocol):
    """A session, as far as fan-out knows it."""

    user_id: UserId
    subscriptions: dict[ThreadId, "Subscription"]

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


class Subscription:
    """One session's place in one thread. While ``held`` is a list, the subscription is not answered yet."""

    __slots__ = ("feed", "floor", "held", "overflowed", "position", "replaced", "session")

    def __init__(
        self, feed: "ThreadFeed", session: Receiver, replaced: "Subscription | None"
    ) -> None:
        self.feed = feed
        self.session = session
        self.replaced = replaced
        self.floor = feed.last
        self.position = 0
        self.held: list[Event] | None = []
        self.overflowed = False

    def hold(self, event: Event) -> None:
        """Keep an event until the subscription is answered."""
        assert self.held is not None, "held is a list until begin"  # noqa: S101
        if len(self.held) < PENDING_MAX:
            self.held.append(event)
        else:
            self.overflowed = True

    def begin(self, position: int) -> int:
        """Hand on what was held and is newer than ``position``; from here on events come live.

        Returns:
            How many frames that were.
        """
        held, self.held, self.replaced = self.held or [], None, None
        self.position = position
        return sum(self.take(event) for event in held)

    def take(self, event: Event) -> bool:
        """Hand one event on; False when the session has seen it."""
        if event.seq <= self.position:
            return False
        self.session.push(self.feed.encode(event.seq, self.position, event.payload))
        self.position = event.seq
        return True


class ThreadFeed:
    """One thread on this node: who is subscribed, and up to where it was handed on."""

    __slots__ = (
        "_recent",
        "_suffix",
        "held",
        "interests",
        "last",
        "overflowed",
        "subscriptions",
        "thread_id",
    )

    def __init__(self, thread_id: ThreadId) -> None:
        self.thread_id = thread_id
        self.last = 0
        self.held: list[Event] | None = []
        self.overflowed = False
        self.interests: list[Interest] = []
        self.subscriptions: dict[Receiver, Subscription] = {}
        self._suffix = cursor_suffix(thread_id).encode()
        # Ids of the newest messages, oldest first: a late retry may have stored a message a second time.
        self._recent: dict[bytes, None] = {}

    def encode(self, seq: int, prev_seq: int, payload: bytes) -> bytes:
        """Return the WebSocket frame of an event for everybody whose position is ``prev_seq``."""
        return text_frame(frame_of(payload, seq, prev_seq, self._suffix))

    def receive(self, event: Event) -> int | None:
        """Take an event from the live subject.

        Returns:
            The number of frames queued; None when events are missing before it: it is held, and the caller must
            have the log read.
        """
        if self.held is not None:
            self._hold(event)
            return 0
        if event.before > self.last:
            self.held = [event]
            return None
        return self.deliver(event)

    def deliver(self, event: Event) -> int:
        """Hand an event on to every session that has not seen it, and return how many that are.

        The order of calls is the order of the thread; gaps are the caller's business.
        """
        seq = event.seq
        if seq <= self.last:
            return 0
        self.last = seq
        if self._is_second_copy(event.payload):
            return 0
        count = 0
        frame, frame_position = b"", -1
        encoded: dict[int, bytes] = {}
        # A copy: a session that is too slow is closed by push, and leaves the table.
        for subscription in tuple(self.subscriptions.values()):
            if subscription.held is not None:
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
            if event.before > self.last:
                self.held = held[index:]
                return count, False
            count += self.deliver(event)
        return count, True

    def missing_up_to(self) -> int:
        """Return the seq up to which the log must be read before held events can be released, 0 if any will do."""
        return self.held[0].before if self.held else 0

    def forward(self, frame: bytes, *, but: UserId) -> int:
        """Hand an ephemeral frame to every subscribed session but those of one user; return how many."""
        count = 0
        for subscription in tuple(self.subscriptions.values()):
            if subscription.held is None and subscription.session.user_id != but:
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

    def _is_second_copy(self, payload: bytes) -> bool:
        if not payload.startswith(_NEW_MESSAGE):
            return False
        message_id = payload[_MESSAGE_ID]
        if message_id in self._recent:
            return True
        if len(self._recent) >= RECENT_MAX:
            del self._recent[next(iter(self._recent))]
        self._recent[message_id] = None
        return False
