"""A door for every role to a fresh installation. One server serves a module: what is refused leaves no trace."""

import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from cli.ports import PortReservations
from shared.settings import load_settings
from tests.shared.permissions.guests import Guests
from tests.support.nats_streams import make_streams
from tests.support.servers import NatsServer, in_own_loop


@pytest.fixture(scope="module")
def home(server_directory: Path, port_reservations: PortReservations) -> Iterator[NatsServer]:
    """A server with every stream."""
    directory = server_directory / f"nats-{secrets.token_hex(4)}"
    server = NatsServer(directory, port_reservations)
    server.start()
    try:
        settings = load_settings(messaging_platform_consumers="crm")
        in_own_loop(make_streams(server, settings))
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory)


@pytest.fixture
async def guests(home: NatsServer) -> AsyncIterator[Guests]:
    """The visitors of one test; they leave at its end."""
    async with AsyncExitStack() as stack:
        yield Guests(home, stack)
