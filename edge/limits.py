"""Limits of one session that need no other node: commands per second, and how many errors it may make. Pure: no I/O."""

from collections import deque
from typing import Final

COMMANDS_PER_S: Final = 30.0
SUBSCRIPTIONS_MAX: Final = 128
UNANSWERED_MAX: Final = 64
"""Commands taken and not answered; beyond it the socket is not read until half of them are."""

BAD_FRAMES_MAX: Final = 3
LIMIT_ERRORS_MAX: Final = 10
ERRORS_WINDOW_S: Final = 60.0


class CommandRate:
    """A bucket of 30 commands that refills with 30 a second: everything but the counted commands takes from it."""

    __slots__ = ("_at", "_left")

    def __init__(self, now: float) -> None:
        self._left = COMMANDS_PER_S
        self._at = now

    def take(self, now: float) -> int | None:
        """Take one command at ``now`` (seconds); None when granted, else the milliseconds until there is one."""
        self._left = min(COMMANDS_PER_S, self._left + (now - self._at) * COMMANDS_PER_S)
        self._at = now
        if self._left >= 1.0:
            self._left -= 1.0
            return None
        return max(1, round((1.0 - self._left) / COMMANDS_PER_S * 1000))


class ErrorCount:
    """How many errors of one sort happened within the last 60 seconds; the one that fills it ends the session."""

    __slots__ = ("_most", "_times")

    def __init__(self, most: int) -> None:
        self._most = most
        self._times: deque[float] | None = None

    def is_full(self, now: float) -> bool:
        """Note an error at ``now`` (seconds) and return whether it is one too many."""
        if self._times is None:
            # Most sessions never make one.
            self._times = deque(maxlen=self._most)
        self._times.append(now)
        return len(self._times) == self._most and now - self._times[0] < ERRORS_WINDOW_S
