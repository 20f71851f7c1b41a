"""Limits that take more than one session to reach: one rate over all doors, slow readers, a persister that lags.

The others are reached beside what they bound: frames and bad frames in ``test_bad_input``, commands, limit errors and
dead peers in ``test_bounds``, sockets and handshakes in ``test_handshake``, late authentication in
``test_authentication``, subscriptions in ``test_subscriptions``, a lost fabric in ``test_drain``. Each has a metric.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from cli.ports import PortReservations
from edge import limits, outbound, session, subscribing
from shared import rate
from shared.cursors import decode_cursor
from shared.identity import ThreadId
from shared.sending import streams
from shared.subjects import RATE_STREAM
from tests.api.support import make_thread, message_body, running_api
from tests.edge.house import SECRET, Client, Edge, House
from tests.support.fabric import Fabric
from tests.support.servers import NatsServer

LIMIT = 100
WANTED = 600
HOUR_MS = 3_600_000
"""So long a window that its border does not come by during a test."""


@pytest.fixture
async def homes(fabric: Fabric, port_reservations: PortReservations) -> AsyncIterator[House]:
    """Edges on the fabric that the api uses too."""
    house = House(fabric.nats, port_reservations)
    try:
        yield house
    finally:
        await house.close()


async def _wants(homes: House, fabric: Fabric) -> tuple[int, int, list[Edge]]:
    """Let one user want 600 messages through three edges and the api; return what was taken and refused."""
    changes: dict[str, Any] = {"messaging_throttle_limit": LIMIT, "messaging_throttle_ttl": HOUR_MS}
    bus = await homes.bus("provision")
    config = (await bus.api(f"STREAM.INFO.{RATE_STREAM}"))["config"]
    await bus.api(f"STREAM.UPDATE.{RATE_STREAM}", {**config, "max_age": 2 * HOUR_MS * 1_000_000})
    edges = [await homes.edge(**changes) for _ in range(3)]
    async with running_api(fabric, jwt_secret=SECRET, **changes) as api:
        thread_id = (await make_thread(api.client("ben"), "ava"))["thread_id"]
        share = WANTED // 4
        sockets = [await homes.client(edge, "ava") for edge in edges]
        rest = api.client("ava")
        wanted = [asyncio.gather(*(_over_rest(rest, thread_id) for _ in range(share)))]
        wanted += [
            asyncio.create_task(_over_socket(socket, thread_id, share)) for socket in sockets
        ]
        answers = list(itertools.chain(*await asyncio.gather(*wanted)))
    assert len(answers) == WANTED
    return answers.count("taken"), answers.count("rate_limited"), edges


async def _over_socket(client: Client, thread_id: str, count: int) -> list[str]:
    answers = [await client.send(thread_id) for _ in range(count)]
    return ["taken" if one["type"] == "ack" else one["code"] for one in answers]


async def _over_rest(client: httpx.AsyncClient, thread_id: str) -> str:
    answer = await client.post("/api/messages", json=message_body(thread_id))
    return "taken" if answer.status_code == 201 else str(answer.json()["code"])


async def test_exactly_100_of_600_wanted_pass_over_three_edges_and_both_doors(
    homes: House, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a limit of 100, and sockets that may hear "no" more often than ten times
    monkeypatch.setattr(session, "LIMIT_ERRORS_MAX", WANTED)
    # When one user wants 600 through all doors at once
    taken, refused, edges = await _wants(homes, fabric)
    # Then exactly the limit passes, every other one hears why, and it is counted
    assert (taken, refused) == (LIMIT, WANTED - LIMIT)
    bus = await homes.bus("edge")
    stored = await bus.api("STREAM.INFO.MSG_0")
    assert stored["state"]["messages"] == LIMIT
    counted = [
        await edge.metric('messaging_edge_errors_total{code="rate_limited"}') for edge in edges
    ]
    assert sum(counted) > 0


async def test_without_the_shared_counter_more_would_pass(
    homes: House, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LIMIT_ERRORS_MAX", WANTED)
    counters = itertools.count()
    monkeypatch.setattr(
        rate, "rate_subject", lambda user, window: f"rate.{user}-{next(counters)}.{window}"
    )
    taken, _, _ = await _wants(homes, fabric)
    assert taken > LIMIT


async def test_a_slow_client_is_closed_and_resumes_without_a_hole(house: House) -> None:
    # Given a subscriber who stops reading
    edge = await house.edge()
    thread_id = await house.thread("ava", "slow")
    many = [await house.client(edge, "ava") for _ in range(10)]
    slow = await house.client(edge, "slow", receive_bytes=16 * 1024)
    cursor = (await slow.subscribe(thread_id))["cursor"]
    await slow.next("thread.caught_up")
    slow.socket.transport.pause_reading()
    # When far more is sent than its queue holds
    sent: list[int] = []
    while await edge.metric("messaging_edge_sessions") > len(many):
        acks = await asyncio.gather(*(one.send(thread_id, "x" * 4_000) for one in many))
        sent += [ack["seq"] for ack in acks]
    slow.socket.transport.resume_reading()
    assert await slow.closed() in (4408, 1006)
    assert await edge.metric('messaging_edge_closes_total{code="4408"}') == 1
    read = [frame["seq"] for frame in slow._waiting if frame["type"] == "message.new"]
    # Then it comes back with the last thing it read, and misses nothing
    last = max(read, default=decode_cursor(ThreadId(thread_id), cursor))
    again = await house.client(edge, "slow")
    after = next((frame["cursor"] for frame in slow._waiting if frame.get("seq") == last), cursor)
    ack = await again.subscribe(thread_id, after=after)
    assert ack["recovered"] is True, (len(sent), len(read), ack)
    missed = [await again.next("message.new") for _ in range(len(sent) - len(read))]
    assert [*read, *(frame["seq"] for frame in missed)] == sorted(sent)


async def test_without_the_limit_the_129th_subscription_would_be_taken(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "COMMANDS_PER_S", 1_000.0)
    monkeypatch.setattr(subscribing, "SUBSCRIPTIONS_MAX", 1_000)
    ava = await house.client(await house.edge(), "ava")
    for _ in range(129):
        await ava.subscribe(await house.thread("ava"))


async def test_without_a_bound_of_its_queue_a_slow_client_would_never_be_closed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "BYTES_MAX", 1 << 30)
    monkeypatch.setattr(outbound, "FRAMES_MAX", 1 << 30)
    edge = await house.edge()
    thread_id = await house.thread("ava", "slow")
    many = [await house.client(edge, "ava") for _ in range(10)]
    slow = await house.client(edge, "slow", receive_bytes=16 * 1024)
    await slow.subscribe(thread_id)
    await slow.next("thread.caught_up")
    slow.socket.transport.pause_reading()
    for _ in range(40):
        await asyncio.gather(*(one.send(thread_id, "x" * 4_000) for one in many))
    assert await edge.metric("messaging_edge_sessions") == len(many) + 1


@pytest.mark.parametrize("looks", [True, False], ids=["looks", "twin: does not look"])
async def test_sends_are_unavailable_while_the_persister_lags_half_of_the_logs_age(
    nats_server: NatsServer,
    port_reservations: PortReservations,
    monkeypatch: pytest.MonkeyPatch,
    *,
    looks: bool,
) -> None:
    # Given a log of two seconds, looked at ten times a second (or not at all), and nobody who persists it
    monkeypatch.setattr(streams, "CHECK_S", 0.1 if looks else 3600.0)
    timings: dict[str, Any] = {
        "messaging_log_age": 2,
        "messaging_dedupe_window": 1,
        "messaging_publish_budget": 0.3,
        "messaging_hold_expiry": 1,
    }
    house = House(nats_server, port_reservations)
    try:
        await house.provision(**timings)
        edge = await house.edge(**timings)
        thread_id = await house.thread("ava")
        ava = await house.client(edge, "ava")
        assert (await ava.send(thread_id))["type"] == "ack"

        # When the message is older than half of that
        async def is_refused() -> bool:
            return await edge.metric("messaging_sends_blocked_streams") == 1

        if not looks:
            await asyncio.sleep(1.5)
            assert (await ava.send(thread_id))["type"] == "ack"
            return
        await house.eventually(is_refused)
        # Then nothing is acknowledged that might not be kept
        answer = await ava.send(thread_id)
        assert (answer["code"], answer["retryable"]) == ("unavailable", True)
        assert await edge.metric('messaging_edge_errors_total{code="unavailable"}') == 1
    finally:
        await house.close()
