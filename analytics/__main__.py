"""Starts analytics: settings, connections, checks; then one batch loop over ``EVENTS``, until stopped."""

import asyncio
import importlib.metadata
import secrets
from typing import Final

from analytics import queries
from analytics.rollups import store_figures
from shared.bus import Bus
from shared.consumer import Consumer, Source
from shared.database import close_pool, open_pool
from shared.health import HealthServer
from shared.lifecycle import Lifecycle, run_service
from shared.metrics import AnalyticsMetrics
from shared.provision import verify
from shared.subjects import ANALYTICS_DURABLE, EVENTS_STREAM, inbox_prefix

SERVICE: Final = "analytics"
_CONNECTIONS: Final = 3


async def main(life: Lifecycle) -> None:
    """Run until ``life.stop`` is set; then finish the batch in hand and return."""
    settings = life.settings
    metrics = AnalyticsMetrics(importlib.metadata.version("lilith-messaging"))
    node = settings.messaging_node_name or f"{SERVICE}-{secrets.token_hex(4)}"
    pool = await open_pool(settings.dsn, name=node, size=_CONNECTIONS)
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
        consumer = Consumer(
            bus,
            pool,
            Source(EVENTS_STREAM, ANALYTICS_DURABLE),
            queries.CONSUMER,
            store_figures,
            metrics=metrics.consumer,
        )
        health = HealthServer(
            settings.messaging_health_port,
            settings.messaging_host,
            lambda: {
                "nats": bus.connected,
                "consumer": consumer.ready,
                "running": not life.stop.is_set(),
            },
            metrics.registry,
        )
        stored = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(health.run(stored), name="health")
            await consumer.run(life.stop)
            stored.set()
    finally:
        await bus.close()
        await close_pool(pool)


if __name__ == "__main__":
    raise SystemExit(run_service(SERVICE, main))
