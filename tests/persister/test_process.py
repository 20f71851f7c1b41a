"""The persister as the supervisor runs it: its own process, ready, drained, killed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cli.ports import PortReservations
from tests.support.eventually import eventually, eventually_passes
from tests.support.fabric import Fabric

ROOT = Path(__file__).parents[2]


class Process:
    """One `python -m persister`."""

    def __init__(self, fabric: Fabric, port: int) -> None:
        settings = fabric.settings()
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "persister"],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "DATABASE_URL": settings.database_url,
                "NATS_URL": settings.nats_url,
                "MESSAGING_HEALTH_PORT": str(port),
                "MESSAGING_NODE_NAME": "persister-0",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill9(self) -> None:
        self.process.kill()
        self.process.wait()

    async def status(self) -> int:
        """Return what /readyz answers; 0 when nobody listens."""
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(f"{self.url}/readyz", timeout=2)).status_code
        except httpx.TransportError:
            return 0

    async def ready(self) -> None:
        assert await self.status() == 200


@pytest.fixture
def start(fabric: Fabric, port_reservations: PortReservations) -> Iterator["Starter"]:
    """Starts persisters; kills at the end what still runs."""
    starter = Starter(fabric, port_reservations.search(23_000))
    yield starter
    for process in starter.started:
        process.kill9()


class Starter:
    """Starts persisters at one health port, one after the other."""

    def __init__(self, fabric: Fabric, port: int) -> None:
        self._fabric = fabric
        self._port = port
        self.started: list[Process] = []

    def __call__(self) -> Process:
        process = Process(self._fabric, self._port)
        self.started.append(process)
        return process


async def test_killed_at_any_moment_it_loses_and_doubles_nothing(
    fabric: Fabric, start: Starter
) -> None:
    # Given a backlog
    threads = [await fabric.thread("ava", "ben") for _ in range(10)]
    sent: dict[str, list[str]] = {thread_id: [] for thread_id in threads}
    seqs: list[int] = []
    for number in range(80):
        thread_id = threads[number % 10]
        bodies = [f"{number}.{place}" for place in range(100)]
        sent[thread_id] += bodies
        seqs += await fabric.send(thread_id, "ava", *bodies)
    # When the persister is killed again and again while it works
    for kill in range(4):
        process = start()
        goal = seqs[(kill + 1) * 1_200]

        async def has_come_further(goal: int = goal) -> None:
            assert await fabric.cursor() >= goal

        await eventually_passes(has_come_further, within_s=20)
        process.kill9()
    start()
    await fabric.reached(seqs[-1], within_s=30)
    # Then each thread holds what was sent, once, in its order
    for thread_id in threads:
        assert await fabric.bodies(thread_id) == sent[thread_id]

    # And every message was told to platform services exactly once
    async def all_are_told() -> None:
        assert await fabric.count("persister_outbox") == 0

    await eventually_passes(all_are_told, within_s=20)
    provision = await fabric.bus("provision")
    state = (await provision.api("STREAM.INFO.EVENTS"))["state"]
    await provision.close()
    assert state["messages"] == len(seqs)
    assert await fabric.count("dead_letters") == 0


async def test_it_is_ready_and_drains_on_sigterm(fabric: Fabric, start: Starter) -> None:
    # Given a running persister
    process = start()
    await eventually_passes(process.ready, within_s=15)
    thread_id = await fabric.thread("ava", "ben")
    seqs = await fabric.send(thread_id, "ava", *map(str, range(1_000)))
    async with httpx.AsyncClient(trust_env=False) as client:
        metrics = (await client.get(f"{process.url}/metrics")).text
    assert 'messaging_persister_lag_seconds{stream="MSG_0"}' in metrics
    # When it is asked to stop in the middle of work
    await fabric.reached(seqs[0])
    process.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(process.process.wait, 8)
    # Then it ends cleanly, and what it stored it has told
    assert code == 0
    assert await fabric.count("persister_outbox") == 0


async def test_without_streams_it_ends_with_a_sentence_instead_of_waiting(
    fabric: Fabric, start: Starter
) -> None:
    provision = await fabric.bus("provision")
    await provision.api("STREAM.DELETE.MSG_0")
    await provision.close()
    process = start()
    await eventually(lambda: process.process.poll() is not None, within_s=30)
    assert process.process.returncode not in (0, None)
