"""What is stored equals what the stream gives when it is counted anew."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import msgspec

from analytics import queries
from analytics.aggregates import EventCounts, decode, fold
from analytics.rollups import store_figures
from shared.bus import OutgoingMessage
from shared.consumer import Consumer, Source
from shared.database import close_pool, open_pool
from shared.metrics import AnalyticsMetrics
from shared.subjects import ANALYTICS_DURABLE, EVENTS_STREAM
from tests.support.eventually import eventually_passes
from tests.support.fabric import Fabric


@asynccontextmanager
async def analytics(fabric: Fabric) -> AsyncIterator[None]:
    """Run the batch loop of analytics, and stop it at the end."""
    pool = await open_pool(fabric.dsn, name="test-analytics", size=3)
    bus = await fabric.bus("analytics")
    consumer = Consumer(
        bus,
        pool,
        Source(EVENTS_STREAM, ANALYTICS_DURABLE),
        queries.CONSUMER,
        store_figures,
        metrics=AnalyticsMetrics("test").consumer,
    )
    stop = asyncio.Event()
    running = asyncio.create_task(consumer.run(stop))
    try:
        yield
    finally:
        stop.set()
        await running
        await bus.close()
        await close_pool(pool, wait_s=0.5)


async def tell(fabric: Fabric, *events: tuple[str, str]) -> int:
    """Store (type, time) as CloudEvents; return the seq of the last."""
    api = await fabric.bus("api")
    ack = await api.store_batch(
        [
            OutgoingMessage(kind, msgspec.json.encode({"type": kind, "time": time, "data": {}}))
            for kind, time in events
        ],
        timeout_s=5,
    )
    await api.close()
    return ack.seq


async def counted(fabric: Fabric, seq: int) -> EventCounts:
    """Wait until everything up to ``seq`` is counted; return what is stored."""

    async def cursor_is_there() -> None:
        assert await fabric.cursor(EVENTS_STREAM, ANALYTICS_DURABLE) >= seq

    await eventually_passes(cursor_is_there)
    rows = await fabric.pool.fetch("SELECT type, hour, count FROM analytics_event_counts")
    return EventCounts({(row["type"], row["hour"]): row["count"] for row in rows})


async def recounted(fabric: Fabric) -> EventCounts:
    """Count the stream from its first event."""
    provision = await fabric.bus("provision")
    state = (await provision.api(f"STREAM.INFO.{EVENTS_STREAM}"))["state"]
    events = []
    for seq in range(state["first_seq"], state["last_seq"] + 1):
        stored = await provision.get_seq(EVENTS_STREAM, seq)
        assert stored is not None
        events.append(decode(stored.payload))
    await provision.close()
    return fold(events)


async def test_counting_on_equals_counting_anew(fabric: Fabric) -> None:
    # Given events of two types over two hours, arriving while analytics runs, stops, and runs again
    sent, created = "messaging.message.sent", "messaging.thread.created"
    async with analytics(fabric):
        await tell(fabric, (sent, "2026-05-01T10:00:00.000Z"), (sent, "2026-05-01T10:59:59.999Z"))
        seq = await tell(
            fabric, (created, "2026-05-01T10:30:00Z"), (sent, "2026-05-01T13:00:00+02:00")
        )
        await counted(fabric, seq)
    seq = await tell(fabric, (sent, "2026-05-01T11:30:00Z"), (created, "2026-05-01T10:31:00Z"))
    async with analytics(fabric):
        figures = await counted(fabric, seq)
    # Then what is stored is what the whole stream gives
    assert figures == await recounted(fabric)
    assert figures[sent, datetime.fromisoformat("2026-05-01T11:00:00Z")] == 2
    assert figures.total() == 6


async def test_messages_of_the_persister_are_counted(fabric: Fabric) -> None:
    # Given both services
    thread_id = await fabric.thread("ava", "ben")
    async with analytics(fabric), fabric.persister():
        # When messages are sent
        await fabric.send(thread_id, "ava", *map(str, range(40)))

        async def all_are_counted() -> None:
            total = await fabric.pool.fetchval(
                "SELECT sum(count) FROM analytics_event_counts WHERE type = 'messaging.message.sent'"
            )
            assert total == 40

        # Then their events arrive as figures
        await eventually_passes(all_are_counted, within_s=10)


async def test_an_event_that_is_none_is_a_dead_letter_of_analytics(fabric: Fabric) -> None:
    api = await fabric.bus("api")
    await api.store("messaging.message.sent", b"\xff")
    await api.close()
    seq = await tell(
        fabric,
        ("messaging.message.sent", "2026-05-01T10:00:00Z"),
        ("messaging.message.sent", "2026-05-01T10:00:00Z"),
    )
    async with analytics(fabric):
        figures = await counted(fabric, seq)
    assert figures.total() == 2
    row = await fabric.pool.fetchrow("SELECT stream, consumer FROM dead_letters")
    assert row is not None
    assert tuple(row) == (EVENTS_STREAM, ANALYTICS_DURABLE)
