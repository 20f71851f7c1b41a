"""Rate limits of the REST interface.

Writes take units of the same counter as the WebSocket's commands (``shared.rate``): one limit per user over all nodes
and both doors. Everything else is 30 a second per user, counted in this process alone.
"""

import math
import time
from typing import Final

from starlette.requests import Request

from api.dependencies import Caller, Parts, add_header, parts_of
from api.problems import rate_limited
from shared.identity import UserId, now_ms
from shared.rate import GRANTED

READS_PER_S: Final = 30.0
READS_AT_ONCE: Final = 60.0
"""A page that opens asks for many things at once; it may, as long as the average holds."""

POLICY: Final = "default"
"""Name of the one policy in the ``RateLimit`` headers."""

REMEMBERED_MAX: Final = 20_000


class ReadLimit:
    """A bucket per user that refills with 30 a second. Forgets the least recently seen user first."""

    def __init__(self) -> None:
        self._buckets: dict[UserId, tuple[float, float]] = {}

    def take(self, user_id: UserId, now: float) -> int | None:
        """Take one request at ``now`` (monotonic seconds); None when granted, else the milliseconds to wait."""
        left, at = self._buckets.pop(user_id, (READS_AT_ONCE, now))
        left = min(READS_AT_ONCE, left + (now - at) * READS_PER_S)
        granted = left >= 1.0
        self._buckets[user_id] = (left - 1.0 if granted else left, now)
        if len(self._buckets) > REMEMBERED_MAX:
            del self._buckets[next(iter(self._buckets))]
        return None if granted else max(1, round((1.0 - left) / READS_PER_S * 1000))


async def limited(request: Request, identity: Caller) -> None:
    """Count a request that is no counted write. Without a rate limit (0) there is none here either.

    Raises:
        ProblemError: ``rate_limited``.
    """
    parts = parts_of(request)
    if request.method not in ("GET", "HEAD") or not parts.settings.messaging_throttle_limit:
        return
    retry_after_ms = parts.reads.take(identity.user_id, time.monotonic())
    if retry_after_ms is not None:
        raise rate_limited(retry_after_ms)


async def counted(request: Request, identity: Caller) -> None:
    """Take one unit for a write.

    Raises:
        ProblemError: ``rate_limited``.
    """
    await take_unit(parts_of(request), identity.user_id, request)


async def take_unit(parts: Parts, user_id: UserId, request: Request | None) -> None:
    """Take one unit of a user's rate limit, and tell in the answer to ``request`` what the limit is.

    Raises:
        ProblemError: ``rate_limited``.
        BusError: The counter cannot be reached: nothing is granted.
    """
    limit = parts.settings.messaging_throttle_limit
    window_ms = parts.settings.messaging_throttle_ttl
    if not limit:
        return
    if request is not None:
        policy = f'"{POLICY}";q={limit};w={math.ceil(window_ms / 1000)}'
        add_header(request, "RateLimit-Policy", policy)
    now = now_ms()
    retry_after_ms = await parts.rate.acquire(user_id, now)
    is_granted = retry_after_ms == GRANTED
    if request is not None:
        left = parts.rate.left(user_id, now) if is_granted else 0
        wait_ms = window_ms - now % window_ms if is_granted else retry_after_ms
        add_header(request, "RateLimit", f'"{POLICY}";r={left};t={math.ceil(wait_ms / 1000)}')
    if not is_granted:
        raise rate_limited(retry_after_ms)
