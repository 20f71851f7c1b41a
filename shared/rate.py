"""The rate limit: counted commands per user, over all nodes and both doors, almost always without a round trip.

The units of a user's window are one counter in the stream ``RATE`` (in the memory of NATS). A process leases blocks of
``min(10, limit / 10)`` units from it and spends them locally; the next block is fetched before the last unit is gone.
More than the limit is never granted, because a block is granted by what the counter says after it; up to a block less
one may lie unused on each further node. An increment whose outcome is unknown is spent.

The border between two windows is smoothed: what the window before used counts by the share of it that a window ending
now still covers. Without that, twice the limit would pass around every border.
"""

import asyncio
import logging
import math
from collections import deque
from typing import Final

import msgspec

from shared.bus import Bus, BusError, PubAck
from shared.identity import UserId
from shared.metrics import SendingMetrics
from shared.settings import Settings
from shared.subjects import RATE_STREAM, rate_subject

GRANTED: Final = 0
BLOCK_MAX: Final = 10
FETCH_AHEAD_AT: Final = 2
"""With this many units left the next block is asked for, so that a busy user never waits for it."""

WAITERS_MAX: Final = 1_000
"""Commands of one user that may wait for a block; further ones are refused as if the limit were reached."""

_TIMEOUT_S: Final = 2.0
_INCREMENT: Final = "Nats-Incr"
_log = logging.getLogger(__name__)


class _Lease:
    """What one user has left here in one window."""

    __slots__ = (
        "blocked_until_ms",
        "fetching",
        "previous",
        "units",
        "unleased",
        "waiters",
        "window",
    )

    def __init__(self, window: int) -> None:
        self.window = window
        self.units = 0
        self.unleased = 0
        self.previous: int | None = None
        self.blocked_until_ms = 0
        self.fetching = False
        self.waiters: deque[tuple[asyncio.Future[int], int]] = deque()


class Rate:
    """The rate limit of this process. ``take`` first; what it cannot answer, ``acquire`` does, in the order asked."""

    def __init__(self, bus: Bus, settings: Settings, *, metrics: SendingMetrics) -> None:
        self._bus = bus
        self._limit = settings.messaging_throttle_limit
        self._window_ms = settings.messaging_throttle_ttl
        self._block = max(1, min(BLOCK_MAX, self._limit // 10))
        self._metrics = metrics
        self._leases: dict[UserId, _Lease] = {}
        self._newest_window = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, user_id: UserId, now_ms: int) -> int | None:
        """Take one unit without waiting.

        Returns:
            ``GRANTED``; or the milliseconds after which to try again; or None: ask ``acquire``, there is no unit here.
        """
        if not self._limit:
            return GRANTED
        lease = self._lease(user_id, now_ms)
        if lease.units:  # Never while others wait: a fetched block serves them first.
            lease.units -= 1
            if lease.units <= FETCH_AHEAD_AT < self._block:
                self._fetch(user_id, lease, now_ms)
            return GRANTED
        if now_ms < lease.blocked_until_ms:
            return lease.blocked_until_ms - now_ms
        return None

    async def acquire(self, user_id: UserId, now_ms: int) -> int:
        """Take one unit, asking NATS for a block if there is none here. Commands of one user are answered in order.

        Returns:
            ``GRANTED``, or the milliseconds after which to try again.

        Raises:
            BusError: NATS did not answer: nothing is granted.
        """
        answer = self.take(user_id, now_ms)
        if answer is not None:
            return answer
        lease = self._lease(user_id, now_ms)
        if len(lease.waiters) >= WAITERS_MAX:
            return self._until_next_window(lease, now_ms)
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        lease.waiters.append((waiter, now_ms))
        self._fetch(user_id, lease, now_ms)
        return await waiter

    def left(self, user_id: UserId, now_ms: int) -> int:
        """Return how many units the user has left, as last seen here: other nodes may have taken some since."""
        lease = self._lease(user_id, now_ms)
        return lease.units + lease.unleased

    def release(self, user_id: UserId) -> None:
        """Give back what is leased for a user, when their last session leaves this node. At most once, unconfirmed."""
        lease = self._leases.get(user_id)
        if lease is not None and not lease.waiters and not lease.fetching:
            del self._leases[user_id]
            self._give_back(user_id, lease.window, lease.units)

    def _lease(self, user_id: UserId, now_ms: int) -> _Lease:
        window = now_ms // self._window_ms
        if window > self._newest_window:
            self._newest_window = window
            self._leases = {
                user: lease
                for user, lease in self._leases.items()
                if lease.waiters or lease.fetching
            }
        lease = self._leases.get(user_id)
        if lease is None or (lease.window < window and not lease.waiters and not lease.fetching):
            lease = self._leases[user_id] = _Lease(window)
        return lease

    def _fetch(self, user_id: UserId, lease: _Lease, now_ms: int) -> None:
        if not lease.fetching:
            lease.fetching = True
            task = asyncio.create_task(self._fetch_until_served(user_id, lease, now_ms))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _fetch_until_served(self, user_id: UserId, lease: _Lease, now_ms: int) -> None:
        """Fetch one block, and further ones while somebody waits and the limit allows."""
        try:
            while True:
                await self._fetch_block(user_id, lease, now_ms)
                self._serve(lease)
                if not lease.waiters:
                    return
        except BusError as error:
            self._metrics.rate_leases.of("failed").value += 1
            while lease.waiters:
                _fail(lease.waiters.popleft()[0], error)
        finally:
            lease.fetching = False
            while lease.waiters:  # A bug of ours ended this; nobody waits for it for ever.
                lease.waiters.popleft()[0].cancel()

    async def _fetch_block(self, user_id: UserId, lease: _Lease, now_ms: int) -> None:
        lease.blocked_until_ms = 0
        if lease.previous is None:
            lease.previous = await self._used_in(user_id, lease.window - 1)
        ack = await self._bus.store(
            rate_subject(user_id, lease.window),
            b"",
            headers={_INCREMENT: f"+{self._block}"},
            timeout_s=_TIMEOUT_S,
        )
        # Only a stream that is no counter answers without a total; then nothing can be granted.
        used = self._limit if ack.value is None else ack.value - self._block
        elapsed = now_ms / self._window_ms - lease.window
        allowed = self._limit - math.ceil(lease.previous * (1 - min(1.0, elapsed)))
        granted = max(0, min(self._block, allowed - used))
        lease.units += granted
        lease.unleased = max(0, allowed - used - granted)
        if granted < self._block:
            self._give_back(user_id, lease.window, self._block - granted)
        if not granted:
            lease.blocked_until_ms = self._allowed_again_ms(lease, used)
        self._metrics.rate_leases.of("granted" if granted else "refused").value += 1

    def _serve(self, lease: _Lease) -> None:
        """Hand the units to those who wait, first come first served; refuse the rest when there are no more."""
        while lease.waiters and (lease.units or lease.blocked_until_ms):
            waiter, now_ms = lease.waiters.popleft()
            if waiter.done():
                continue  # Its command was cancelled; the unit is the next one's.
            if lease.units:
                lease.units -= 1
                waiter.set_result(GRANTED)
            else:
                waiter.set_result(max(1, lease.blocked_until_ms - now_ms))

    async def _used_in(self, user_id: UserId, window: int) -> int:
        stored = await self._bus.get_last(RATE_STREAM, rate_subject(user_id, window))
        if stored is None:
            return 0
        total = int(msgspec.json.decode(stored.payload)["val"])
        return max(0, min(total, self._limit))

    def _allowed_again_ms(self, lease: _Lease, used: int) -> int:
        """Return the Unix time at which one more unit will be free, if nobody else takes it."""
        start_ms = lease.window * self._window_ms
        end_ms = start_ms + self._window_ms
        previous = lease.previous or 0
        free = self._limit - 1 - used
        if free < 0:
            # Full. In the next window this one counts by its share, which falls below the limit after one unit's time.
            return end_ms + math.ceil(self._window_ms / self._limit)
        if not previous:
            return end_ms  # Others hold what is left; they may give it back sooner.
        return min(end_ms, start_ms + math.ceil(self._window_ms * max(0.0, 1 - free / previous)))

    def _until_next_window(self, lease: _Lease, now_ms: int) -> int:
        return max(1, (lease.window + 1) * self._window_ms - now_ms)

    def _give_back(self, user_id: UserId, window: int, units: int) -> None:
        if units > 0:
            self._bus.publish_stored(
                rate_subject(user_id, window),
                b"",
                _note_failure,
                message_id=None,
                headers={_INCREMENT: f"-{units}"},
                timeout_s=_TIMEOUT_S,
            )


def _note_failure(outcome: PubAck | BusError) -> None:
    if isinstance(outcome, BusError):
        _log.info("units were not given back, they stay spent: %s", outcome)


def _fail(waiter: "asyncio.Future[int]", error: BusError) -> None:
    if not waiter.done():
        waiter.set_exception(error)
