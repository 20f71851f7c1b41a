"""The transactional outbox: what a transaction wants published stands in a row of the same transaction.

A service writes its rows with its own SQL, beside its other changes; this module brings them out, at least once and
in order, and deletes them after that. The service says how a row is published::

    outbox = Outbox(pool, queries.OUTBOX, publish, name="api", metrics=metrics.outbox)
    ...
    async with pool.acquire() as connection, connection.transaction():
        ...                                                        # the change, and INSERT INTO api_outbox
    await outbox.relay_now(ids)                                    # answered only when others can see it
    outbox.poke()                                                  # or: soon, by the runner in the background

Order: rows with the same ``subject`` (a thread id, a user id) are published by ascending id, whoever publishes them,
so write all rows of one thread under one subject and while holding a lock on the thread. A row may be published
twice, by a crash between publishing and deleting or by ``relay_now`` beside the runner: ``publish`` must be harmless
then (message ids, compare-and-set by revision).

Row by row, ``publish`` decides what can never succeed, says so in the log and returns; what it raises from
``TRANSIENT_ERRORS`` or ``BusError`` is tried again for ever, and holds up what stands behind it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, LiteralString, NamedTuple

from shared.bus import Bus, BusError, OutgoingMessage, PublishRefusedError, PublishTimeoutError
from shared.bus.errors import MESSAGE_TOO_LARGE
from shared.database import TRANSIENT_ERRORS, Backoff, hold_lock
from shared.errors import LilithError
from shared.metrics import OutboxMetrics
from shared.waiting import is_set_within

if TYPE_CHECKING:
    import asyncpg

BATCH_MAX: Final = 5_000
"""Rows of one round. After an outage few large rounds are cheaper: many rows of a thread become one feed frame."""

EVENTS_BATCH_MAX: Final = 500
POLL_S: Final = 0.5
RELAY_NOW_S: Final = 1.0
EVENTS_TIMEOUT_S: Final = 5.0

_STAND_BY_S: Final = 1.0
_REST_S: Final = 0.02
_MAY_PASS: Final[tuple[type[Exception], ...]] = (BusError, *TRANSIENT_ERRORS)
_log = logging.getLogger(__name__)


class OutboxRow(NamedTuple):
    """One thing to publish. What ``subject``, ``message_id`` and ``payload`` mean is up to ``kind``."""

    id: int
    kind: str
    subject: str
    message_id: str | None
    payload: bytes


@dataclass(frozen=True, slots=True)
class OutboxQueries:
    """The SQL of one outbox table. Rows have the columns of ``OutboxRow``, ascending by id."""

    # $1 text lock name -> bool
    try_lock: LiteralString
    # $1 bigint at most -> rows
    oldest: LiteralString
    # $1 bigint[] ids -> those rows and every older one of the same subjects
    through: LiteralString
    # $1 bigint[] ids
    forget: LiteralString


class NotRelayedError(LilithError):
    """The change is committed, but could not be published in time. The background runner goes on trying."""


Publish = Callable[[Sequence[OutboxRow]], Awaitable[None]]


class Outbox:
    """Publishes the rows of one outbox table: in the background, and at once for those who wait for it."""

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        queries: OutboxQueries,
        publish: Publish,
        *,
        name: str,
        metrics: OutboxMetrics,
    ) -> None:
        """Make an outbox of the table behind ``queries``.

        Args:
            pool: ``run`` keeps one connection of it for the lock.
            queries: The table's SQL.
            publish: Publishes rows in their order; raises when it may succeed later.
            name: Of the lock that one runner holds, ``outbox:<name>``.
            metrics: Told what was relayed.
        """
        self._pool = pool
        self._queries = queries
        self._publish = publish
        self._name = f"outbox:{name}"
        self._metrics = metrics
        self._poked = asyncio.Event()
        self.is_runner = False

    def poke(self) -> None:
        """Tell the background runner of this process that there are new rows; never blocks."""
        self._poked.set()

    async def relay_now(self, ids: Sequence[int], *, timeout_s: float = RELAY_NOW_S) -> None:
        """Publish these committed rows, and older ones of the same subjects before them.

        Raises:
            NotRelayedError: Not within ``timeout_s``. Nothing is lost: the rows stay, the runner publishes them.
        """
        try:
            async with asyncio.timeout(timeout_s):
                rows = await self._pool.fetch(self._queries.through, list(ids))
                if rows:
                    await self._relay(_outbox_rows(rows))
        except _MAY_PASS as error:
            self.poke()
            raise NotRelayedError(f"not published yet: {error!r}") from error

    async def run(self, stop: asyncio.Event) -> None:
        """Publish in the background until ``stop`` is set, then once more what is there.

        One process at a time does it, the holder of the lock; the others stand by. Failures are tried again with
        growing pauses.
        """
        backoff = Backoff()
        waker = asyncio.create_task(_after(stop, self._poked.set), name="outbox-stop")
        try:
            while not stop.is_set():
                try:
                    await self._run_while_owner(stop, backoff)
                except _MAY_PASS as error:
                    self._metrics.failures.inc()
                    _log.warning("%s: not published, trying again: %r", self._name, error)
                    # Not cut short by a poke: every commit would else be another attempt.
                    await is_set_within(stop, backoff.next_s())
                finally:
                    self.is_runner = False
        finally:
            waker.cancel()

    async def _run_while_owner(self, stop: asyncio.Event, backoff: Backoff) -> None:
        async with hold_lock(self._pool, self._queries.try_lock, self._name) as lost:
            if lost is None:
                await self._wait(_STAND_BY_S)
                return
            self.is_runner = True
            ending = False
            while not (ending or lost.is_set()):
                ending = stop.is_set()
                rows = _outbox_rows(await self._pool.fetch(self._queries.oldest, BATCH_MAX))
                self._metrics.waiting.set(len(rows))
                if rows:
                    await self._relay(rows)
                backoff.reset()
                if len(rows) < BATCH_MAX and not ending:
                    # Under load a short rest makes one feed frame out of many messages of a thread.
                    await asyncio.sleep(_REST_S if rows else 0.0)
                    await self._wait(POLL_S)

    async def _relay(self, rows: Sequence[OutboxRow]) -> None:
        # No connection is held while publishing: slow publishing must not empty the pool.
        await self._publish(rows)
        await self._pool.execute(self._queries.forget, [row.id for row in rows])
        self._count(rows)

    def _count(self, rows: Sequence[OutboxRow]) -> None:
        for kind, number in Counter(row.kind for row in rows).items():
            self._metrics.relayed.labels(kind).inc(number)

    async def _wait(self, timeout_s: float) -> None:
        await is_set_within(self._poked, timeout_s)
        self._poked.clear()


async def store_events(
    bus: Bus, events: Sequence[OutgoingMessage], *, timeout_s: float = EVENTS_TIMEOUT_S
) -> None:
    """Store domain events in stream ``EVENTS``: one atomic batch, or one by one when it is refused.

    Every event must have a message id: after an unknown outcome each is sent again under the same one.

    Raises:
        BusError: Not all are stored; call again with the same events.
    """
    for start in range(0, len(events), EVENTS_BATCH_MAX):
        part = events[start : start + EVENTS_BATCH_MAX]
        if len(part) == 1 or not await _stored_at_once(bus, part, timeout_s):
            for event in part:
                await _store_one(bus, event, timeout_s)


async def _stored_at_once(bus: Bus, events: Sequence[OutgoingMessage], timeout_s: float) -> bool:
    try:
        await bus.store_batch(events, timeout_s=timeout_s)
    except PublishTimeoutError:
        _log.info("events: outcome of a batch of %d unknown, sending one by one", len(events))
        return False
    except PublishRefusedError as error:
        # One of them is stored already, most often: a batch takes no duplicate, a single message does.
        _log.info("events: batch of %d refused (%s), sending one by one", len(events), error)
        return False
    return True


async def _store_one(bus: Bus, event: OutgoingMessage, timeout_s: float) -> None:
    try:
        await bus.store(
            event.subject,
            event.payload,
            message_id=event.message_id,
            timeout_s=timeout_s,
            headers=event.headers,
        )
    except PublishRefusedError as error:
        if error.err_code != MESSAGE_TOO_LARGE:
            raise
        # Never to be stored: it must not hold up what stands behind it for ever.
        _log.error("event %s is dropped, it is too large: %s", event.message_id, error)


async def _after(event: asyncio.Event, act: Callable[[], None]) -> None:
    await event.wait()
    act()


def _outbox_rows(records: "Sequence[asyncpg.Record]") -> list[OutboxRow]:
    return [
        OutboxRow(row["id"], row["kind"], row["subject"], row["message_id"], row["payload"])
        for row in records
    ]
