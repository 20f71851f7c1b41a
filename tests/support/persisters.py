"""Persisters inside the test's process, which end or die when the test wants it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from persister import queries
from persister.feeds import Feeds
from persister.history import store_events
from persister.receipts import store_receipts
from shared.bus import Bus
from shared.consumer import Consumer, Handle, Source
from shared.database import close_pool, open_pool
from shared.metrics import PersisterMetrics
from shared.outbox import Outbox
from shared.subjects import PERSISTER_DURABLE, RCPT_STREAM

if TYPE_CHECKING:
    import asyncpg

STREAM = "MSG_0"


@dataclass
class Persister:
    """A running persister: its parts, each with the means to end it."""

    consumer: Consumer
    outbox: Outbox
    metrics: PersisterMetrics
    pool: "asyncpg.Pool[asyncpg.Record]"
    bus: Bus
    stop: asyncio.Event
    tasks: list[asyncio.Task[None]]

    async def end(self) -> None:
        """Stop it as SIGTERM would; raises what a task died of."""
        self.stop.set()
        await asyncio.gather(*self.tasks)
        await self.close()

    async def die(self) -> None:
        """End it in the middle of whatever it does, without a word to anybody. Twice does nothing."""
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        await self.close()

    async def close(self) -> None:
        """Cut its connections."""
        await self.bus.close()
        await close_pool(self.pool, wait_s=0.5)


async def start(
    dsn: str,
    bus: Bus,
    *,
    handle: Handle | None = None,
    source: Source | None = None,
    relays: bool = True,
    receipts: bool = False,
    change: Callable[[Consumer], None] = lambda _consumer: None,
) -> Persister:
    """Start a persister; with ``receipts`` it folds read markers too. ``change`` may spoil its consumer before that."""
    pool = await open_pool(dsn, name="test-persister", size=8)
    metrics = PersisterMetrics("test")
    outbox = Outbox(
        pool, queries.OUTBOX, Feeds(pool, bus).publish, name="persister", metrics=metrics.outbox
    )
    consumer = Consumer(
        bus,
        pool,
        source or Source(STREAM, PERSISTER_DURABLE),
        queries.CONSUMER,
        handle or partial(store_events, count_ignored=metrics.count_ignored),
        metrics=metrics.consumer,
        on_committed=outbox.poke,
    )
    change(consumer)
    stop = asyncio.Event()
    tasks = [asyncio.create_task(consumer.run(stop))]
    if relays:
        tasks.append(asyncio.create_task(outbox.run(stop)))
    if receipts:
        marks = Consumer(
            bus,
            pool,
            Source(RCPT_STREAM, PERSISTER_DURABLE, keeps_last=True),
            queries.CONSUMER,
            store_receipts,
            metrics=metrics.consumer,
            on_committed=outbox.poke,
        )
        tasks.append(asyncio.create_task(marks.run(stop)))
    return Persister(consumer, outbox, metrics, pool, bus, stop, tasks)


def lingering() -> Source:
    """A source whose batches wait long enough to be full, whatever else the machine does."""
    return Source(STREAM, PERSISTER_DURABLE, linger_s=0.5)
