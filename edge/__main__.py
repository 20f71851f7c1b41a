"""Starts the edge: settings, two connections to NATS, checks; then the gateway, until stopped and drained."""

import asyncio
import importlib.metadata
import logging
import secrets
import time
from typing import Final, NamedTuple

from edge.background import Background
from edge.commands import execute
from edge.directory import Directory
from edge.feeds import Feeds
from edge.gateway import Gateway
from edge.handshake import Rules
from edge.introductions import Introductions
from edge.log import ThreadLog
from edge.node import Node
from edge.outbound import Flusher
from edge.receipts import Marks
from edge.replay import Replays
from edge.standing import Standing
from edge.tails import TailChecks
from edge.threads import Threads
from edge.typists import Typists
from shared.auth import Verifier
from shared.bus import Bus
from shared.health import HealthServer
from shared.lifecycle import Lifecycle, run_service
from shared.metrics import EdgeMetrics
from shared.protocol import COMMANDS
from shared.provision import verify
from shared.rate import Rate
from shared.sending import Sender
from shared.settings import Settings
from shared.standing import StandingMirror
from shared.subjects import inbox_prefix

SERVICE: Final = "edge"


class Buses(NamedTuple):
    """Two connections: a flood of live events never delays a publish or its acknowledgement."""

    fabric: Bus
    live: Bus


async def main(life: Lifecycle) -> None:
    """Run until ``life.stop`` is set; then drain: tell every session, take its last sends, close it."""
    settings = life.settings
    name = settings.messaging_node_name or f"{SERVICE}-{secrets.token_hex(4)}"
    metrics = EdgeMetrics(importlib.metadata.version("lilith-messaging"))
    verifier = Verifier(settings)
    buses = await connect(life, name)
    metrics.nats_connected.set_function(lambda: float(all(bus.connected for bus in buses)))
    for bus in buses:
        bus.on_reconnect.append(metrics.nats_reconnects.inc)
    try:
        await verify(buses.fabric, settings, role=SERVICE)
        async with Background() as background:
            node = make_node(
                settings, name, metrics, buses, verifier=verifier, background=background
            )
            await _serve(life, node, buses)
    finally:
        for bus in buses:
            await bus.close()


async def connect(life: Lifecycle, name: str) -> Buses:
    """Connect twice; a connection that is closed for ever ends the process."""

    async def open_bus(purpose: str) -> Bus:
        return await Bus.connect(
            life.settings.nats_url,
            name=f"{name}-{purpose}",
            on_closed=life.fail,
            inbox_prefix=inbox_prefix(SERVICE, name),
        )

    return Buses(fabric=await open_bus("fabric"), live=await open_bus("live"))


def make_node(
    settings: Settings,
    name: str,
    metrics: EdgeMetrics,
    buses: Buses,
    *,
    verifier: Verifier,
    background: Background,
) -> Node:
    """Put the parts of one edge together."""
    loop = asyncio.get_running_loop()
    directory = Directory(buses.fabric, buses.live, clock=loop.time, lookups=metrics.lookups)
    log = ThreadLog(buses.fabric, streams=settings.messaging_streams)
    replays = Replays(log, spawn=background.spawn, metrics=metrics)
    threads = Threads(log, buses.live, replays, spawn=background.spawn, metrics=metrics)
    threads.on_left.append(directory.forget_member)
    directory.threads.on_change.append(threads.revoke)
    feeds = Feeds(buses.live, metrics)
    feeds.on_position.append(threads.note)
    metrics.threads.set_function(lambda: len(threads))
    metrics.sessions.set_function(lambda: len(feeds))
    mirror = StandingMirror(buses.fabric, buses.live, clock=loop.time, metrics=metrics.standing)
    return Node(
        name=name,
        settings=settings,
        metrics=metrics,
        verifier=verifier,
        standing=Standing(
            mirror,
            guests_of=feeds.sessions_of,
            wall=time.time,
            kept_s=settings.revocation_kept_s,
        ),
        fabric=buses.fabric,
        directory=directory,
        received={
            shape: metrics.frames_in.of(name_of_type) for name_of_type, shape in COMMANDS.items()
        },
        introductions=Introductions(buses.fabric, directory, background.spawn),
        threads=threads,
        tails=TailChecks(
            threads,
            log,
            buses.live,
            spawn=background.spawn,
            metrics=metrics,
            replicas_lag=settings.messaging_replicas > 1,
        ),
        replays=replays,
        feeds=feeds,
        typists=Typists(),
        marks=Marks(buses.fabric, spawn=background.spawn, metrics=metrics),
        sender=Sender(buses.fabric, settings, metrics=metrics.sending),
        rate=Rate(buses.fabric, settings, metrics=metrics.sending),
        flusher=Flusher(loop.call_soon),
        spawn=background.spawn,
        clock=loop.time,
        wall=time.time,
    )


async def _serve(life: Lifecycle, node: Node, buses: Buses) -> None:
    settings = life.settings
    # Its own lines are about single connections: a busy edge would write nothing else.
    logging.getLogger("websockets.server").setLevel(logging.ERROR)
    rules = Rules(
        settings.origins,
        compression=settings.messaging_ws_compression,
        logger=logging.getLogger("websockets.server"),
    )
    gateway = Gateway(node, rules, execute, buses)
    node.metrics.connections.set_function(lambda: len(gateway))
    health = HealthServer(
        settings.messaging_health_port,
        settings.messaging_host,
        lambda: {
            "nats": all(bus.connected for bus in buses),
            "gateway": gateway.is_ready,
            "standing": node.standing.is_confirmed,
            "running": not life.stop.is_set(),
        },
        node.metrics.registry,
    )
    await node.directory.start()
    await node.sender.prepare()
    await node.standing.start()
    await gateway.start()
    drained = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(health.run(drained), name="health")
        tasks.create_task(node.sender.run(drained), name="sender")
        tasks.create_task(node.verifier.run(drained), name="keys")
        tasks.create_task(node.tails.run(drained), name="tails")
        tasks.create_task(node.standing.run(drained), name="standing")
        tasks.create_task(node.directory.run(node.threads.attached, drained), name="directory")
        await gateway.run(life.stop)
        node.feeds.close()
        drained.set()


if __name__ == "__main__":
    raise SystemExit(run_service(SERVICE, main))
