"""Three NATS nodes, two edges: whatever happens to the stream's leader, each client's list equals the stream."""

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import pytest
from typing_extensions import override
from websockets.exceptions import ConnectionClosed

from cli.ports import PortReservations
from shared.bus import BusError
from shared.events import encode_event
from shared.identity import ThreadId
from shared.settings import Settings
from shared.subjects import msg_subject
from tests.edge.house import Client, Edge, House
from tests.edge.test_replay import message
from tests.support.cluster import ClusterNode, NatsCluster, running_cluster
from tests.support.eventually import eventually
from tests.support.servers import NatsServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
THREADS: Final = 8
STEP_DOWNS: Final = 5
Seen = dict[str, list[tuple[int, int]]]


class ClusterHouse(House):
    """A house on a cluster: every stream has three copies."""

    def __init__(self, cluster: NatsCluster, ports: PortReservations) -> None:
        super().__init__(cast("NatsServer", cluster), ports)
        self.cluster = cluster

    @override
    def settings(self, **changes: Any) -> Settings:
        return super().settings(**{"messaging_replicas": 3, **changes})

    async def provisioned(self) -> None:
        """Provision as soon as the nodes have agreed on who leads them; what a failed try has made may stay."""

        async def provision() -> bool:
            try:
                await self.provision()
            except BusError:
                return False
            return True

        await eventually(provision, within_s=20)

    async def leader(self) -> ClusterNode:
        """Return the node that leads the message stream."""
        bus = await self.bus("provision")

        async def name() -> str | None:
            try:
                info = await bus.api("STREAM.INFO.MSG_0", timeout_s=1.0)
            except BusError:
                return None
            return cast("str | None", info["cluster"].get("leader"))

        return self.cluster.node(await eventually(name, within_s=30))


@pytest.fixture
async def house(
    server_directory: Path, port_reservations: PortReservations
) -> AsyncIterator[ClusterHouse]:
    """A cluster with streams; everything is closed at the end of the test."""
    with running_cluster(server_directory, port_reservations) as cluster:
        house = ClusterHouse(cluster, port_reservations)
        try:
            await house.provisioned()
            yield house
        finally:
            await house.close()


class Watcher:
    """A client that writes down every event it is sent."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.seen: Seen = defaultdict(list)
        self.others: list[str] = []
        self._reading: asyncio.Task[None] | None = None

    async def subscribe(self, threads: list[ThreadId]) -> None:
        for thread_id in threads:
            await self.client.subscribe(thread_id)
            await self.client.next("thread.caught_up")
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            while True:
                frame = json.loads(await self.client.socket.recv())
                if "prev_seq" in frame:
                    self.seen[frame["thread_id"]].append((frame["prev_seq"], frame["seq"]))
                else:
                    self.others.append(frame["type"])
        except ConnectionClosed as end:
            self.others.append(f"closed: {end}")


class Writers:
    """One writer per thread, each storing until it is told to stop, again and again with the same id."""

    def __init__(self, house: House, threads: list[ThreadId]) -> None:
        self._house = house
        self._threads = threads
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.acked = 0

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._write(thread)) for thread in self._threads]

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _write(self, thread_id: ThreadId) -> None:
        bus = await self._house.bus("api")
        number = 0
        while not self._stop.is_set():
            number += 1
            event = message(thread_id, f"{number}")
            while True:
                try:
                    await bus.store(
                        msg_subject(thread_id),
                        encode_event(event),
                        message_id=event.message_id,
                        timeout_s=1.0,
                    )
                except BusError:
                    await asyncio.sleep(0.05)
                else:
                    break
            self.acked += 1
            await asyncio.sleep(random.random() * 0.02)


async def stream_of(house: House, thread_id: ThreadId) -> list[tuple[int, int]]:
    """Return what the log holds of a thread, as (seq before, seq)."""
    bus = await house.bus("edge")
    seqs: list[int] = []
    more = True
    while more:
        page = await bus.get_range(
            "MSG_0",
            msg_subject(thread_id),
            from_seq=seqs[-1] + 1 if seqs else 1,
            max_messages=500,
            max_bytes=1 << 20,
        )
        seqs += [found.seq for found in page.messages]
        more = page.more
    return list(zip([0, *seqs], seqs, strict=False))


async def watched(house: House, edges: list[Edge], threads: list[ThreadId]) -> list[Watcher]:
    watchers = []
    for edge in edges:
        for user in ("ava", "ben"):
            watcher = Watcher(await house.client(edge, user, max_queue=None))
            await watcher.subscribe(threads)
            watchers.append(watcher)
    return watchers


async def assert_all_equal_the_stream(
    house: House, watchers: list[Watcher], threads: list[ThreadId]
) -> None:
    log = {thread_id: await stream_of(house, thread_id) for thread_id in threads}
    for watcher in watchers:
        for thread_id in threads:
            seen, wanted = watcher.seen[thread_id], log[thread_id]
            await eventually(
                partial(_has_all, seen, wanted),
                within_s=10,
                because=f"{len(seen)} of {len(wanted)} events; {watcher.others}",
            )
            assert seen == wanted
        assert set(watcher.others) <= {"sync.required", "thread.activity"}


def _has_all(seen: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> bool:
    return len(seen) >= len(wanted)


async def test_leaders_step_down_under_load(house: ClusterHouse) -> None:
    # Given two edges with two clients each, and writers in every thread
    edges = [await house.edge(), await house.edge()]
    threads = [await house.thread("ava", "ben") for _ in range(THREADS)]
    watchers = await watched(house, edges, threads)
    writers = Writers(house, threads)
    writers.start()
    provision = await house.bus("provision")
    # When the stream's leader steps down again and again
    for _ in range(STEP_DOWNS):
        await asyncio.sleep(1.0)
        await house.leader()
        await provision.api("STREAM.LEADER.STEPDOWN.MSG_0", timeout_s=10)
    await asyncio.sleep(1.0)
    await writers.stop()
    # Then every list is the stream
    await assert_all_equal_the_stream(house, watchers, threads)
    assert writers.acked > THREADS * 10


async def test_the_leader_is_killed_under_load(house: ClusterHouse) -> None:
    edges = [await house.edge(), await house.edge()]
    threads = [await house.thread("ava", "ben") for _ in range(THREADS)]
    watchers = await watched(house, edges, threads)
    writers = Writers(house, threads)
    writers.start()
    await asyncio.sleep(1.5)
    # When the leader is killed, another one takes over, and the dead one comes back
    leader = await house.leader()
    await asyncio.to_thread(leader.kill9)
    before = writers.acked
    await eventually(lambda: writers.acked > before + THREADS * 3, within_s=30)
    await asyncio.to_thread(house.cluster.restart, leader)
    await asyncio.sleep(1.0)
    await writers.stop()
    # Then every list is the stream
    await assert_all_equal_the_stream(house, watchers, threads)
