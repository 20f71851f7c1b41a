"""What a client missed: read again, once and in order, over whichever way there is."""

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from lilith_client import (
    Client,
    Position,
)
from tests.sdk.scripted import HELLO, Api, Edge, Fabric, Reader
from tests.support.eventually import eventually


@pytest.mark.parametrize("replays", [True, False], ids=["replayed by the edge", "filled over REST"])
async def test_what_was_missed_comes_once_in_order_after_a_reconnect(
    one_edge: tuple[Fabric, Edge, Api], replays: bool
) -> None:
    fabric, edge, api = one_edge
    fabric.replays = replays
    fabric.refuse_reads = 2  # REST is behind at first; a reader that gave up would have a hole.
    reader = Reader()
    async with Client([edge.address], "token", api=api.address, on_event=reader) as client:
        # Given a thread with one message seen
        await client.subscribe("t")
        await edge.post("t", "0")
        await eventually(lambda: reader.bodies == ["0"])
        # When five hundred are stored while the client is away, and more arrive at its return
        for number in range(1, 501):
            fabric.store("t", f"{number}")
        await edge.close_all(1012)
        await eventually(lambda: len(fabric.sent("thread.subscribe")) == 2)
        for number in range(501, 504):
            await edge.post("t", f"{number}")
        # Then all are there, once, in order
        expected = [f"{number}" for number in range(504)]
        await eventually(lambda: len(reader.bodies) >= 504)
        assert reader.bodies == expected
        resumed = fabric.sent("thread.subscribe")[1]
        assert resumed["after"] == "c3"
        # And REST was asked for what had to be there
        if not replays:
            assert "Messaging-Cursor: c1503" in fabric.reads[0]
            assert "after=3" in fabric.reads[0]


async def test_a_gap_after_a_bare_cursor_is_filled_back_to_that_cursor(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, api = one_edge
    fabric.replays = False
    fabric.greeting = {**HELLO, "server_time": "2026-11-24T12:00:30.000Z"}
    for number in range(300):
        fabric.store("t", f"old {number}")
    reader = Reader()
    async with Client([edge.address], "token", api=api.address, on_event=reader) as client:
        # Given a subscription from now, of whose position only the cursor is known
        await client.subscribe("t")
        for number in range(3):
            fabric.store("t", f"new {number}")
        # When the connection comes back without a replay
        await edge.close_all(1012)
        # Then exactly the new ones come
        await eventually(lambda: len(reader.bodies) >= 3)
        assert reader.bodies == ["new 0", "new 1", "new 2"]


async def test_a_gap_after_a_cursor_that_is_no_message_is_filled_back_to_about_that_time(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, api = one_edge
    fabric.replays = False
    fabric.greeting = {**HELLO, "server_time": "2026-11-24T12:16:00.000Z"}
    for number in range(300):  # The last one at 12:15:00.
        fabric.store("t", f"old {number}")

    # Given a subscription from now, while the thread's last event is no message
    async def other_cursor(socket: ServerConnection, frame: dict[str, Any]) -> bool:
        if frame["type"] != "thread.subscribe" or "after" in frame:
            return False
        ack = {"type": "ack", "ref": frame["ref"], "cursor": "c9999", "recovered": True}
        await socket.send(json.dumps(ack))
        return True

    fabric.on_command = other_cursor
    reader = Reader()
    async with Client([edge.address], "token", api=api.address, on_event=reader) as client:
        await client.subscribe("t")
        fabric.store("t", "new")
        # When the connection comes back without a replay
        await edge.close_all(1012)
        # Then the new one comes, and of the old ones at most those of the last minute
        await eventually(lambda: "new" in reader.bodies)
        assert reader.bodies[-1] == "new"
        assert len(reader.bodies) < 25


async def test_a_long_gap_waits_for_a_slow_reader_and_loses_nothing(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, api = one_edge
    fabric.replays = False
    for number in range(300):
        fabric.store("t", f"{number}")
    client = Client([edge.address], "token", api=api.address, events_max=10)
    async with client:
        await client.subscribe("t", after="0")
        await eventually(lambda: fabric.reads)
        bodies: list[str] = []
        async with asyncio.timeout(5.0):
            async for event in client.events():
                if event.message:
                    bodies.append(event.message.body)
                if len(bodies) == 300:
                    break
        assert bodies == [f"{number}" for number in range(300)]


async def test_a_position_behind_the_tail_is_caught_up_at_subscription(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, api = one_edge
    fabric.replays = False
    for body in ("a", "b", "c"):
        fabric.store("t", body)
    reader = Reader()
    async with Client([edge.address], "token", api=api.address, on_event=reader) as client:
        subscribed = await client.subscribe("t", after=Position("c3", 3))
        assert not subscribed.recovered
        await eventually(lambda: reader.bodies == ["b", "c"])
        await client.subscribe("all", after="0")
        fabric.store("all", "x")
        await client.subscribe("all", after="0")
        await eventually(lambda: reader.bodies == ["b", "c", "x"])


async def test_without_an_api_a_gap_is_told(one_edge: tuple[Fabric, Edge, Api]) -> None:
    fabric, edge, _ = one_edge
    fabric.replays = False
    reader = Reader()
    fabric.store("t", "a")
    fabric.store("t", "b")
    async with Client([edge.address], "token", on_event=reader) as client:
        await client.subscribe("t", after=Position("c3", 3))
        await eventually(lambda: reader.of("client.gap"))
        await edge.post("t", "c")
        await eventually(lambda: reader.bodies == ["c"])


async def test_history_that_is_refused_ends_the_subscription_and_says_so(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, api = one_edge
    fabric.replays, api.status = False, 404
    fabric.store("t", "a")
    fabric.store("t", "b")
    reader = Reader()
    async with Client([edge.address], "token", api=api.address, on_event=reader) as client:
        await client.subscribe("t", after=Position("c3", 3))
        await eventually(lambda: reader.of("client.subscription_ended"))


async def test_a_slow_reader_loses_nothing_and_does_not_hold_up_its_own_acks(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, api = one_edge
    client = Client([edge.address], "token", api=api.address, events_max=10)
    async with client:
        await client.subscribe("t")
        # Given a reader that reads nothing while a hundred messages arrive
        for number in range(100):
            await edge.post("t", f"{number}")
        # When it sends something itself, its ack comes at once
        await client.send("other", "still here", deadline_s=5.0)
        # Then, reading again, it gets every message once and in order
        bodies: list[str] = []
        async with asyncio.timeout(5.0):
            async for event in client.events():
                if event.message:
                    bodies.append(event.message.body)
                if len(bodies) == 100:
                    break
        assert bodies == [f"{number}" for number in range(100)]
        assert len(fabric.sent("thread.subscribe")) > 1
