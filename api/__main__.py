"""Starts the api: settings, PostgreSQL, NATS; then REST, services and relay, until stopped and drained."""

import asyncio
import importlib.metadata
import logging
import secrets
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from api.app import create_app
from api.dependencies import Parts
from api.idempotency import KEPT_S
from api.limits import ReadLimit
from api.queries import idempotency as idempotency_queries
from api.queries import outbox as outbox_queries
from api.queries import users as user_queries
from api.relay import Relay
from api.services import Services
from api.standing import Standing
from api.users import SeenUsers
from shared.auth import Verifier
from shared.bus import Bus
from shared.database import TRANSIENT_ERRORS, close_pool, open_pool
from shared.health import AppServer
from shared.lifecycle import Lifecycle, run_service
from shared.metrics import ApiMetrics
from shared.outbox import Outbox
from shared.provision import verify
from shared.rate import Rate
from shared.sending import Sender
from shared.settings import Settings
from shared.standing import StandingMirror
from shared.subjects import inbox_prefix
from shared.waiting import is_set_within

if TYPE_CHECKING:
    from api.dependencies import Pool

SERVICE: Final = "api"
POOL_SIZE: Final = 16
"""Connections to PostgreSQL. One is the relay's; two cores cannot keep more than a few busy."""

_PROBE_EVERY_S: Final = 2.0
_PROBE_TIMEOUT_S: Final = 2.0
_FORGET_EVERY_S: Final = 600.0

_log = logging.getLogger(__name__)


class Watch:
    """Whether PostgreSQL answered last time: ``/readyz`` must not wait for it."""

    def __init__(self) -> None:
        self.database = True


async def main(life: Lifecycle) -> None:
    """Run until ``life.stop`` is set; then finish what was begun."""
    settings = life.settings
    name = settings.messaging_node_name or f"{SERVICE}-{secrets.token_hex(4)}"
    pool = await open_pool(settings.dsn, name=name, size=POOL_SIZE, generic_plans=True)
    try:
        bus = await Bus.connect(
            settings.nats_url,
            name=name,
            on_closed=life.fail,
            inbox_prefix=inbox_prefix(SERVICE, name),
        )
        try:
            await verify(bus, settings, role=SERVICE)
            await _serve(life, make_parts(settings, pool, bus))
        finally:
            await bus.drain()
    finally:
        await close_pool(pool)


def make_parts(settings: Settings, pool: "Pool", bus: Bus) -> Parts:
    """Put the parts of one api process together.

    Raises:
        ConfigurationError: There is no usable key to check tokens with.
    """
    metrics = ApiMetrics(importlib.metadata.version("lilith-messaging"))
    metrics.nats_connected.set_function(lambda: float(bus.connected))
    bus.on_reconnect.append(metrics.nats_reconnects.inc)
    mirror = StandingMirror(bus, bus, clock=time.monotonic, metrics=metrics.standing)
    relay = Relay(bus, pool)
    outbox = Outbox(
        pool, outbox_queries.OUTBOX, relay.publish, name=SERVICE, metrics=metrics.outbox
    )
    return Parts(
        settings=settings,
        pool=pool,
        bus=bus,
        sender=Sender(bus, settings, metrics=metrics.sending),
        rate=Rate(bus, settings, metrics=metrics.sending),
        reads=ReadLimit(),
        outbox=outbox,
        verifier=Verifier(settings, may_fetch=True),
        metrics=metrics,
        seen=SeenUsers(pool, outbox),
        standing=Standing(bus, pool, mirror, kept_s=settings.revocation_kept_s),
    )


async def _serve(life: Lifecycle, parts: Parts) -> None:
    settings, watch = parts.settings, Watch()

    def checks() -> Mapping[str, bool]:
        return {
            "nats": parts.bus.connected,
            "database": watch.database,
            "running": not life.stop.is_set(),
        }

    server = AppServer(
        create_app(parts, checks),
        host=settings.messaging_host,
        port=settings.messaging_api_port,
    )
    # What serves requests stops first; what their changes need (sender, relay) stops after them.
    drained = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(parts.sender.run(drained), name="sender")
        tasks.create_task(parts.outbox.run(drained), name="relay")
        tasks.create_task(parts.verifier.run(drained), name="keys")
        tasks.create_task(parts.standing.run(drained), name="standing")
        tasks.create_task(_watch_database(parts.pool, watch, drained), name="watch")
        tasks.create_task(_forget_old_keys(parts.pool, drained), name="forget")
        subscriptions = Services(parts).serve()
        await server.start()
        try:
            await life.stop.wait()
        finally:
            for subscription in subscriptions:
                subscription.close()
            await server.close()
            drained.set()


async def _watch_database(pool: "Pool", watch: Watch, stop: asyncio.Event) -> None:
    while not await is_set_within(stop, _PROBE_EVERY_S):
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S), pool.acquire() as connection:
                await connection.fetchval(user_queries.PROBE)
        except TRANSIENT_ERRORS as error:
            if watch.database:
                _log.warning("PostgreSQL does not answer: %r", error)
            watch.database = False
        else:
            watch.database = True


async def _forget_old_keys(pool: "Pool", stop: asyncio.Event) -> None:
    while not await is_set_within(stop, _FORGET_EVERY_S):
        try:
            async with pool.acquire() as connection:
                await connection.execute(idempotency_queries.FORGET_OLD, KEPT_S)
        except TRANSIENT_ERRORS as error:
            _log.warning("old idempotency keys stay for now: %r", error)


if __name__ == "__main__":
    raise SystemExit(run_service(SERVICE, main))
