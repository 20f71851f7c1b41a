"""Messages on their way: one lane per thread, so that a later message never overtakes an earlier one. Pure.

Each message ends in exactly one of three ways: sent (acknowledged), failed (refused, nothing stored), or unknown at
its deadline. Until then whatever is unknown is sent again with the same ``client_msg_id``, through any edge: the
server knows the message by it. Times are seconds of one monotonic clock, handed in.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from lilith_client.errors import (
    ClientError,
    CommandError,
    DisconnectedError,
    OutcomeUnknownError,
)

ANSWER_S: Final = 30.0
"""Longer than the server's own publish budget (20 s): no answer by then means that the answer was lost."""
RETRY_S: Final = 0.5
RETRY_S_MAX: Final = 5.0
_MAY_BE_STORED: Final = frozenset({"unavailable", "internal"})


@dataclass(slots=True)
class Outgoing:
    """One message that is not settled yet. ``frame`` is the whole command; it never changes."""

    ref: str
    thread_id: str
    client_msg_id: str
    frame: dict[str, Any]
    since: float
    deadline: float
    attempts: int = 0
    due_at: float = 0.0
    answer_by: float | None = None
    refusal: CommandError | None = None
    unanswered: bool = False

    def lose_answer(self) -> None:
        """Note that the attempt in flight, if there is one, will not be answered: it may be stored or not."""
        self.unanswered = self.unanswered or self.answer_by is not None
        self.answer_by = None

    def give_up(self) -> ClientError:
        """Return what to tell the caller at the deadline: unknown, refused or never sent."""
        self.lose_answer()
        if self.unanswered:
            return OutcomeUnknownError(self.client_msg_id, waited_s=self.deadline - self.since)
        if self.refusal is not None:
            return self.refusal
        return DisconnectedError("the message was not sent: no connection before its deadline")


class Settled(NamedTuple):
    """A command has its outcome: the fields of the ``ack``, or the error."""

    ref: str
    outcome: dict[str, Any] | ClientError


class Lanes:
    """Every unsettled message. The first of a lane is in flight alone; the others wait behind it."""

    def __init__(self) -> None:
        self._lanes: dict[str, deque[Outgoing]] = {}
        self._by_ref: dict[str, Outgoing] = {}

    def __len__(self) -> int:
        return len(self._by_ref)

    def __contains__(self, ref: object) -> bool:
        return ref in self._by_ref

    def add(self, outgoing: Outgoing) -> None:
        """Put a message at the end of its thread's lane."""
        self._by_ref[outgoing.ref] = outgoing
        self._lanes.setdefault(outgoing.thread_id, deque()).append(outgoing)

    def due(self, now: float) -> list[dict[str, Any]]:
        """Return the frames to write now; they count as in flight from here on."""
        frames = []
        for lane in self._lanes.values():
            head = lane[0]
            if head.answer_by is not None and head.answer_by <= now:
                head.lose_answer()
            if head.answer_by is None and head.due_at <= now < head.deadline:
                # Before it is written, not after: a write that fails may have reached the server.
                head.answer_by = now + ANSWER_S
                head.attempts += 1
                frames.append(head.frame)
        return frames

    def expired(self, now: float) -> list[Settled]:
        """Take out every message whose deadline has passed, with what is known about it."""
        late = [item for item in self._by_ref.values() if item.deadline <= now]
        for item in late:
            self._remove(item)
        return [Settled(item.ref, item.give_up()) for item in late]

    def wait_s(self, now: float) -> float | None:
        """Return how long until ``due`` has something new, None when there is no message."""
        heads = (lane[0] for lane in self._lanes.values())
        times = [head.due_at if head.answer_by is None else head.answer_by for head in heads]
        return max(0.0, min(times) - now) if times else None

    def acknowledge(self, ref: str, ack: dict[str, Any]) -> Settled:
        """Settle a message as sent."""
        self._remove(self._by_ref[ref])
        return Settled(ref, ack)

    def refuse(self, ref: str, error: CommandError, now: float) -> Settled | None:
        """Settle a message as failed; or return None when the refusal may pass and it is tried again."""
        item = self._by_ref[ref]
        if not error.retryable:
            self._remove(item)
            return Settled(ref, error)
        item.answer_by = None
        item.refusal = error
        item.unanswered = item.unanswered or error.code in _MAY_BE_STORED
        backoff_s = min(RETRY_S_MAX, RETRY_S * 2 ** min(item.attempts - 1, 8))
        item.due_at = now + max(error.retry_after_s or 0.0, backoff_s)
        return None

    def disconnected(self) -> None:
        """Note that every message in flight is unknown now: it is sent again on the next connection."""
        for lane in self._lanes.values():
            lane[0].lose_answer()

    def clear(self) -> list[Settled]:
        """Take out everything, with what is known about it: the client stops for ever."""
        items = list(self._by_ref.values())
        self._by_ref.clear()
        self._lanes.clear()
        return [Settled(item.ref, item.give_up()) for item in items]

    def _remove(self, item: Outgoing) -> None:
        del self._by_ref[item.ref]
        lane = self._lanes[item.thread_id]
        lane.remove(item)
        if not lane:
            del self._lanes[item.thread_id]
