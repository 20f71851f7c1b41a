"""Where we are in every subscribed thread, and whether what arrives follows from it. Pure.

Three promises of the server are used and one is checked: events of a thread come in ``seq`` order, each links to the
one before by ``prev_seq``, and ``recovered: false`` says that more is missing than an edge replays. That, and what lies
between a ``thread.reset`` and now, is read over REST, where the thread is as it is now; then the thread is subscribed
again from where REST ended, which replays the rest. What the socket brings of the thread meanwhile comes again.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Literal, NamedTuple

from lilith_client.errors import CommandError
from lilith_client.objects import (
    CAUGHT_UP,
    GAP,
    MESSAGE_NEW,
    SUBSCRIPTION_ENDED,
    Event,
    Position,
)

KNOWN_MESSAGES_MAX: Final = 512
"""Per thread. A second copy of a message comes minutes after the first, or not at all."""
ANSWER_S: Final = 30.0
RETRY_S: Final = 1.0


class Phase(Enum):
    """What a subscription waits for."""

    WANTED = "to be asked for"
    ASKED = "the ack"
    LIVE = "events"
    FILLING = "what changed, over REST"
    LAGGING = "room in our own queue"


class Fill(NamedTuple):
    """A gap to read over REST: every change after ``after``; at least up to the cursor ``until``, when there is one.

    ``ref`` names the subscription, so that one that replaced it gets nothing of this.
    """

    ref: str
    thread_id: str
    after: Position
    until: str | None


@dataclass(slots=True)
class Subscription:
    """One thread. ``position`` is that of the last event handed on, None before the first ack.

    ``linked``: the next event must link to the position. ``confirmed``: it was acknowledged once. ``lost_after``: a
    gap that nobody can fill began there, and the reader does not know it yet.
    """

    ref: str
    thread_id: str
    position: Position | None
    phase: Phase = Phase.WANTED
    linked: bool = False
    confirmed: bool = False
    lost_after: str | None = None
    ask_at: float = 0.0
    answer_by: float = 0.0
    known: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def ask_again(self, *, at: float = 0.0) -> None:
        """Subscribe again, from the position."""
        self.phase, self.ask_at, self.linked = Phase.WANTED, at, False

    def gap(self, until: str | None) -> Fill | None:
        """Begin to fill what lies after the position; None: there is none yet, a subscription from now does."""
        if self.position is None:
            self.ask_again()
            return None
        self.phase = Phase.FILLING
        return Fill(self.ref, self.thread_id, self.position, until)


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
        if item.position is None:
            return frame
        return {**frame, "after": item.position.cursor}

    def acknowledge(self, ref: str, ack: dict[str, Any]) -> list[Event | Fill]:
        """Go live, which begins with the replay; or return the gap to fill first."""
        item = self._by_ref[ref]
        item.linked, item.confirmed = False, True
        told: list[Event | Fill] = []
        if item.position is None:
            item.position = Position(ack["cursor"])
        if item.lost_after is not None:
            data = {"thread_id": item.thread_id, "after": item.lost_after, "until": ack["cursor"]}
            told.append(Event(GAP, data, "client"))
            item.lost_after = None
        if not ack["recovered"] and (fill := item.gap(ack["cursor"])):
            return [*told, fill]
        item.phase = Phase.LIVE
        return told

    def refuse(self, ref: str, error: CommandError, now: float) -> list[Event | Fill]:
        """Try again later, or give the thread up: it is not ours to see (any more)."""
        item = self._by_ref[ref]
        if error.retryable:
            item.ask_again(at=now + (error.retry_after_s or RETRY_S))
            return []
        if error.code == "invalid" and item.confirmed and (fill := item.gap(None)):
            return [fill]  # The log was replaced and does not know our position: REST does.
        events = self.end(item.thread_id, error.code)
        return [*events] if item.confirmed else []  # Else the caller of subscribe hears it.

    def end(self, thread_id: str, reason: str) -> list[Event]:
        """Give a thread up and tell the reader."""
        if self.remove(thread_id) is None:
            return []
        data = {"thread_id": thread_id, "reason": reason}
        return [Event(SUBSCRIPTION_ENDED, data, "client")]

    def arrive(self, frame: dict[str, Any], *, room: bool) -> list[Event]:
        """Take a frame with a position in a thread; return it for the reader, or nothing."""
        item = self._by_thread.get(frame["thread_id"])
        if item is None or item.phase is not Phase.LIVE:
            return []  # What the ack promises follows it; this is the rest of an older subscription.
        if not _is_beyond(item, frame["seq"]):
            return []
        if item.linked and _is_beyond(item, frame["prev_seq"]):
            item.ask_again()  # An event between the two never came.
            return []
        if not room:
            item.phase = Phase.LAGGING  # The position stays, so the event comes again.
            return []
        item.linked = True
        return _hand_on(item, frame, "live")

    def caught_up(self, frame: dict[str, Any], *, room: bool) -> list[Event]:
        """Take the end of a replay; return it for the reader, or nothing."""
        item = self._by_thread.get(frame["thread_id"])
        if item is None or item.phase is not Phase.LIVE:
            return []
        if not room:
            item.phase = Phase.LAGGING  # Its place in the order is all it says; it comes again.
            return []
        return [Event(CAUGHT_UP, frame)]

    def fill(self, fill: Fill, frame: dict[str, Any]) -> list[Event]:
        """Take one change of the gap, oldest first; return it for the reader unless it is known."""
        item = self._filling(fill)
        if item is None or not _is_beyond(item, frame["seq"]):
            return []
        return _hand_on(item, frame, "history")

    def filled(self, fill: Fill, cursor: str) -> None:
        """Subscribe again from ``cursor``, up to which REST has told everything."""
        if (item := self._filling(fill)) and item.position is not None:
            item.position = Position(cursor, item.position.seq)
            item.ask_again()

    def skip_gap(self, fill: Fill) -> None:
        """Go on from now: the gap cannot be filled. The ack tells the reader, who then reloads without a hole."""
        if item := self._filling(fill):
            item.position, item.lost_after = None, fill.after.cursor
            item.ask_again()

    def give_up(self, fill: Fill, reason: str) -> list[Event]:
        """End the subscription whose gap this is: REST says that the thread is not ours to see."""
        return self.end(fill.thread_id, reason) if self._filling(fill) else []

    def reset(self, thread_id: str) -> Fill | None:
        """Return what to read over REST after the server ended the subscription."""
        item = self._by_thread.get(thread_id)
        if item is None or item.phase not in {Phase.LIVE, Phase.LAGGING}:
            return None  # It is being asked for again as it is.
        return item.gap(None)

    def room(self) -> None:
        """Subscribe the threads again that lagged behind because our own queue was full."""
        for item in self._by_thread.values():
            if item.phase is Phase.LAGGING:
                item.ask_again()

    def disconnected(self) -> None:
        """Want everything again, each thread from its position."""
        for item in self._by_thread.values():
            item.ask_again()

    def _filling(self, fill: Fill) -> Subscription | None:
        item = self._by_ref.get(fill.ref)
        return item if item is not None and item.phase is Phase.FILLING else None


def _hand_on(
    item: Subscription, frame: dict[str, Any], source: Literal["live", "history"]
) -> list[Event]:
    """Move the position to a frame; return it for the reader, unless it is a second copy of a message."""
    item.position = Position(frame["cursor"], frame["seq"])
    if frame["type"] == MESSAGE_NEW and _is_known(item, frame["message_id"]):
        return []
    return [Event(frame["type"], frame, source)]


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
