"""A connection of the user who may change streams, and a migrated database."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from shared.bus import Bus
from shared.database import open_pool
from tests.support.nats_streams import connected
from tests.support.servers import NatsServer

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    async with connected(nats_server, "provision") as bus:
        yield bus


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator["Pool"]:
    pool = await open_pool(database_url, name="test", size=2)
    yield pool
    await pool.close()
