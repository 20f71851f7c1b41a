"""Stopping: every session is told, last sends are acknowledged, closes say 1012. And an edge without NATS: 1013."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from edge import gateway
from shared.identity import new_id
from tests.edge.house import SECRET, Client, Edge, House


@pytest.fixture
async def edge(house: House) -> Edge:
    """One edge."""
    return await house.edge()


async def test_a_drain_loses_nothing(house: House, edge: Edge) -> None:
    # Given clients that send all the time
    thread_id = await house.thread("ava", "ben", "cleo")
    clients = [await house.client(edge, user) for user in ("ava", "ben", "cleo")]
    acked: list[str] = []
    unanswered: dict[str, list[str]] = {}

    async def keep_sending(client: Client) -> None:
        waiting = unanswered[client.user] = []
        while True:
            client_msg_id = new_id()
            waiting.append(client_msg_id)
            ack = await client.send(thread_id, client_msg_id=client_msg_id)
            waiting.remove(ack["client_msg_id"])
            acked.append(ack["message_id"])

    sending = [asyncio.create_task(keep_sending(client)) for client in clients]
    await house.eventually(lambda: len(acked) > 20)
    # When the edge is stopped
    stopping = asyncio.create_task(edge.stop())
    ends = await asyncio.gather(*sending, return_exceptions=True)
    await stopping
    # Then every socket was closed with 1012, after it had been told
    for client, end in zip(clients, ends, strict=True):
        assert isinstance(end, ConnectionClosed)
        assert end.rcvd is not None
        assert end.rcvd.code == 1012
        draining = await client.next("server.draining")
        assert 0 <= draining["reconnect_after_ms"] <= 30_000
    # And every acknowledged message is stored; at most the one sent into the close is unknown to its sender
    assert len(set(acked)) == len(acked)
    assert len(acked) <= await house.stored() <= len(acked) + len(clients)
    assert all(len(waiting) <= 1 for waiting in unanswered.values())


async def test_a_send_on_its_way_is_acknowledged_before_the_close(house: House, edge: Edge) -> None:
    # Given a send that NATS is slow to confirm
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    assert (await ava.send(thread_id))["type"] == "ack"
    house.nats.pause()
    await ava.say(
        type="message.send", ref="x", thread_id=thread_id, client_msg_id=new_id(), body=""
    )
    await ava.say(
        type="message.send", ref="slow", thread_id=thread_id, client_msg_id=new_id(), body="hi"
    )
    # When the edge is stopped meanwhile
    stopping = asyncio.create_task(edge.stop())
    await ava.next("server.draining")
    await asyncio.sleep(0.6)
    house.nats.resume()
    # Then the ack comes first
    assert (await ava.answer("slow"))["type"] == "ack"
    assert await ava.closed() == 1012
    await stopping


async def test_a_draining_edge_is_not_ready_and_takes_nobody(house: House, edge: Edge) -> None:
    clients = [await house.client(edge, "ava") for _ in range(20)]
    edge.life.stop.set()
    await clients[0].next("server.draining")
    status, _ = await edge.ops("/readyz")
    assert status == 503
    assert (await edge.ops("/livez"))[0] == 200
    with pytest.raises((OSError, InvalidStatus)):
        await house.open(edge)
    assert [await client.closed() for client in clients] == [1012] * 20


async def test_a_client_that_does_not_answer_the_close_delays_nobody(
    house: House, edge: Edge
) -> None:
    client = await house.client(edge, "ava")
    client.socket.transport.pause_reading()
    started = time.monotonic()
    await edge.stop()
    assert time.monotonic() - started < 4


async def test_without_nats_sockets_close_with_1013_and_nobody_comes_in(
    house: House, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an edge that waits two seconds instead of ten
    monkeypatch.setattr(gateway, "FABRIC_AWAY_S", 2.0)
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    await ava.send(thread_id)
    # When NATS goes away
    house.nats.kill9()
    started = time.monotonic()
    # Then the socket is closed, and a new one refused
    assert await ava.closed() == 1013
    assert await edge.metric('messaging_edge_closes_total{code="1013"}') == 1
    assert time.monotonic() - started < 4
    with pytest.raises(InvalidStatus) as refused:
        await house.open(edge)
    assert refused.value.response.status_code == 503
    assert (await edge.ops("/readyz"))[0] == 503
    # And when it is back, so is the edge
    house.nats.start()
    await house.eventually(lambda: _is_ready(edge))
    again = await house.client(edge, "ava")
    assert (await again.send(thread_id))["type"] == "ack"


async def test_what_was_stored_while_nats_was_unreachable_is_not_missing(
    house: House, edge: Edge
) -> None:
    # Given a subscriber on an edge that loses its connection for a moment
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    await ava.subscribe(thread_id)
    await ava.send(thread_id, "before")
    house.nats.restart(kill=True)
    await house.eventually(lambda: _is_ready(edge))
    ack = await ava.send(thread_id, "after")
    # Then its chain has no hole
    frames = [await ava.next("message.new") for _ in range(2)]
    assert [frame["body"] for frame in frames] == ["before", "after"]
    assert frames[1]["prev_seq"] == frames[0]["seq"]
    assert frames[1]["seq"] == ack["seq"]


def start_process(settings_of: Edge) -> "subprocess.Popen[bytes]":
    """Start ``python -m edge`` with the settings of an edge that is not started here."""
    settings = settings_of.settings
    environment = {
        "PATH": os.environ["PATH"],
        "NATS_URL": settings.nats_url,
        "JWT_SECRET": SECRET,
        "MESSAGING_WS_PORT": str(settings.messaging_ws_port),
        "MESSAGING_HEALTH_PORT": str(settings.messaging_health_port),
        "MESSAGING_NODE_NAME": settings.messaging_node_name,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "edge"], env=environment, cwd=Path(__file__).parents[2]
    )


async def test_two_processes_share_a_port_and_sigterm_drains(house: House) -> None:
    # Given two edge processes on one port
    first = Edge(house.settings())
    second = Edge(house.settings(messaging_ws_port=first.settings.messaging_ws_port))
    processes = [start_process(edge) for edge in (first, second)]
    try:
        for edge in (first, second):
            await house.eventually(lambda edge=edge: _is_ready(edge))  # type: ignore[misc]
        thread_id = await house.thread("ava")
        clients = [await house.client(first, "ava") for _ in range(30)]
        shares = [await edge.metric("messaging_edge_sessions") for edge in (first, second)]
        assert sum(shares) == 30
        assert all(shares)
        # When both are told to stop, then they drain and end well
        assert (await clients[0].send(thread_id))["type"] == "ack"
        for process in processes:
            process.send_signal(signal.SIGTERM)
        assert [await client.closed() for client in clients] == [1012] * 30
        await house.eventually(lambda: all(process.poll() == 0 for process in processes))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


async def _is_ready(edge: Edge) -> bool:
    try:
        status, _ = await edge.ops("/readyz")
    except OSError:
        return False
    return status == 200
