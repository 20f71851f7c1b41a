"""Connections come and go: which edge is next, when the client stops, tokens that expire."""

import asyncio
import random
from typing import Any

import pytest

from lilith_client import (
    Client,
    CommandError,
    Event,
    StoppedError,
)
from tests.sdk.scripted import HELLO, Api, Edge, Fabric, Reader, platform, refusing
from tests.support.eventually import eventually

pytestmark = pytest.mark.usefixtures("quick_reconnects")


async def test_the_next_edge_serves_a_client_whose_edge_is_gone() -> None:
    async with platform(edges=2) as (fabric, [first, second], api):
        reader = Reader()
        addresses = [first.address, second.address]
        async with Client(addresses, "token", api=api.address, on_event=reader) as client:
            await client.subscribe("t")
            await client.send("t", "one")
            # When its edge dies, and others write meanwhile
            await first.stop()
            fabric.store("t", "two")
            await client.send("t", "three")
            # Then it goes on with the other one and nothing is missing
            assert len(second.sockets) == 1
            await eventually(lambda: reader.bodies == ["one", "two", "three"])
            [gone] = reader.of("client.disconnected")[:1]
            assert gone.data["code"] == 1006
        await first.start()


async def test_an_edge_that_drains_is_left_before_it_closes() -> None:
    reader = Reader()
    async with (
        platform(edges=2) as (_fabric, [first, second], _api),
        Client([first.address, second.address], "token", on_event=reader) as client,
    ):
        await first.say({"type": "server.draining", "reconnect_after_ms": 500})
        await eventually(lambda: len(second.sockets) == 1)
        await client.send("t", "on the other one")
        # It has waited before it left, so it does not wait again
        [gone] = reader.of("client.disconnected")
        assert gone.data["retry_in_s"] == 0.0


@pytest.mark.parametrize("code", [4500, 4501, 4503, 4504])
async def test_a_final_close_code_stops_the_client(
    one_edge: tuple[Fabric, Edge, Api], code: int
) -> None:
    _fabric, edge, _api = one_edge
    async with Client([edge.address], "token") as client:
        waiting = asyncio.create_task(_first_after_connecting(client))
        await edge.close_all(code)
        with pytest.raises(StoppedError) as stopped:
            await waiting
        assert stopped.value.code == code
        with pytest.raises(StoppedError):
            await client.send("t", "too late")
        assert edge.handshakes == 1


async def _first_after_connecting(client: Client) -> Event:
    async for event in client.events():
        if event.type != "client.connected":
            return event
    raise AssertionError("closed")


@pytest.mark.parametrize("code", [1012, 1013, 4408, 4409, 4429])
async def test_any_other_close_code_brings_the_client_back(
    one_edge: tuple[Fabric, Edge, Api], code: int
) -> None:
    _fabric, edge, _api = one_edge
    async with Client([edge.address], "token") as client:
        await edge.close_all(code)
        await eventually(lambda: edge.handshakes == 2)
        await client.send("t", "back")


@pytest.mark.parametrize(
    ("held_s", "waits"), [(0.0, [0.01, 0.01, 0.01]), (60.0, [0.01, 0.02, 0.04])]
)
async def test_connections_that_hold_are_followed_by_short_waits_and_others_by_longer_ones(
    one_edge: tuple[Fabric, Edge, Api],
    monkeypatch: pytest.MonkeyPatch,
    held_s: float,
    waits: list[float],
) -> None:
    # Given waits that are always the longest possible ones, from 10 ms on
    _fabric, edge, _api = one_edge
    monkeypatch.setattr(random.Random, "uniform", lambda _self, _a, b: b)
    monkeypatch.setattr("lilith_client.policy.BACKOFF_BASE_S", 0.01)
    monkeypatch.setattr("lilith_client.connection.HELD_LONG_ENOUGH_S", held_s)
    reader = Reader()
    async with Client([edge.address], "token", on_event=reader):
        # When the connection ends again and again
        for _ in range(3):
            await eventually(lambda: edge.sockets)
            await edge.close_all(1012)
            await eventually(lambda: not edge.sockets)
        await eventually(lambda: len(reader.of("client.disconnected")) == 3)
    # Then the waits grow exactly when the connections were short
    assert [event.data["retry_in_s"] for event in reader.of("client.disconnected")] == waits


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_handshake_refused_for_good_is_reported_and_not_repeated(
    one_edge: tuple[Fabric, Edge, Api], status: int
) -> None:
    fabric, edge, _ = one_edge
    fabric.refuse_handshake = status
    with pytest.raises(StoppedError) as stopped:
        await Client([edge.address], "token").connect()
    assert stopped.value.code == status
    assert edge.handshakes == 1


async def test_an_overloaded_edge_is_tried_again(one_edge: tuple[Fabric, Edge, Api]) -> None:
    fabric, edge, _ = one_edge
    fabric.refuse_handshake = 503
    client = Client([edge.address], "token")
    connecting = asyncio.create_task(client.connect())
    await eventually(lambda: edge.handshakes >= 2)
    fabric.refuse_handshake = None
    assert (await connecting).node == "edge-0"
    await client.close()


async def test_nobody_there_is_a_timeout_and_leaves_nothing_running() -> None:
    client = Client(["ws://127.0.0.1:9/ws/messaging"], "token")
    with pytest.raises(TimeoutError):
        await client.connect(timeout_s=0.3)
    assert {task.get_name() for task in asyncio.all_tasks()} & {"lilith-client"} == set()


async def test_the_first_frame_can_carry_the_token_instead_of_a_header() -> None:
    async with platform() as (_fabric, [edge], _api):
        edge.frame_auth = True
        async with Client([edge.address], "token", authenticate="frame") as client:
            await client.send("t", "as browsers do")


async def test_a_source_of_tokens_is_asked_again_after_a_refused_one(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    _, edge, _ = one_edge
    tokens = iter(["expired", "token"])

    async def fresh() -> str:
        return next(tokens)

    async with Client([edge.address], fresh) as client:
        assert client.hello is not None
    assert edge.handshakes == 2


async def test_a_token_is_renewed_before_it_expires(one_edge: tuple[Fabric, Edge, Api]) -> None:
    fabric, edge, _ = one_edge
    # Given a token that expires in two seconds of the server's clock
    fabric.greeting = {**HELLO, "token_expires_at": "2026-11-24T12:00:02.000Z"}

    async def fresh() -> str:
        return "token"

    async with Client([edge.address], fresh):
        # Then a new one is put in on the same connection
        await eventually(lambda: fabric.sent("auth"))
    assert edge.handshakes == 1


async def test_a_refused_renewal_keeps_the_old_token(one_edge: tuple[Fabric, Edge, Api]) -> None:
    fabric, edge, _ = one_edge
    fabric.on_command = refusing("auth", "unauthorized")
    async with Client([edge.address], "token") as client:
        with pytest.raises(CommandError, match="unauthorized"):
            await client.renew_token("bad")
        await edge.close_all(1012)
        await eventually(lambda: edge.handshakes == 2)
        await client.send("t", "with the old one")


@pytest.mark.parametrize(
    "nonsense", [{"type": "hello"}, {**HELLO, "server_time": "noon"}], ids=["empty", "no time"]
)
async def test_a_greeting_that_is_none_is_not_taken_for_one(
    one_edge: tuple[Fabric, Edge, Api], nonsense: dict[str, Any]
) -> None:
    fabric, edge, _ = one_edge
    fabric.greeting = nonsense
    client = Client([edge.address], "token")
    connecting = asyncio.create_task(client.connect())
    await eventually(lambda: edge.handshakes > 1)
    fabric.greeting = HELLO
    await connecting
    await client.close()


async def test_a_server_that_talks_nonsense_is_left_and_tried_again(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    _fabric, edge, _api = one_edge
    async with Client([edge.address], "token") as client:
        await edge.say({"type": "message.new", "thread_id": "t"})
        await edge.say({"type": "error"})
        await eventually(lambda: edge.handshakes == 2)
        await client.send("t", "fine")
