"""When to come back and how fast to talk: close codes, jittered back-off, edge rotation, pace. Pure.

Source: the protocol page, sections "Close codes" and "Defaults".
"""

import random
from collections import deque
from collections.abc import Sequence
from typing import Final

BACKOFF_BASE_S: Final = 0.5
BACKOFF_CAP_S: Final = 30.0
TOKEN_EXPIRED: Final = 4401
HANDSHAKE_STATUSES_TO_RETRY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


def may_reconnect(close_code: int) -> bool:
    """Return whether a client comes back after this close code: all but 4500 to 4999."""
    return not 4500 <= close_code <= 4999


def may_retry_handshake(status: int) -> bool:
    """Return whether a handshake refused with this HTTP status may succeed later, all else equal."""
    return status in HANDSHAKE_STATUSES_TO_RETRY


class Backoff:
    """Waiting times with full jitter: a uniform draw below a ceiling that doubles from 0.5 s to 30 s."""

    def __init__(self, entropy: random.Random) -> None:
        self._entropy = entropy
        self._failures = 0

    def next_s(self) -> float:
        """Return how long to wait before the next attempt; each call counts as one more failure."""
        ceiling = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2 ** min(self._failures, 16))
        self._failures += 1
        return self._entropy.uniform(0, ceiling)

    def reset(self) -> None:
        """Begin at the shortest wait again, after a connection that held."""
        self._failures = 0


class Rotation:
    """The given addresses in turn, the first one first: any edge serves any client."""

    def __init__(self, addresses: Sequence[str]) -> None:
        if not addresses:
            raise ValueError("give at least one WebSocket address")
        self._addresses = list(addresses)
        self._index = 0

    @property
    def current(self) -> str:
        """The address to connect to now."""
        return self._addresses[self._index]

    def advance(self) -> None:
        """Turn to the next address, because the current one failed or closed."""
        self._index = (self._index + 1) % len(self._addresses)


class Pace:
    """At most ``count`` commands in any ``window_s`` seconds: below the server's limit, never refused."""

    def __init__(self, count: int, window_s: float) -> None:
        self._count = count
        self._window_s = window_s
        self._taken: deque[float] = deque()

    def take(self, now: float) -> bool:
        """Count one command at ``now`` and return True, or return False when it must wait."""
        if self.wait_s(now) > 0:
            return False
        self._taken.append(now)
        return True

    def wait_s(self, now: float) -> float:
        """Return how long until one more command is allowed, 0 when it is now."""
        while self._taken and self._taken[0] + self._window_s <= now:
            self._taken.popleft()
        if len(self._taken) < self._count:
            return 0.0
        return self._taken[0] + self._window_s - now
