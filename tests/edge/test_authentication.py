"""Who gets in: tokens in the header or the first frame, renewal, expiry."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from websockets.exceptions import InvalidStatus

from edge import session
from shared.identity import new_id
from tests.edge.house import SECRET, Client, Edge, House


@pytest.fixture
async def edge(house: House) -> Edge:
    """One edge."""
    return await house.edge()


def signed(algorithm: str | None = "HS256", key: str = SECRET, **changes: Any) -> str:  # noqa: ANN401
    """Return a token with other claims than it should have; None takes a claim away."""
    now = int(time.time())
    claims = {"sub": "ava", "iat": now, "exp": now + 600, **changes}
    return jwt.encode(
        {name: value for name, value in claims.items() if value is not None}, key, algorithm
    )


BAD_TOKENS: dict[str, Callable[[], str]] = {
    "no exp": lambda: signed(exp=None),
    "no sub": lambda: signed(sub=None),
    "no iat": lambda: signed(iat=None),
    "alg none": lambda: signed(algorithm=None, key=""),
    "other alg": lambda: signed(algorithm="HS512", key=SECRET * 2),
    "other key": lambda: signed(key="x" * 40),
    "wildcard sub": lambda: signed(sub="*"),
    "unknown role": lambda: signed(role="emperor"),
    "no token": lambda: "rubbish",
    "empty": lambda: "",
    "too long": lambda: signed(pad="x" * 5_000),
}


async def first_frame(house: House, edge: Edge, token: str, **fields: Any) -> Client:  # noqa: ANN401
    client = await house.raw_client(edge)
    await client.say(type="auth", token=token, **fields)
    return client


async def test_hello_says_what_a_client_must_know(house: House) -> None:
    edge = await house.edge(messaging_throttle_limit=100, messaging_enable_clips=False)
    expires = int(time.time()) + 600
    client = await first_frame(house, edge, signed(exp=expires))
    hello = await client.next()
    moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(expires))
    assert hello.pop("server_time").endswith("Z")
    assert len(hello.pop("session_id")) == 32
    assert hello == {
        "type": "hello",
        "protocol": "messaging.v1.json",
        "user_id": "ava",
        "node": edge.settings.messaging_node_name,
        "heartbeat_s": 20.0,
        "token_expires_at": moment,
        "features": {"clips": False, "analytics": True, "typing": True, "receipts": True},
        "quota": {"gated": False, "remaining": None},
        "limits": {
            "frame_bytes": 65_536,
            "body_chars": 4_000,
            "attachments": 10,
            "subscriptions": 128,
            "rate": {"limit": 100, "window_ms": 60_000},
        },
    }


async def test_a_first_frame_with_ref_gets_hello_and_then_its_ack(house: House, edge: Edge) -> None:
    client = await first_frame(house, edge, signed(), ref="r1")
    hello, ack = await client.next(), await client.next()
    assert (hello["type"], ack["type"]) == ("hello", "ack")
    assert ack == {"type": "ack", "ref": "r1", "token_expires_at": hello["token_expires_at"]}


async def test_a_bad_token_is_refused_in_the_header_and_in_the_first_frame(
    house: House, edge: Edge
) -> None:
    for name, make in BAD_TOKENS.items():
        with pytest.raises(InvalidStatus) as refused:
            await house.open(edge, additional_headers={"Authorization": f"Bearer {make()}"})
        assert refused.value.response.status_code == 401, name
        client = await first_frame(house, edge, make())
        assert await client.closed() == 4501, name


async def test_an_expired_token_is_401_in_the_header_and_4401_in_the_frame(
    house: House, edge: Edge
) -> None:
    token = signed(exp=int(time.time()) - 1)
    with pytest.raises(InvalidStatus) as refused:
        await house.open(edge, additional_headers={"Authorization": f"Bearer {token}"})
    assert refused.value.response.status_code == 401
    assert await (await first_frame(house, edge, token)).closed() == 4401


async def test_another_scheme_is_refused(house: House, edge: Edge) -> None:
    for scheme in ("Basic YTpi", "Bearer", "bearer x"):
        with pytest.raises(InvalidStatus) as refused:
            await house.open(edge, additional_headers={"Authorization": scheme})
        assert refused.value.response.status_code == 401
        assert refused.value.response.headers["WWW-Authenticate"] == "Bearer"


async def test_anything_else_first_closes_with_4500(house: House, edge: Edge) -> None:
    texts = ['{"type":"ping"}', "not json", "[]", '{"type":"message.send"}', '{"type":"auth"}']
    for text in texts:
        client = await house.raw_client(edge)
        await client.say_raw(text)
        assert await client.closed() == 4500, text
    assert await house.stored() == 0


async def test_silence_closes_with_4500(
    house: House, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an edge that waits one second instead of five
    assert session.AUTH_S == 5.0
    monkeypatch.setattr(session, "AUTH_S", 1.0)
    client = await house.raw_client(edge)
    started = time.monotonic()
    assert await client.closed() == 4500
    assert 0.9 < time.monotonic() - started < 3

    async def is_counted() -> bool:
        return await edge.metric('messaging_edge_closes_total{code="4500"}') == 1

    await house.eventually(is_counted)


async def test_a_renewed_token_moves_the_end_and_the_old_one_is_forgotten(
    house: House, edge: Edge
) -> None:
    # Given a session whose token ends in two seconds
    client = await first_frame(house, edge, signed(exp=int(time.time()) + 2))
    hello = await client.next("hello")
    # When it is renewed
    ack = await client.ask("auth", token=signed(exp=int(time.time()) + 600))
    assert ack["token_expires_at"] > hello["token_expires_at"]
    # Then the session outlives the first token
    await client.silence(for_s=3.5)
    assert (await client.ask("ping"))["type"] == "pong"


async def test_at_its_end_the_socket_closes_with_4401_within_two_seconds(
    house: House, edge: Edge
) -> None:
    expires = int(time.time()) + 2
    client = await first_frame(house, edge, signed(exp=expires))
    assert await client.closed() == 4401
    assert expires <= time.time() < expires + 2


async def test_renewing_with_a_bad_token_is_an_error_and_the_old_one_stays(
    house: House, edge: Edge
) -> None:
    client = await house.client(edge, "ava")
    for name in BAD_TOKENS:
        error = await client.ask("auth", token=BAD_TOKENS[name]())
        assert (error["type"], error["code"]) == ("error", "unauthorized"), name
        assert (await client.ask("ping"))["type"] == "pong"


async def test_renewing_as_somebody_else_closes_with_4501(house: House, edge: Edge) -> None:
    client = await house.client(edge, "ava")
    await client.say(type="auth", ref="1", token=house.token("ben"))
    assert await client.closed() == 4501


async def test_a_user_who_is_unknown_or_changed_is_introduced_to_the_api(
    house: House, edge: Edge
) -> None:
    # Given an api that listens, and a user it knows
    seen: list[bytes] = []

    async def handle(body: bytes) -> bytes:
        seen.append(body)
        return b"{}"

    api = await house.bus("api")
    api.serve("svc.user.seen", "api", handle, concurrency=1)
    await api.flush()
    await house.user("ava", "Ava", role="client")
    # When that user, a stranger and the same user in another role connect
    await house.client(edge, "ava", token=house.token("ava", name="Ava"))
    await house.client(edge, "zoe", token=house.token("zoe", name="Zoe"))
    await house.client(edge, "ava", token=house.token("ava", role="creator", name="Ava"))
    # Then the api hears of what it did not know
    await house.eventually(lambda: len(seen) == 2)
    assert sorted(seen) == [
        b'{"user_id":"ava","name":"Ava","role":"creator"}',
        b'{"user_id":"zoe","name":"Zoe","role":"client"}',
    ]


async def test_a_changed_role_is_told_even_while_the_user_is_being_introduced(
    house: House, edge: Edge
) -> None:
    # Given an api that takes its time
    seen: list[bytes] = []

    async def handle(body: bytes) -> bytes:
        seen.append(body)
        await asyncio.sleep(0.3)
        return b"{}"

    api = await house.bus("api")
    api.serve("svc.user.seen", "api", handle, concurrency=1)
    await api.flush()
    # When a user comes in two roles at once
    for role in ("client", "creator"):
        await house.client(edge, "ava", token=house.token("ava", role=role))
    # Then the second one is told after the first
    await house.eventually(lambda: len(seen) == 2)
    assert [b"creator" in body for body in seen] == [False, True]


async def test_nobody_waits_for_an_introduction(house: House, edge: Edge) -> None:
    # Given no api at all
    thread_id = await house.thread("ava")
    client = await house.client(edge, "ava")
    assert (await client.send(thread_id, client_msg_id=new_id()))["type"] == "ack"
