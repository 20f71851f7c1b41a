"""What provisioning demands of the running servers."""

import asyncio
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cli.embedded.nats import NATS_USERS, EmbeddedNats
from cli.ports import PortReservations
from shared import subjects
from shared.bus import Bus
from shared.provision import ProvisionError, check_servers, provision
from tests.shared.provision.logs import configured
from tests.support.servers import ServerProcess

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]


@pytest.fixture
def configuration(server_directory: Path) -> Iterator[Path]:
    """A copy of the folder ``nats``, for a test to spoil."""
    folder = server_directory / f"configuration-{secrets.token_hex(4)}"
    shutil.copytree(Path(__file__).parents[3] / "nats", folder)
    yield folder
    shutil.rmtree(folder)


@asynccontextmanager
async def spoiled(
    configuration: Path, ports: PortReservations, file: str, pattern: str, replacement: str
) -> AsyncIterator[Bus]:
    """Run a server whose configuration differs in one place, and connect to it as ``provision``."""
    path = configuration / file
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count == 1, f"{pattern} is not in {file} once"
    path.write_text(text)
    embedded = EmbeddedNats(
        directory=configuration / "data",
        port=ports.search(28_000 + secrets.randbelow(1_000)),
        http_port=ports.search(29_000 + secrets.randbelow(1_000)),
        passwords=dict.fromkeys(NATS_USERS, "pass"),
        account=None,
        configuration=configuration,
    )
    embedded.prepare()
    server = ServerProcess(
        embedded.launch(), lambda _pid: embedded.is_ready(), configuration.with_suffix(".log")
    )
    await asyncio.to_thread(server.start)
    try:
        bus = await Bus.connect(
            embedded.url("provision"),
            name="provision",
            on_closed=lambda _reason: None,
            inbox_prefix=subjects.inbox_prefix("provision", "test"),
        )
        yield bus
        await bus.close()
    finally:
        await asyncio.to_thread(server.stop)


async def test_a_server_that_acknowledges_before_it_flushes_is_refused(
    configuration: Path, port_reservations: PortReservations, pool: "Pool"
) -> None:
    # Given a server without `sync_interval: always`
    async with spoiled(
        configuration, port_reservations, "server.conf", "sync_interval: always", ""
    ) as bus:
        # When it is provisioned
        # Then the text says what is wrong and where to set it
        with pytest.raises(ProvisionError, match=r"without `sync_interval: always`.*server\.conf"):
            await provision(bus, pool, configured())
        assert (await bus.api("STREAM.NAMES"))["streams"] in (None, [])
        # And only who says so gets it all the same
        assert (await provision(bus, pool, configured(), relaxed_sync=True)).changed


@pytest.mark.parametrize(
    ("pattern", "replacement", "problem"),
    [
        ("js_ack_fc_v2: false", "js_ack_fc_v2: true", "js_ack_fc_v2"),
        ("max_payload: 256KB", "max_payload: 64KB", "max_payload"),
    ],
)
async def test_a_server_that_would_break_a_client_is_refused(
    configuration: Path,
    port_reservations: PortReservations,
    pattern: str,
    replacement: str,
    problem: str,
) -> None:
    async with spoiled(
        configuration, port_reservations, "server.conf", pattern, replacement
    ) as bus:
        with pytest.raises(ProvisionError, match=problem):
            await check_servers(bus, role="provision", replicas=1)


async def test_a_server_that_does_not_tell_is_refused(
    configuration: Path, port_reservations: PortReservations, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server whose system account exports nothing
    monkeypatch.setattr("shared.provision.server._FIRST_ANSWER_S", 0.5)
    async with spoiled(
        configuration,
        port_reservations,
        "authorization.conf",
        r"\{ service: \{ account: SYS[^\n]*\n",
        "\n",
    ) as bus:
        # When it is asked
        # Then it is refused: silence is no promise
        with pytest.raises(ProvisionError, match=r"authorization\.conf"):
            await check_servers(bus, role="provision", replicas=1)


async def test_fewer_servers_than_copies_are_refused(bus: Bus, pool: "Pool") -> None:
    with pytest.raises(ProvisionError, match="MESSAGING_REPLICAS is 3, but 1"):
        await provision(bus, pool, configured(messaging_replicas=3))
