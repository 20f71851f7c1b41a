"""A sender of an edge, on a server of the test alone."""

from collections.abc import AsyncIterator

import pytest

from tests.shared.sending.lanes import Fabric, configured, start
from tests.support.nats_streams import connected, make_streams
from tests.support.servers import NatsServer


@pytest.fixture
async def fabric(nats_server: NatsServer) -> AsyncIterator[Fabric]:
    settings = configured(messaging_publish_budget=10)
    await make_streams(nats_server, settings)
    async with connected(nats_server, "edge") as bus:
        yield await start(nats_server, bus, settings)
