"""Starts the persister: settings, connections, checks; then one batch loop per stream and the outbox, until stopped."""

import asyncio
import importlib.metadata
import secrets
from collections.abc import Sequence
from functools import partial
from typing import Final

import asyncpg

from persister import queries
from persister.feeds import Feeds
from persister.history import store_events
from persister.receipts import store_receipts
from shared.bus import Bus
from shared.consumer import Consumer, Handle, Source
from shared.database import close_pool, open_pool
from shared.health import HealthServer
from shared.lifecycle import Lifecycle, run_service
from shared.metrics import PersisterMetrics
from shared.outbox import Outbox
from shared.provision import verify
from shared.settings import Settings
from shared.subjects import PERSISTER_DURABLE, RCPT_STREAM, inbox_prefix, stream_names

SERVICE: Final = "persister"
_OUTBOX_CONNECTIONS: Final = 3
_CONNECTIONS_PER_STREAM: Final = 2


async def main(life: Lifecycle) -> None:
    """Run until ``life.stop`` is set; then finish the batches in hand, publish what they left, and return."""
    settings = life.settings
    metrics = PersisterMetrics(importlib.metadata.version("lilith-messaging"))
    node = settings.messaging_node_name or f"{SERVICE}-{secrets.token_hex(4)}"
    consumers = len(stream_names(settings.messaging_streams)) + 1
    pool = await open_pool(
        settings.dsn,
        name=node,
        size=_CONNECTIONS_PER_STREAM * consumers + _OUTBOX_CONNECTIONS,
    )
    bus = await Bus.connect(
        settings.nats_url,
        name=node,
        on_closed=life.fail,
        inbox_prefix=inbox_prefix(SERVICE, node),
    )
    metrics.nats_connected.set_function(lambda: float(bus.connected))
    bus.on_reconnect.append(metrics.nats_reconnects.inc)
    try:
        await verify(bus, settings, role=SERVICE)
        await _serve(life, pool, bus, metrics)
    finally:
        await bus.close()
        await close_pool(pool)


async def _serve(
    life: Lifecycle, pool: "asyncpg.Pool[asyncpg.Record]", bus: Bus, metrics: PersisterMetrics
) -> None:
    settings = life.settings
    outbox = Outbox(
        pool, queries.OUTBOX, Feeds(pool, bus).publish, name=SERVICE, metrics=metrics.outbox
    )
    consumers = make_consumers(settings, pool, bus, outbox, metrics)
    health = HealthServer(
        settings.messaging_health_port,
        settings.messaging_host,
        lambda: {
            "nats": bus.connected,
            "consumers": all(consumer.ready for consumer in consumers),
            "running": not life.stop.is_set(),
        },
        metrics.registry,
    )
    persisted = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(health.run(persisted), name="health")
        # The outbox ends after the batch loops, so that a clean stop leaves no row for a successor.
        tasks.create_task(outbox.run(persisted), name="outbox")
        await consume(consumers, life.stop)
        persisted.set()


def make_consumers(
    settings: Settings,
    pool: "asyncpg.Pool[asyncpg.Record]",
    bus: Bus,
    outbox: Outbox,
    metrics: PersisterMetrics,
) -> list[Consumer]:
    """Return the batch loop of every message stream, and that of the receipts."""
    store: Handle = partial(store_events, count_ignored=metrics.count_ignored)
    handles = {
        **{
            Source(stream, PERSISTER_DURABLE): store
            for stream in stream_names(settings.messaging_streams)
        },
        Source(RCPT_STREAM, PERSISTER_DURABLE, keeps_last=True): store_receipts,
    }
    return [
        Consumer(
            bus,
            pool,
            source,
            queries.CONSUMER,
            handle,
            metrics=metrics.consumer,
            on_committed=outbox.poke,
        )
        for source, handle in handles.items()
    ]


async def consume(consumers: Sequence[Consumer], stop: asyncio.Event) -> None:
    """Run the batch loops until ``stop`` is set and the last batch is stored."""
    async with asyncio.TaskGroup() as tasks:
        for consumer in consumers:
            tasks.create_task(consumer.run(stop), name=str(consumer))


if __name__ == "__main__":
    raise SystemExit(run_service(SERVICE, main))
