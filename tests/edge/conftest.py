"""Edges in this process on a real nats-server, and clients that speak to them over real sockets."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator

import hypothesis
import pytest
import uvloop

from cli.ports import PortReservations
from tests.edge.house import House
from tests.support.servers import NatsServer

# Property tests judge results, not the speed of a busy machine.
hypothesis.settings.register_profile("house", deadline=None, print_blob=True)
hypothesis.settings.load_profile("house")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on the loop that an edge runs on: its transports decide when a slow reader is noticed."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True, scope="module")
def _closed_loops() -> Iterator[None]:
    """Collect the loops of a file's tests: uvloop gives their descriptors back only then."""
    yield
    gc.collect()


@pytest.fixture
async def house(
    nats_server: NatsServer, port_reservations: PortReservations
) -> AsyncIterator[House]:
    """Start edges and open clients; everything is closed at the end of the test."""
    house = House(nats_server, port_reservations)
    try:
        await house.provision()
        yield house
    finally:
        await house.close()
