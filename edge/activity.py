"""Coalescing of ``thread.activity``: at most one a second per thread, the latest wins, at most a second late. Pure.

A thread with 50 messages a second would otherwise cost every open session 50 frames that the next one overrules.
"""

import heapq
from typing import Final, NamedTuple

INTERVAL_S: Final = 1.0


class Activity(NamedTuple):
    """A frame of one user's feed that says how a thread stands."""

    user_id: str
    thread_id: str
    frame: bytes


class ActivityCoalescer:
    """Decides, for all users of this node, which activity goes out now and which waits for its second."""

    def __init__(self) -> None:
        # Key to the frame that waits, None when nothing came since the last one went out.
        self._waiting: dict[tuple[str, str], bytes | None] = {}
        self._due: list[tuple[float, tuple[str, str]]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def next_at(self) -> float | None:
        """When ``release`` should be called next; None while nothing is remembered."""
        return self._due[0][0] if self._due else None

    def offer(self, activity: Activity, now: float) -> bool:
        """Return whether the activity goes out at ``now``; otherwise it waits and replaces one that waited."""
        key = (activity.user_id, activity.thread_id)
        if key in self._waiting:
            self._waiting[key] = activity.frame
            return False
        self._remember(key, now)
        return True

    def release(self, now: float) -> list[Activity]:
        """Return what has waited its second, and forget threads that have been quiet for one."""
        released = []
        while self._due and self._due[0][0] <= now:
            _, key = heapq.heappop(self._due)
            frame = self._waiting.pop(key)
            if frame is not None:
                self._remember(key, now)
                released.append(Activity(*key, frame))
        return released

    def _remember(self, key: tuple[str, str], now: float) -> None:
        self._waiting[key] = None
        heapq.heappush(self._due, (now + INTERVAL_S, key))
