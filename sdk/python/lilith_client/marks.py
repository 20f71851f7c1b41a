"""Read markers that were moved a moment ago. Pure.

A server that crashes may forget the last of them, so the client states them again on its next connection. That costs
little and does no harm: a marker never goes back.
"""

from typing import Any, Final

MARK_READ: Final = "message.mark_read"
MARKS_MAX: Final = 64
RESTATED_S: Final = 30.0
"""Longer ago, the server has written it."""


class Marks:
    """The last mark of each thread."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[float, dict[str, Any]]] = {}

    def note(self, frame: dict[str, Any], now: float) -> None:
        """Remember a ``message.mark_read`` that was queued at ``now`` (seconds), instead of an older one."""
        self._made.pop(frame["thread_id"], None)
        if len(self._made) >= MARKS_MAX:
            del self._made[next(iter(self._made))]
        self._made[frame["thread_id"]] = (now, frame)

    def recent(self, now: float) -> list[dict[str, Any]]:
        """Return what was queued within the last 30 seconds, oldest first."""
        return [frame for at, frame in self._made.values() if now - at <= RESTATED_S]
