"""Where we are in every subscribed thread, and whether what arrives follows from it. Pure.

Three promises of the server are used and one is checked: events of a thread come in ``seq`` order, each links to the
one before by ``prev_seq``, and ``recovered: false`` says that something is missing. What is missing (for whatever
reason, our own full queue included) is read over REST, while live events are held, so that the reader of a thread
sees every message once and in order.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from lilith_client.errors import CommandError
from lilith_client.objects import (
    GAP,
    MESSAGE_NEW,
    SUBSCRIPTION_ENDED,
    Event,
    Position,
)

HELD_MAX: Final = 1_000
KNOWN_MESSAGES_MAX: Final = 512
"""Per thread. A second copy of a message comes minutes after the first, or not at all."""
ANSWER_S: Final = 30.0
RETRY_S: Final = 1.0


class Phase(Enum):
    """What a subscription waits for."""

    WANTED = "to be asked for"
    ASKED = "the ack"
    LIVE = "events"
    FILLING = "history over REST; live events are held"
    LAGGING = "room in our own queue"


class Fill(NamedTuple):
    """A gap to read over REST: everything after ``after``, at least up to the cursor ``until``.

    ``since`` bounds the search when the seq of ``after`` is unknown: nothing older than this time is missing.
    """

    thread_id: str
    after: Position
    until: str
    since: str | None


@dataclass(slots=True)
class Subscription:
    """One thread. ``position`` is that of the last event handed on, None before the first ack.

    ``linked``: the next event must link to the position. ``confirmed``: it was acknowledged once. ``distrusted``: the
    server no longer understands our cursor (the log was replaced), so REST alone tells what we missed.
    """

    ref: str
    thread_id: str
    position: Position | None
    phase: Phase = Phase.WANTED
    linked: bool = False
    confirmed: bool = False
    distrusted: bool = False
    since: str | None = None
    ask_at: float = 0.0
    answer_by: float = 0.0
    held: list[dict[str, Any]] = field(default_factory=list)
    known: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def ask_again(self, *, at: float = 0.0) -> None:
        """Forget what was held and subscribe again, from the position."""
        self.phase, self.ask_at, self.linked = Phase.WANTED, at, False
        self.held.clear()


class Subscriptions:
    """Every subscribed thread. Its methods take frames and return the events that the reader gets."""

    def __init__(self) -> None:
        self._by_thread: dict[str, Subscription] = {}
        self._by_ref: dict[str, Subscription] = {}

    def __contains__(self, ref: object) -> bool:
        return ref in self._by_ref

    def add(self, ref: str, thread_id: str, after: Position | None) -> None:
        """Want a thread from ``after`` on, or from now; replaces an older subscription of it."""
        self.remove(thread_id)
        made = Subscription(ref, thread_id, after)
        self._by_thread[thread_id] = self._by_ref[ref] = made

    def remove(self, thread_id: str) -> str | None:
        """Want a thread no longer; return the ref that it was asked for with, None when it was not subscribed."""
        found = self._by_thread.pop(thread_id, None)
        if found is None:
            return None
        del self._by_ref[found.ref]
        return found.ref

    def position(self, thread_id: str) -> Position | None:
        """Return the position of the last event handed on."""
        found = self._by_thread.get(thread_id)
        return found.position if found else None

    def due(self, now: float) -> Subscription | None:
        """Return one subscription to ask for now, or None."""
        for item in self._by_thread.values():
            if item.phase is Phase.ASKED and item.answer_by <= now:
                item.ask_again()
            if item.phase is Phase.WANTED and item.ask_at <= now:
                return item
        return None

    def wait_s(self, now: float) -> float | None:
        """Return how long until ``due`` may have one, None when all are live."""
        times = [item.ask_at for item in self._by_thread.values() if item.phase is Phase.WANTED]
        times += [item.answer_by for item in self._by_thread.values() if item.phase is Phase.ASKED]
        return max(0.0, min(times) - now) if times else None

    def ask(self, item: Subscription, now: float) -> dict[str, Any]:
        """Return the command to write now; the ack is awaited from here on."""
        item.phase, item.answer_by, item.linked = Phase.ASKED, now + ANSWER_S, False
        frame = {"type": "thread.subscribe", "ref": item.ref, "thread_id": item.thread_id}
        if item.position is None or item.distrusted:
            return frame
        return {**frame, "after": item.position.cursor}

    def acknowledge(self, ref: str, ack: dict[str, Any], *, since: str) -> Fill | None:
        """Go live; or return the gap to fill first. ``since``: a server time before this subscription."""
        item = self._by_ref[ref]
        item.linked, item.confirmed = False, True
        recovered, item.distrusted = ack["recovered"] and not item.distrusted, False
        if item.position is None:
            item.position, item.since = Position(ack["cursor"]), since
        if recovered:
            item.phase = Phase.LIVE
            return None
        item.phase = Phase.FILLING
        return Fill(item.thread_id, item.position, ack["cursor"], item.since)

    def refuse(self, ref: str, error: CommandError, now: float) -> list[Event]:
        """Try again later, or give the thread up: it is not ours to see (any more)."""
        item = self._by_ref[ref]
        if error.retryable:
            item.ask_again(at=now + (error.retry_after_s or RETRY_S))
            return []
        if error.code == "invalid" and item.confirmed and not item.distrusted:
            item.ask_again()
            item.distrusted = True
            return []
        events = self.end(item.thread_id, error.code)
        return events if item.confirmed else []  # Else the caller of subscribe hears it.

    def end(self, thread_id: str, reason: str) -> list[Event]:
        """Give a thread up and tell the reader."""
        if self.remove(thread_id) is None:
            return []
        data = {"thread_id": thread_id, "reason": reason}
        return [Event(SUBSCRIPTION_ENDED, data, "client")]

    def arrive(self, frame: dict[str, Any], *, room: bool) -> list[Event]:
        """Take a frame with a position in a thread; return it for the reader, or nothing."""
        item = self._by_thread.get(frame["thread_id"])
        if item is None or item.phase in {Phase.WANTED, Phase.ASKED, Phase.LAGGING}:
            return []  # What the ack promises follows it; this is the rest of an older subscription.
        if item.phase is Phase.FILLING:
            if len(item.held) >= HELD_MAX:
                item.ask_again()
            else:
                item.held.append(frame)
            return []
        return self._apply(item, frame, room=room)

    def fill(self, thread_id: str, message: dict[str, Any]) -> list[Event]:
        """Take one message of the gap, oldest first; return it for the reader unless it is known."""
        item = self._by_thread.get(thread_id)
        if item is None or item.phase is not Phase.FILLING or not _is_beyond(item, message["seq"]):
            return []
        item.position = Position(message["cursor"], message["seq"])
        if _is_known(item, message["message_id"]):
            return []
        return [Event(MESSAGE_NEW, {"type": MESSAGE_NEW, **message}, "history")]

    def next_held(self, thread_id: str) -> list[Event] | None:
        """Return what the next held live event means for the reader; None: all done, the thread is live.

        Ends the filling in the same step in which nothing is held any more: no event can slip in between.
        """
        item = self._by_thread.get(thread_id)
        if item is None or item.phase is not Phase.FILLING:
            return None
        if not item.held:
            item.phase = Phase.LIVE
            return None
        return self._apply(item, item.held.pop(0), room=True)

    def skip_gap(self, fill: Fill) -> list[Event]:
        """Go on after a gap that cannot be filled, and tell the reader to reload the thread."""
        item = self._by_thread.get(fill.thread_id)
        if item is None:
            return []
        item.position = Position(fill.until)
        data = {"thread_id": fill.thread_id, "after": fill.after.cursor, "until": fill.until}
        return [Event(GAP, data, "client")]

    def filled(self, fill: Fill) -> None:
        """Note that REST answered with everything up to ``fill.until``: changes that are no messages included."""
        item = self._by_thread.get(fill.thread_id)
        if item is not None and item.phase is Phase.FILLING and item.position is not None:
            item.position = Position(fill.until, item.position.seq)

    def reset(self, thread_id: str) -> None:
        """Subscribe again after the server ended the subscription."""
        if item := self._by_thread.get(thread_id):
            item.ask_again()

    def room(self) -> None:
        """Subscribe the threads again that lagged behind because our own queue was full."""
        for item in self._by_thread.values():
            if item.phase is Phase.LAGGING:
                item.ask_again()

    def disconnected(self) -> None:
        """Want everything again, each thread from its position."""
        for item in self._by_thread.values():
            item.ask_again()

    def _apply(self, item: Subscription, frame: dict[str, Any], *, room: bool) -> list[Event]:
        if not _is_beyond(item, frame["seq"]):
            return []
        if item.linked and _is_beyond(item, frame["prev_seq"]):
            item.ask_again()  # An event between the two never came.
            return []
        if not room:
            item.phase = Phase.LAGGING  # The position stays, so the event comes again.
            return []
        item.position, item.linked = Position(frame["cursor"], frame["seq"]), True
        if frame["type"] == MESSAGE_NEW and _is_known(item, frame["message_id"]):
            return []
        return [Event(frame["type"], frame)]


def _is_beyond(item: Subscription, seq: int) -> bool:
    """Return whether ``seq`` lies after the position; with a position of unknown seq everything does."""
    position = item.position
    return position is None or position.seq is None or seq > position.seq


def _is_known(item: Subscription, message_id: str) -> bool:
    """Return whether the message was handed on before; it counts as handed on from here."""
    if message_id in item.known:
        return True
    item.known[message_id] = None
    if len(item.known) > KNOWN_MESSAGES_MAX:
        item.known.popitem(last=False)
    return False
