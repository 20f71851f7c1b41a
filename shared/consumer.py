"""The one batch loop: from a durable consumer of a stream into PostgreSQL, each event's effect exactly once.

Persister and analytics are this loop; each supplies ``handle``, which writes the rows of a batch. One transaction
holds those rows and the position behind them (table ``stream_cursors``); the acknowledgement comes after the commit.

* **Killed between commit and acknowledgement**: the batch comes again and the cursor drops it.
* **Two owners**: an advisory lock lets one process work per stream and consumer while the others stand by. It is a
  convenience: the fence is the cursor's row lock, and what is at or below the cursor is dropped under it.
* **Poison** (a value that PostgreSQL or the decoder refuses for ever) is bisected out of its batch into
  ``dead_letters`` in the same transaction; the rest of the batch is stored, in order.
* **PostgreSQL or NATS away**: the batch in hand is tried again with growing pauses, not ready meanwhile.
* Never NAK, never TERM: under AckAll either would break the order.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, LiteralString, Protocol

import asyncpg
import msgspec
from typing_extensions import override

from shared.bus import Bus, BusError, ConsumerMissingError, Delivery, Puller
from shared.database import DATA_ERRORS, TRANSIENT_ERRORS, Backoff, hold_lock
from shared.errors import InvalidIdError, LilithError
from shared.metrics import ConsumerMetrics
from shared.waiting import is_set_within

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = PoolConnectionProxy[asyncpg.Record]

POISON: Final[tuple[type[Exception], ...]] = (
    *DATA_ERRORS,
    msgspec.DecodeError,
    InvalidIdError,
    ValueError,
    RecursionError,
)
"""What an event raises that will never be stored. Any other exception of ``handle`` is our bug and ends the process."""

BATCH_MAX: Final = 500
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
LINGER_S: Final = 0.02
"""After a first event, wait this long for more: a commit costs the same for one row as for a hundred."""

REWIND: Final = 10_000
"""More than a server that does not flush has unwritten; folded again in a second."""

_POLL_S: Final = 0.5
_STAND_BY_S: Final = 1.0
_CHECK_S: Final = 10.0
_ERROR_CHARS_MAX: Final = 2_000
_MAY_PASS: Final[tuple[type[Exception], ...]] = (BusError, *TRANSIENT_ERRORS)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConsumerQueries:
    """The SQL of the loop; each service has its own copy of the text beside the tables that it writes."""

    # $1 text lock name -> bool
    try_lock: LiteralString
    # $1 text stream, $2 text consumer: make the row if there is none
    ensure_cursor: LiteralString
    # $1 text stream, $2 text consumer -> bigint, FOR UPDATE: the fence
    lock_cursor: LiteralString
    # $1 text stream, $2 text consumer, $3 bigint last seq
    advance_cursor: LiteralString
    # $1 text stream, $2 text consumer, $3 bigint seq, $4 text subject, $5 bytea payload, $6 text error
    bury: LiteralString


class Handle(Protocol):
    """Writes the effects of ``deliveries``, in order, on ``connection``, whose transaction is open.

    ``careful`` is true when an attempt at these events failed on their data: it may be a duplicate, so take the way
    that tolerates one; what is raised then counts as poison.
    """

    async def __call__(
        self, connection: "Connection", deliveries: Sequence[Delivery], *, careful: bool
    ) -> None:
        """Write and return, or raise one of ``POISON``, or what ends the transaction for now."""


class StreamBehindCursorError(LilithError):
    """The stream's last seq is below what was stored from it: it is not the stream that it was."""

    def __init__(self, stream: str, *, last_seq: int, cursor: int) -> None:
        super().__init__(
            f"stream {stream} ends at {last_seq}, but events up to {cursor} of it are in PostgreSQL: it was restored "
            f"from an old copy, or a power cut took its end. Bring the newer store back; if it is lost for good, "
            f"delete the stream and accept that with `lilith provision --new-generation {stream}`"
        )


class _GapError(LilithError):
    """The batch does not begin right behind the cursor."""

    def __init__(self, cursor: int) -> None:
        super().__init__(f"nothing came right behind {cursor}; asking the stream once more")
        self.cursor = cursor


class _OwnershipLostError(LilithError):
    """The connection that holds the lock is gone; another process may own the consumer by now."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which events, and how many at once."""

    stream: str
    durable: str
    batch_max: int = BATCH_MAX
    bytes_max: int = BATCH_BYTES_MAX
    linger_s: float = LINGER_S
    keeps_last: bool = False
    """Whether the stream keeps only the last value of each subject, unflushed. Positions are missing by design then,
    and a crashed server may have forgotten its end and give those positions out again: after every connection the loop
    goes back by ``REWIND``. ``handle`` folds a value twice without harm."""


class Consumer:
    """The batch loop over one durable consumer."""

    def __init__(
        self,
        bus: Bus,
        pool: "asyncpg.Pool[asyncpg.Record]",
        source: Source,
        queries: ConsumerQueries,
        handle: Handle,
        *,
        metrics: ConsumerMetrics,
        on_committed: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the loop of one stream.

        Args:
            bus: Where the stream is.
            pool: Two connections of it are used while the loop owns the consumer.
            source: The durable consumer.
            queries: SQL of ``stream_cursors`` and ``dead_letters``.
            handle: Writes a batch.
            metrics: Told about every batch.
            on_committed: Called after every commit, before the acknowledgement.
        """
        self._bus = bus
        self._pool = pool
        self._source = source
        self._queries = queries
        self._handle = handle
        self._metrics = metrics
        self._on_committed = on_committed
        self._key = (source.stream, source.durable)
        self._cursor = 0
        self._gap_behind = -1
        self._in_hand_since_ns = 0
        self._pending = 0
        self._busy = False
        self.is_owner = False
        self.ready = False
        metrics.lag_seconds.labels(source.stream).set_function(self.lag_s)
        metrics.pending.labels(source.stream).set_function(lambda: self._pending)
        """Whether the last attempt succeeded: at storing as the owner, or at standing by for it."""

    def lag_s(self) -> float:
        """Return the age of the oldest event in hand; 0.0 when everything that arrived is stored."""
        since_ns = self._in_hand_since_ns
        return max(0.0, (time.time_ns() - since_ns) / 1e9) if since_ns else 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until ``stop`` is set, then finish the batch in hand and return.

        Raises:
            StreamBehindCursorError: The stream lost what is stored; a person has to decide.
            ConsumerMissingError: Provisioning has not run, or the consumer was deleted.
        """
        backoff = Backoff()
        while not stop.is_set():
            try:
                async with hold_lock(self._pool, self._queries.try_lock, str(self)) as lost:
                    self.is_owner = lost is not None
                    if lost is None:
                        self._in_hand_since_ns = 0
                        self.ready = True
                        await is_set_within(stop, _STAND_BY_S)
                    else:
                        await self._consume(stop, lost, backoff)
            except (StreamBehindCursorError, ConsumerMissingError):
                raise
            except _GapError as gap:
                _log.warning("%s: %s", self, gap)
                self._gap_behind = gap.cursor
            except _OwnershipLostError as error:
                _log.warning("%s: %s", self, error)
            except _MAY_PASS as error:
                self.ready = False
                self._metrics.failures.labels(self._source.stream).inc()
                _log.warning("%s: not stored, trying again: %r", self, error)
                await is_set_within(stop, backoff.next_s())
            finally:
                self.is_owner = False

    @override
    def __str__(self) -> str:
        return f"consumer:{self._source.stream}:{self._source.durable}"

    # ------------------------------------------------------------------ the loop

    async def _consume(self, stop: asyncio.Event, lost: asyncio.Event, backoff: Backoff) -> None:
        source = self._source
        puller = self._bus.puller(
            source.stream, source.durable, batch_max=source.batch_max, bytes_max=source.bytes_max
        )
        # A stream that may go back is looked at when it may have: never by the clock, after every reconnect.
        check = _Due(math.inf if source.keeps_last else _CHECK_S)
        self._bus.on_reconnect.append(check.make_due)
        try:
            await self._find_position(puller)
            while not stop.is_set():
                if lost.is_set():
                    raise _OwnershipLostError("the connection that holds the lock is gone")
                if check.is_due():
                    await (
                        self._find_position(puller) if source.keeps_last else self._check_stream()
                    )
                batch = await self._next_batch(puller)
                if batch:
                    await self._store(batch)
                    self._on_committed()
                    await self._acknowledge(puller, batch[-1])
                self._in_hand_since_ns = 0
                self.ready = True
                backoff.reset()
        finally:
            self._bus.on_reconnect.remove(check.make_due)
            puller.close()

    async def _find_position(self, puller: Puller) -> None:
        """Bring the consumer to the cursor, which alone knows what is stored."""
        if self._source.keeps_last:
            self._cursor = 0
        first_seq, last_seq = await self._check_stream()
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(self._queries.ensure_cursor, *self._key)
            cursor: int = await connection.fetchval(self._queries.lock_cursor, *self._key)
            if cursor < first_seq - 1:
                if cursor > 0:
                    _log.error("%s: stored to %d, the stream begins at %d", self, cursor, first_seq)
                # Nothing of the stream is older: a reader who asks whether all of it is stored gets the truth.
                cursor = first_seq - 1
                await self._advance(connection, cursor)
            elif self._source.keeps_last:
                cursor = max(first_seq - 1, min(cursor, last_seq) - REWIND, 0)
                await self._advance(connection, cursor)
        self._cursor = cursor
        await self._check_stream()
        floor = (await puller.info()).ack_floor_seq
        if floor > cursor or self._gap_behind == cursor:
            # Acknowledged and not stored: the database was restored, or somebody acknowledged by hand. A floor below
            # the cursor needs nothing: what comes again is dropped.
            _log.warning("%s: acknowledged to %d, stored to %d: going back", self, floor, cursor)
            await puller.reset_to(cursor + 1)

    async def _check_stream(self) -> tuple[int, int]:
        """Return the stream's first and last seq, unless it ends before the cursor.

        Its next events would pass for known.
        """
        answer = await self._bus.api(f"STREAM.INFO.{self._source.stream}")
        last_seq = int(answer["state"]["last_seq"])
        if last_seq < self._cursor:
            raise StreamBehindCursorError(
                self._source.stream, last_seq=last_seq, cursor=self._cursor
            )
        return int(answer["state"]["first_seq"]), last_seq

    async def _next_batch(self, puller: Puller) -> list[Delivery]:
        source, loop = self._source, asyncio.get_running_loop()
        batch = await puller.next_batch(wait_s=_POLL_S)
        if batch:
            self._in_hand_since_ns = batch[0].time_ns
            # A lone event is stored at once. When they come in numbers, a commit for each would cost far more than
            # the wait for company.
            until = loop.time() + (source.linger_s if self._busy else 0.0)
            while len(batch) < source.batch_max and (remaining_s := until - loop.time()) > 0:
                batch += await puller.next_batch(wait_s=remaining_s)
        self._busy = len(batch) > 1
        self._pending = batch[-1].pending if batch else 0
        return batch

    async def _store(self, batch: Sequence[Delivery]) -> None:
        """Commit the batch and the position behind it."""
        started_s = time.perf_counter()
        async with self._pool.acquire() as connection:
            try:
                async with connection.transaction():
                    fresh = await self._behind_cursor(connection, batch)
                    if fresh:
                        await self._handle(connection, fresh, careful=False)
                        await self._advance(connection, fresh[-1].seq)
            except POISON as error:
                _log.warning("%s: a batch of %d is refused: %r", self, len(batch), error)
                async with connection.transaction():
                    fresh = await self._behind_cursor(connection, batch)
                    if fresh:
                        await self._bisect(connection, fresh)
                        await self._advance(connection, fresh[-1].seq)
        self._cursor = batch[-1].seq
        self._count(len(batch), len(fresh), time.perf_counter() - started_s)

    def _count(self, delivered: int, stored: int, seconds: float) -> None:
        stream = self._source.stream
        self._metrics.messages.labels(stream).inc(stored)
        self._metrics.skipped.labels(stream).inc(delivered - stored)
        self._metrics.batch_size.labels(stream).observe(stored)
        self._metrics.batch_seconds.labels(stream).observe(seconds)

    async def _behind_cursor(
        self, connection: "Connection", batch: Sequence[Delivery]
    ) -> Sequence[Delivery]:
        """Lock the cursor for this transaction and return what is not stored yet."""
        cursor: int = await connection.fetchval(self._queries.lock_cursor, *self._key)
        fresh = [delivery for delivery in batch if delivery.seq > cursor]
        has_gap = bool(fresh) and fresh[0].seq != cursor + 1 and not self._source.keeps_last
        if has_gap and self._gap_behind != cursor:
            # What lies between has expired, or another process took it without storing it. Asking the server for
            # cursor + 1 tells which: if the same comes again, there is nothing in between.
            raise _GapError(cursor)
        return fresh

    async def _bisect(self, connection: "Connection", part: Sequence[Delivery]) -> None:
        """Store what can be stored, in order, and bury the rest."""
        try:
            async with connection.transaction():
                await self._handle(connection, part, careful=True)
        except POISON as error:
            if len(part) > 1:
                middle = len(part) // 2
                await self._bisect(connection, part[:middle])
                await self._bisect(connection, part[middle:])
                return
            (poison,) = part
            text = f"{type(error).__name__}: {error}".replace("\0", "")[:_ERROR_CHARS_MAX]
            await connection.execute(
                self._queries.bury, *self._key, poison.seq, poison.subject, poison.payload, text
            )
            self._metrics.dead_letters.labels(self._source.stream).inc()
            _log.error("%s: event %d is a dead letter: %s", self, poison.seq, text)

    async def _advance(self, connection: "Connection", seq: int) -> None:
        await connection.execute(self._queries.advance_cursor, *self._key, seq)

    async def _acknowledge(self, puller: Puller, last: Delivery) -> None:
        try:
            await puller.ack(last)
        except ConsumerMissingError:
            raise
        except BusError as error:
            # Nothing depends on it: the next acknowledgement covers this one, and the cursor what comes again.
            _log.warning("%s: not acknowledged to %d: %s", self, last.seq, error)


class _Due:
    """True once per period, and after every ``make_due``."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._at = time.monotonic() + period_s

    def make_due(self) -> None:
        self._at = 0.0

    def is_due(self) -> bool:
        now = time.monotonic()
        if now < self._at:
            return False
        self._at = now + self._period_s
        return True
