"""Bans and revoked tokens at an edge: refused at the door, closed at once, and nothing accepted while not certain."""

import asyncio
import time
from typing import Any

import jwt
import msgspec
import pytest
from websockets.exceptions import InvalidStatus

from edge import gateway
from edge.standing import Standing
from shared.identity import new_id
from shared.standing import FOREVER, StandingEntry, StandingMirror
from shared.subjects import STANDING_BUCKET
from tests.edge.house import SECRET, Client, Edge, House


@pytest.fixture
async def edge(house: House) -> Edge:
    """One edge."""
    return await house.edge()


async def write(house: House, user: str, revision: int = 1, **fields: Any) -> None:  # noqa: ANN401
    """Write the standing of a user as the api does."""
    bus = await house.bus("api")
    value = msgspec.json.encode(StandingEntry(user, revision, **fields))
    await bus.kv_put(STANDING_BUCKET, user, value, expected=None)


async def ban(house: House, user: str, revision: int = 1) -> None:
    """Ban a user for ever."""
    await write(house, user, revision, banned_until=FOREVER, reason="spam")


def token_of(user: str, *, issued_s_ago: int) -> str:
    """Return a token that was made so long ago."""
    now = int(time.time())
    claims = {"sub": user, "iat": now - issued_s_ago, "exp": now + 600}
    return jwt.encode(claims, SECRET, algorithm="HS256")


async def refusal(house: House, edge: Edge, token: str) -> tuple[int, str]:
    """Return status and code with which a token in the header is refused."""
    with pytest.raises(InvalidStatus) as refused:
        await house.open(edge, additional_headers={"Authorization": f"Bearer {token}"})
    problem = msgspec.json.decode(refused.value.response.body)
    return refused.value.response.status_code, problem["code"]


async def first_frame(house: House, edge: Edge, token: str) -> Client:
    """Return a client that gave its token as a browser does."""
    client = await house.raw_client(edge)
    await client.say(type="auth", token=token)
    return client


def deafen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every announcement of the bucket be lost from now on."""
    monkeypatch.setattr(StandingMirror, "_receive", lambda *_: None)


# ------------------------------------------------------------------ the door


async def test_a_banned_user_is_refused_at_the_door(house: House, edge: Edge) -> None:
    # Given somebody who is banned
    await ban(house, "eve")
    await house.eventually(lambda: _entries(edge, 1))
    # When they come with a header, or with a first frame
    assert await refusal(house, edge, house.token("eve")) == (403, "banned")
    client = await first_frame(house, edge, house.token("eve"))
    # Then they are told so, and not to come back
    assert await client.closed() == 4503
    assert await edge.metric('messaging_edge_handshakes_total{result="403"}') == 1
    assert await edge.metric("messaging_edge_sessions") == 0
    # And others are not concerned
    await house.client(edge, "ava")


async def test_an_edge_that_starts_knows_who_is_banned(house: House) -> None:
    await ban(house, "eve")
    edge = await house.edge()
    assert await refusal(house, edge, house.token("eve")) == (403, "banned")


async def test_a_deactivated_user_is_refused_like_a_banned_one(house: House, edge: Edge) -> None:
    eve = await house.client(edge, "eve")
    await write(house, "eve", deactivated=True)
    assert await eve.closed() == 4503
    assert await refusal(house, edge, house.token("eve")) == (403, "banned")


async def test_without_the_door_a_banned_user_would_come_in(
    house: House, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Standing, "why_closed", lambda *_: None)
    await ban(house, "eve")
    await house.eventually(lambda: _entries(edge, 1))
    await house.client(edge, "eve")


async def test_a_ban_that_is_lifted_or_over_lets_in_again(house: House, edge: Edge) -> None:
    await ban(house, "eve")
    await write(house, "adam", banned_until="2020-01-01T00:00:00.000Z")
    await house.eventually(lambda: _entries(edge, 2))
    await house.client(edge, "adam")
    await write(house, "eve", 2)

    async def is_in() -> bool:
        try:
            await house.client(edge, "eve")
        except InvalidStatus:
            return False
        return True

    await house.eventually(is_in)


# ------------------------------------------------------------------ open sockets


async def test_a_ban_closes_every_socket_of_the_user_on_every_edge(
    house: House, edge: Edge
) -> None:
    # Given a user with sockets on two edges, and somebody else
    other = await house.edge()
    eves = [await house.client(where, "eve") for where in (edge, edge, other)]
    ava = await house.client(edge, "ava")
    # When they are banned
    await ban(house, "eve")
    # Then all of their sockets are closed, and nobody else's
    assert [await eve.closed() for eve in eves] == [4503] * 3
    assert (await ava.ask("ping"))["type"] == "pong"
    assert await edge.metric('messaging_edge_closes_total{code="4503"}') == 2


async def test_the_next_frame_of_a_banned_user_is_refused_before_anything_looks_at_it(
    house: House, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a socket that was not closed, whatever the reason
    monkeypatch.setattr(Standing, "_react", lambda *_: None)
    other = await house.edge()
    thread_id = await house.thread("eve")
    eve = await house.client(other, "eve")
    assert (await eve.send(thread_id))["type"] == "ack"
    await ban(house, "eve")
    await house.eventually(lambda: _entries(other, 1))
    # When its user sends, or says what cannot be read
    await eve.say(type="message.send", thread_id=thread_id, client_msg_id=new_id(), body="no")
    # Then the socket is closed, and nothing was stored
    assert await eve.closed() == 4503
    assert await house.stored() == 1


async def test_without_that_look_the_frame_would_be_stored(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Standing, "_react", lambda *_: None)
    monkeypatch.setattr(Standing, "why_closed", lambda *_: None)
    edge = await house.edge()
    thread_id = await house.thread("eve")
    eve = await house.client(edge, "eve")
    await ban(house, "eve")
    await house.eventually(lambda: _entries(edge, 1))
    assert (await eve.send(thread_id))["type"] == "ack"


async def test_a_lost_announcement_of_a_ban_bites_within_a_second(
    house: House, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an edge that hears nothing of the bucket any more
    eve = await house.client(edge, "eve")
    deafen(monkeypatch)
    deaf = await house.edge()
    eve = await house.client(deaf, "eve")
    # When the user is banned
    await ban(house, "eve")
    began = time.monotonic()
    # Then the comparison finds it, though the user says nothing
    assert await eve.closed() == 4503
    assert time.monotonic() - began < 1.5


# ------------------------------------------------------------------ log out everywhere


async def test_revoked_tokens_are_refused_and_their_sockets_closed(
    house: House, edge: Edge
) -> None:
    # Given one user with an older and a newer token
    older, newer = token_of("ava", issued_s_ago=60), token_of("ava", issued_s_ago=0)
    lost = await house.client(edge, "ava", token=older)
    kept = await house.client(edge, "ava", token=newer)
    # When everything before now is revoked
    await write(house, "ava", min_iat=int(time.time()) - 30)
    # Then sockets of older tokens are closed for good, and those of newer ones are not
    assert await lost.closed() == 4501
    assert (await kept.ask("ping"))["type"] == "pong"
    # And the older token is refused everywhere
    assert await refusal(house, edge, older) == (401, "unauthorized")
    assert await (await first_frame(house, edge, older)).closed() == 4501
    assert (await kept.ask("auth", token=older))["code"] == "unauthorized"
    assert (await kept.ask("auth", token=newer))["type"] == "ack"


# ------------------------------------------------------------------ not certain


async def test_while_bans_are_not_certain_nobody_comes_in_and_frames_wait(
    house: House, edge: Edge
) -> None:
    # Given a session, and an edge that loses NATS
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    assert (await ava.send(thread_id, "before"))["type"] == "ack"
    house.nats.kill9()
    await house.eventually(lambda: _is_unconfirmed(edge))
    # When somebody comes, and the session says something
    assert await refusal(house, edge, house.token("ben")) == (503, "unavailable")
    assert (await edge.ops("/readyz"))[0] == 503
    await ava.say(
        type="message.send", ref="x", thread_id=thread_id, client_msg_id=new_id(), body="waits"
    )
    # Then nothing is accepted
    await ava.silence(for_s=0.5)
    # And when NATS is back, what waited is done
    house.nats.start()
    assert (await ava.answer("x"))["type"] == "ack"
    assert await house.stored() == 2


async def test_a_user_banned_meanwhile_is_gone_before_their_frame_is_looked_at(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    eve, thread_id, readable = await _misses_a_ban(house, monkeypatch)
    # Then, when the bucket was read, the socket is closed and the frame was never taken
    readable.set()
    assert await eve.closed() == 4503
    assert await house.stored() == 1
    assert thread_id


async def test_without_the_certainty_that_frame_would_be_stored(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandingMirror, "is_confirmed", property(lambda _self: True))
    eve, _, readable = await _misses_a_ban(house, monkeypatch)
    assert (await eve.answer("x"))["type"] == "ack"
    assert await house.stored() == 2
    readable.set()


async def test_an_edge_that_stays_uncertain_sends_its_clients_elsewhere(
    house: House, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an edge that is connected and yet cannot read the bucket
    monkeypatch.setattr(gateway, "FABRIC_AWAY_S", 0.5)
    monkeypatch.setattr("shared.standing.CONFIRMED_S", 0.3)
    ava = await house.client(edge, "ava")
    late = await house.raw_client(edge)

    async def fails(_self: StandingMirror) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(StandingMirror, "check", fails)
    # Then sockets are closed as without NATS, those that have not said yet who they are too
    assert await ava.closed() == 1013
    assert await late.closed() == 1013


async def _misses_a_ban(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> tuple[Client, str, asyncio.Event]:
    """An edge whose connections break, a ban that it does not hear of, and a frame of the banned user."""
    check = StandingMirror.check
    readable = asyncio.Event()
    readable.set()

    async def gated(self: StandingMirror) -> None:
        await readable.wait()
        await check(self)

    monkeypatch.setattr(StandingMirror, "check", gated)
    deafen(monkeypatch)
    edge = await house.edge()
    thread_id = await house.thread("eve")
    eve = await house.client(edge, "eve")
    assert (await eve.send(thread_id))["type"] == "ack"
    readable.clear()
    house.nats.restart(kill=True)

    async def is_connected() -> bool:
        return await edge.metric("messaging_nats_connected") == 1

    await house.eventually(is_connected)
    bus = await house.bus("api")
    await house.eventually(lambda: bus.connected)
    await ban(house, "eve")
    await eve.say(
        type="message.send", ref="x", thread_id=thread_id, client_msg_id=new_id(), body="no"
    )
    await asyncio.sleep(0.3)
    return eve, thread_id, readable


async def _entries(edge: Edge, count: int) -> bool:
    return await edge.metric("messaging_standing_entries") == count


async def _is_unconfirmed(edge: Edge) -> bool:
    return await edge.metric("messaging_standing_confirmed") == 0
