"""The opening handshake: what is no handshake, who may come from where, how many."""

import asyncio
import json
import time
from contextlib import suppress

import pytest
from websockets.exceptions import InvalidStatus

from edge import connection
from shared.protocol import PATH
from tests.edge.house import Edge, House, http_say

UPGRADE = (
    "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


@pytest.fixture
async def edge(house: House) -> Edge:
    """One edge."""
    return await house.edge()


async def say(edge: Edge, request: str) -> tuple[int, dict[str, str], str]:
    return await http_say("127.0.0.1", edge.settings.messaging_ws_port, request)


REFUSED = {
    "another path": (f"GET /other HTTP/1.1\r\n{UPGRADE}\r\n", 404, "not_found"),
    "the root": (f"GET / HTTP/1.1\r\n{UPGRADE}\r\n", 404, "not_found"),
    "a longer path": (f"GET {PATH}/x HTTP/1.1\r\n{UPGRADE}\r\n", 404, "not_found"),
    "a plain get": (f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n", 426, "unsupported"),
    "another upgrade": (
        f"GET {PATH} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        426,
        "unsupported",
    ),
    "another method": (f"POST {PATH} HTTP/1.1\r\n{UPGRADE}\r\n", 405, "method_not_allowed"),
    "no key": (
        f"GET {PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n",
        400,
        "unsupported",
    ),
    "another version": (
        f"GET {PATH} HTTP/1.1\r\n{UPGRADE.replace('13', '8')}\r\n",
        400,
        "unsupported",
    ),
    "http 1.0": (f"GET {PATH} HTTP/1.0\r\n{UPGRADE}\r\n", 505, "unsupported"),
    "only unknown subprotocols": (
        f"GET {PATH} HTTP/1.1\r\n{UPGRADE}Sec-WebSocket-Protocol: graphql, mqtt\r\n\r\n",
        400,
        "unsupported",
    ),
    "a foreign origin": (
        f"GET {PATH} HTTP/1.1\r\n{UPGRADE}Origin: https://evil.example\r\n\r\n",
        403,
        "forbidden",
    ),
    "the null origin": (
        f"GET {PATH} HTTP/1.1\r\n{UPGRADE}Origin: null\r\n\r\n",
        403,
        "forbidden",
    ),
    "two tokens": (
        f"GET {PATH} HTTP/1.1\r\n{UPGRADE}Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
        401,
        "unauthorized",
    ),
    "a long line": (f"GET {PATH}?{'x' * 9_000} HTTP/1.1\r\n{UPGRADE}\r\n", 414, "too_large"),
    "a long header": (
        f"GET {PATH} HTTP/1.1\r\n{UPGRADE}X: {'x' * 9_000}\r\n\r\n",
        431,
        "too_large",
    ),
    "many headers": (
        f"GET {PATH} HTTP/1.1\r\n{UPGRADE}" + "X: y\r\n" * 130 + "\r\n",
        431,
        "too_large",
    ),
    "no http": ("hello there\r\n\r\n", 400, "unsupported"),
}


async def test_what_is_refused_is_a_problem_document(edge: Edge) -> None:
    for name, (request, status, code) in REFUSED.items():
        answer, headers, body = await say(edge, request)
        assert answer == status, name
        assert headers["content-type"] == "application/problem+json", name
        problem = json.loads(body)
        assert {"type", "title", "status", "detail", "code", "errors", "trace_id"} == set(problem)
        assert (problem["status"], problem["code"]) == (status, code), name
        assert problem["type"] == f"/problems/{code}"


async def test_a_refused_upgrade_says_what_is_spoken_here(edge: Edge) -> None:
    _, headers, _ = await say(edge, REFUSED["a plain get"][0])
    assert headers["upgrade"] == "websocket"
    _, headers, _ = await say(edge, REFUSED["another method"][0])
    assert headers["allow"] == "GET"


async def test_no_subprotocol_is_fine_and_ours_is_chosen_among_others(
    house: House, edge: Edge
) -> None:
    plain = await house.open(edge)
    assert plain.subprotocol is None
    chosen = await house.open(edge, subprotocols=["graphql", "messaging.v1.json"])
    assert chosen.subprotocol == "messaging.v1.json"


async def test_an_allowed_origin_comes_in_in_both_spellings_of_the_api(
    house: House, edge: Edge
) -> None:
    port = edge.settings.messaging_api_port
    for host in ("127.0.0.1", "localhost"):
        await house.open(edge, origin=f"http://{host}:{port}")
    with pytest.raises(InvalidStatus):
        await house.open(edge, origin=f"http://localhost:{port + 1}")


async def test_only_configured_origins_come_in_and_null_never(house: House) -> None:
    edge = await house.edge(messaging_allowed_origins="https://chat.example, null")
    await house.open(edge, origin="https://chat.example")
    for origin in ("null", "https://chat.example.evil", "http://chat.example"):
        with pytest.raises(InvalidStatus):
            await house.open(edge, origin=origin)


async def test_compression_is_off_unless_switched_on(house: House, edge: Edge) -> None:
    off = await house.open(edge, compression="deflate")
    assert off.protocol.extensions == []
    compressing = await house.edge(messaging_ws_compression=True)
    thread_id = await house.thread("ava")
    ava = await house.client(compressing, "ava", compression="deflate")
    assert len(ava.socket.protocol.extensions) == 1
    await ava.subscribe(thread_id)
    for number in range(5):
        await ava.send(thread_id, "long " * 500 + str(number))
    bodies = [(await ava.next("message.new"))["body"][-1] for _ in range(5)]
    assert bodies == list("01234")


async def test_beyond_the_cap_the_handshake_gets_503(house: House) -> None:
    edge = await house.edge(messaging_connections_max=2)
    first, _ = await house.open(edge), await house.open(edge)
    with pytest.raises(InvalidStatus) as refused:
        await house.open(edge)
    response = refused.value.response
    assert response.status_code == 503
    assert json.loads(response.body or b"")["code"] == "unavailable"
    assert response.headers["Retry-After"]
    assert await edge.metric('messaging_edge_handshakes_total{result="503"}') == 1
    # And a place that becomes free is given away
    await first.close()
    await house.open(edge)


async def test_beyond_the_cap_of_its_address_a_client_gets_429(house: House) -> None:
    edge = await house.edge(messaging_connections_per_address_max=2)
    _, last = await house.open(edge), await house.open(edge)
    with pytest.raises(InvalidStatus) as refused:
        await house.open(edge)
    assert refused.value.response.status_code == 429
    assert json.loads(refused.value.response.body or b"")["code"] == "rate_limited"
    assert await edge.metric('messaging_edge_handshakes_total{result="429"}') == 1
    # And other addresses still come in
    await house.open(edge, local_addr=("127.0.0.2", 0))
    await last.close()
    await house.open(edge)


async def test_a_handshake_that_takes_too_long_is_cut(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an edge that waits one second instead of five
    assert connection.HANDSHAKE_S == 5.0
    monkeypatch.setattr(connection, "HANDSHAKE_S", 1.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.messaging_ws_port)
    started = time.monotonic()
    writer.write(f"GET {PATH} HTTP/1.1\r\nHost:".encode())
    async with asyncio.timeout(10):
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
    assert 0.9 < time.monotonic() - started < 3
    assert await edge.metric('messaging_edge_handshakes_total{result="late"}') == 1
    writer.transport.abort()


async def test_a_command_right_behind_the_handshake_is_heard(house: House, edge: Edge) -> None:
    # Given a client that does not wait for the 101 before its first frame
    token = house.token("ava")
    auth = json.dumps({"type": "auth", "token": token}).encode()
    head = b"\x81\xfe" + len(auth).to_bytes(2, "big") + b"\0\0\0\0"
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.settings.messaging_ws_port)
    writer.write(f"GET {PATH} HTTP/1.1\r\n{UPGRADE}\r\n".encode() + head + auth)
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b'"type":"hello"')
    assert answer.startswith(b"HTTP/1.1 101 ")
    writer.transport.abort()


async def test_the_operations_port_answers(edge: Edge) -> None:
    assert (await edge.ops("/livez"))[0] == 200
    status, body = await edge.ops("/readyz")
    assert status == 200
    assert json.loads(body)["checks"] == {
        "nats": True,
        "gateway": True,
        "standing": True,
        "running": True,
    }
    status, text = await edge.ops("/metrics")
    assert status == 200
    assert "messaging_edge_connections " in text
