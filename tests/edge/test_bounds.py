"""Every bound of a session: slow readers, command rates, rate limits, dead peers."""

import asyncio
import time
from typing import Any

import pytest

from edge import connection
from edge.connection import WRITE_S
from edge.session import HEARTBEAT_S
from shared.identity import new_id
from tests.edge.house import Client, Edge, House


@pytest.fixture
async def edge(house: House) -> Edge:
    """One edge."""
    return await house.edge()


def small_buffers() -> dict[str, Any]:
    """Return a socket option: the kernel of this client takes little for it."""
    return {"receive_bytes": 16 * 1024}


def stop_reading(client: Client) -> None:
    """Let the client take nothing from its socket any more."""
    client.socket.transport.pause_reading()


async def test_a_slow_reader_is_closed_while_others_go_on(house: House, edge: Edge) -> None:
    # Given two subscribers, one of whom stops reading
    thread_id = await house.thread("ava", "ben", "slow")
    many = [await house.client(edge, "ava") for _ in range(20)]
    ava, ben = many[0], await house.client(edge, "ben")
    slow = await house.client(edge, "slow", **small_buffers())
    for client in (ben, slow):
        await client.subscribe(thread_id)
    stop_reading(slow)
    # When far more is sent at once than its queues hold
    started, worst_s = time.monotonic(), 0.0
    while await edge.metric('messaging_edge_closes_total{code="4408"}') == 0:
        at = time.monotonic()
        await asyncio.gather(*(senders.send(thread_id, "x" * 4_000) for senders in many))
        for _ in many:
            assert len((await ben.next("message.new"))["body"]) == 4_000
        worst_s = max(worst_s, time.monotonic() - at)
    # Then it was closed as slow, before any deadline, and the other one never waited for it
    assert time.monotonic() - started < WRITE_S
    assert worst_s < 2
    assert await edge.metric("messaging_edge_sessions") == len(many) + 1
    # And the one that reads again hears why, or finds its socket cut
    slow.socket.transport.resume_reading()
    assert await slow.closed() in (4408, 1006)
    await ava.send(thread_id, "after")
    assert (await ben.next("message.new"))["body"] == "after"


async def test_a_reader_that_takes_nothing_is_cut_after_the_write_deadline(
    house: House, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an edge that waits two seconds instead of five
    assert WRITE_S == 5.0
    monkeypatch.setattr(connection, "WRITE_S", 2.0)
    # And a subscriber who stops reading with a few frames more than the kernel takes
    thread_id = await house.thread("ava", "slow")
    ava = await house.client(edge, "ava")
    slow = await house.client(edge, "slow", **small_buffers())
    await slow.subscribe(thread_id)
    stop_reading(slow)
    await asyncio.sleep(0.05)
    for _ in range(90):
        await ava.send(thread_id, "x" * 4_000)
    assert await edge.metric("messaging_edge_sessions") == 2
    # Then its socket is cut after the write deadline, though its queue never overflowed
    started = time.monotonic()
    await house.eventually(lambda: _sessions(edge, 1))
    assert 0.5 < time.monotonic() - started < 4.5
    assert await edge.metric('messaging_edge_closes_total{code="4408"}') == 1


async def test_a_client_that_floods_pings_without_reading_is_closed(
    house: House, edge: Edge
) -> None:
    flood = await house.client(edge, "ava", **small_buffers())
    stop_reading(flood)
    started = time.monotonic()
    ping = b"\x89\xfd\0\0\0\0" + b"p" * 125
    for _ in range(200):
        if flood.socket.transport.is_closing():
            break
        flood.socket.transport.write(ping * 100)
        await asyncio.sleep(0.01)
    # Its pongs are bounded as its events are; nobody waits for the write deadline
    await house.eventually(lambda: _sessions(edge, 0))
    assert time.monotonic() - started < WRITE_S


async def test_the_31st_command_of_a_second_is_told_to_wait(house: House, edge: Edge) -> None:
    ava = await house.client(edge, "ava")
    for number in range(38):
        await ava.say(type="ping", ref=str(number))
    answers = [await ava.answer(str(number)) for number in range(38)]
    refused = [answer for answer in answers if answer["type"] == "error"]
    assert 1 <= len(refused) <= 8
    assert all(answer["code"] == "rate_limited" and answer["retryable"] for answer in refused)
    assert all(0 < answer["retry_after_ms"] <= 34 for answer in refused)
    counted = await edge.metric('messaging_edge_errors_total{code="rate_limited"}')
    assert counted == len(refused)
    # And after waiting it goes on
    await asyncio.sleep(0.1)
    assert (await ava.ask("ping"))["type"] == "pong"


async def test_the_tenth_limit_error_is_answered_and_then_closed_with_4429(
    house: House, edge: Edge
) -> None:
    ava = await house.client(edge, "ava")
    for number in range(100):
        await ava.say(type="ping", ref=str(number))
    errors = 0
    while errors < 10:
        errors += (await ava.next())["type"] == "error"
    assert await ava.closed() == 4429
    await house.eventually(lambda: _sessions(edge, 0))
    assert await edge.metric('messaging_edge_closes_total{code="4429"}') == 1


async def test_sends_are_counted_per_user_over_all_edges(house: House) -> None:
    # Given a limit of ten and a user on two edges
    edges = [await house.edge(messaging_throttle_limit=10) for _ in range(2)]
    thread_id = await house.thread("ava")
    clients = [await house.client(edge, "ava") for edge in edges]
    # When far more is sent than that
    answers = [await clients[number % 2].send(thread_id) for number in range(18)]
    # Then no more than ten are taken, and the others hear when to come back
    taken = [answer for answer in answers if answer["type"] == "ack"]
    refused = [answer for answer in answers if answer["type"] == "error"]
    assert len(taken) == await house.stored() <= 10
    assert len(taken) >= 8
    assert {answer["code"] for answer in refused} == {"rate_limited"}
    assert all(answer["retry_after_ms"] > 0 for answer in refused)


async def test_what_is_refused_for_another_reason_costs_nothing_of_the_limit(
    house: House,
) -> None:
    edge = await house.edge(messaging_throttle_limit=10)
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    for _ in range(20):
        assert (await ava.send(new_id()))["code"] == "not_found"
    assert (await ava.send(thread_id))["type"] == "ack"


async def test_a_peer_is_pinged_and_a_dead_one_is_cut(
    house: House, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an edge that pings every second instead of every twenty
    assert HEARTBEAT_S == 20.0
    monkeypatch.setattr(connection, "HEARTBEAT_S", 1.0)
    # And one client that answers pings, and one that answers nothing but keeps its socket
    alive = await house.client(edge, "ava")
    dead = await house.client(edge, "ben")
    dead.socket.transport.pause_reading()
    started = time.monotonic()
    # Then the dead one is cut a second after its ping, and the other one is not
    await house.eventually(lambda: _sessions(edge, 1))
    assert 1.5 < time.monotonic() - started < 6
    assert await edge.metric('messaging_edge_closes_total{code="lost"}') == 1
    await alive.silence(for_s=2.5)
    assert (await alive.ask("ping"))["type"] == "pong"


async def _sessions(edge: Edge, count: int) -> bool:
    return await edge.metric("messaging_edge_sessions") == count
