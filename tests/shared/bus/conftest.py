"""A nats-server and buses per test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.bus import Bus
from tests.shared.bus.server import Buses, LocalNats


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[LocalNats]:
    """A running nats-server with JetStream."""
    server = LocalNats(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def buses(nats: LocalNats) -> AsyncIterator[Buses]:
    """Connects buses to ``nats``."""
    made = Buses(nats)
    yield made
    await made.close()


@pytest.fixture
async def bus(buses: Buses) -> Bus:
    """A connected bus."""
    return await buses.connect()
