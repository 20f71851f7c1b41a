"""Streams of a test without a database: what ``lilith provision`` makes, and connections for every role."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared import subjects
from shared.bus import Bus
from shared.provision.streams import consumers, message_stream, other_streams
from shared.settings import Settings
from tests.support.servers import NatsServer


@asynccontextmanager
async def connected(server: NatsServer, role: str, node: str = "test") -> AsyncIterator[Bus]:
    """Connect as ``role``, whose permissions then hold."""
    bus = await Bus.connect(
        server.url(role),
        name=role,
        on_closed=lambda _reason: None,
        inbox_prefix=subjects.inbox_prefix(role, node),
    )
    try:
        yield bus
    finally:
        await bus.close()


async def make_streams(server: NatsServer, settings: Settings, *, generation: int = 1) -> None:
    """Make every stream and consumer, the message streams in their ``generation``."""
    async with connected(server, "provision", "setup") as bus:
        for number in range(settings.messaging_streams):
            config = message_stream(settings, number, generation)
            await bus.api(f"STREAM.CREATE.{config['name']}", config)
        for config in other_streams(settings):
            await bus.api(f"STREAM.CREATE.{config['name']}", config)
        for consumer in consumers(settings):
            await bus.api(
                f"CONSUMER.CREATE.{consumer.stream}.{consumer.durable}",
                {"stream_name": consumer.stream, "config": consumer.config, "action": "create"},
            )
