"""What every service checks before it serves."""

from typing import TYPE_CHECKING, Any, Final

import pytest

from shared import subjects
from shared.bus import Bus
from shared.provision import ProvisionError, provision, verify
from shared.provision.streams import (
    message_stream,
)
from tests.shared.provision.logs import configured
from tests.support.nats_streams import connected
from tests.support.servers import NatsServer

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]


ROLES: Final = ("edge", "persister", "api", "analytics")


@pytest.mark.parametrize("role", ROLES)
async def test_every_service_finds_what_provisioning_made(
    nats_server: NatsServer, bus: Bus, pool: "Pool", role: str
) -> None:
    # Given a provisioned server, and a service with its own permissions
    await provision(bus, pool, configured())
    violations: list[str] = []
    service = await Bus.connect(
        nats_server.url(role),
        name=role,
        on_closed=violations.append,
        inbox_prefix=subjects.inbox_prefix(role, "test"),
    )
    # When it verifies
    generations = await verify(service, configured(), role=role)
    await service.flush()
    await service.close()
    # Then it may start, and it asked for nothing that it may not ask
    assert generations == ({} if role == "analytics" else {"MSG_0": 1})
    assert violations == []


@pytest.mark.parametrize("role", ROLES)
async def test_without_provisioning_no_service_starts(nats_server: NatsServer, role: str) -> None:
    async with connected(nats_server, role) as service:
        with pytest.raises(ProvisionError, match="does not exist: run `lilith provision`"):
            await verify(service, configured(), role=role)


@pytest.mark.parametrize(
    "changed",
    [
        {"messaging_log_age": "24h"},
        {"messaging_dedupe_window": "4m"},
        {"messaging_log_bytes": 1_000_000},
        {"messaging_throttle_ttl": 1_000},
        {"messaging_streams": 2},
    ],
)
async def test_a_service_that_is_configured_otherwise_does_not_start(
    nats_server: NatsServer, bus: Bus, pool: "Pool", changed: dict[str, Any]
) -> None:
    # Given a server provisioned with the defaults
    await provision(bus, pool, configured())
    async with connected(nats_server, "edge") as edge:
        # When a service computes its limits from another setting
        # Then it refuses to start
        with pytest.raises(ProvisionError, match="lilith provision"):
            await verify(edge, configured(**changed), role="edge")


async def test_a_service_without_its_consumer_does_not_start(
    nats_server: NatsServer, bus: Bus, pool: "Pool"
) -> None:
    # Given a server whose consumer was deleted
    await provision(bus, pool, configured())
    await bus.api("CONSUMER.DELETE.RCPT.persister")
    async with connected(nats_server, "persister") as persister:
        # When the persister verifies
        # Then it says which one is missing
        with pytest.raises(ProvisionError, match="RCPT/persister does not exist"):
            await verify(persister, configured(), role="persister")


@pytest.mark.parametrize("change", [{"first_seq": 1}, {"metadata": {}}])
async def test_a_service_refuses_a_log_that_was_not_provisioned(
    nats_server: NatsServer, bus: Bus, change: dict[str, object]
) -> None:
    # Given a log that somebody made by hand
    config = {**message_stream(configured(), 0, 1), **change}
    await bus.api("STREAM.CREATE.MSG_0", config)
    async with connected(nats_server, "edge") as edge:
        # When an edge verifies
        # Then it refuses
        with pytest.raises(ProvisionError, match="not made by"):
            await verify(edge, configured(), role="edge")
