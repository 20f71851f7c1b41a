"""What a client missed: read again, once and in order, over whichever way there is."""

import asyncio

import pytest

from lilith_client import Client, Event, Message, MessageDeleted, MessageUpdated, Position
from tests.sdk.scripted import Api, Edge, Fabric, Reader
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
        await eventually(lambda: len(reader.of("thread.caught_up")) >= 2)
        # And REST was asked, page by page, for what had to be there
        if not replays:
            first, *more = [head for head in fabric.reads if "/changes" in head]
            assert "GET /api/threads/t/changes?after=c3&limit=200 " in first
            assert "Messaging-Cursor: c1503" in first
            assert any("cursor=c603" in head for head in more)


@pytest.mark.parametrize("replays", [True, False], ids=["replayed by the edge", "filled over REST"])
async def test_edits_and_deletions_made_meanwhile_are_part_of_what_was_missed(
    one_edge: tuple[Fabric, Edge, Api], replays: bool
) -> None:
    fabric, edge, api = one_edge
    fabric.replays = replays
    shown: dict[str, str | None] = {}

    def merge(event: Event) -> None:
        match event.change:
            case Message(message_id=message_id, body=body, deleted_at=deleted_at):
                assert message_id not in shown, "a message is new once"
                shown[message_id] = None if deleted_at else body
            case MessageUpdated(message_id=message_id, body=body):
                shown[message_id] = body
            case MessageDeleted(message_id=message_id):
                shown[message_id] = None
            case _:
                pass

    async with Client([edge.address], "token", api=api.address, on_event=merge) as client:
        # Given a thread with two messages seen
        await client.subscribe("t")
        kept, gone = [(await edge.post("t", body))["message_id"] for body in ("kept", "gone")]
        await eventually(lambda: len(shown) == 2)
        # When they and newer ones are changed while the client is away
        fabric.edit("t", kept, "kept, better")
        fabric.delete("t", gone)
        edited, deleted = [fabric.store("t", body)["message_id"] for body in ("new", "newer")]
        fabric.edit("t", edited, "new, better")
        fabric.delete("t", deleted)
        await edge.close_all(1012)
        # Then merging by message id gives the thread as it is now
        expected = {kept: "kept, better", gone: None, edited: "new, better", deleted: None}
        await eventually(lambda: shown == expected)


async def test_a_gap_after_a_bare_cursor_is_filled_exactly(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, api = one_edge
    fabric.replays = False
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


async def test_a_reset_thread_goes_on_without_a_hole(one_edge: tuple[Fabric, Edge, Api]) -> None:
    fabric, edge, api = one_edge
    reader = Reader()
    async with Client([edge.address], "token", api=api.address, on_event=reader) as client:
        # Given a thread with one message seen, and one that the edge did not deliver
        await client.subscribe("t")
        await edge.post("t", "a")
        fabric.store("t", "b")
        # When the edge gives the subscription up
        edge.forget("t")
        await edge.say({"type": "thread.reset", "thread_id": "t", "reason": "gap"})
        await eventually(lambda: len(fabric.sent("thread.subscribe")) == 2)
        # Then the missing one was read over REST, and the thread is live again
        await edge.post("t", "c")
        await eventually(lambda: reader.bodies == ["a", "b", "c"])
        assert [event.source for event in reader.events if event.message] == [
            "live",
            "history",
            "live",
        ]


async def test_a_position_that_neither_log_nor_database_knows_is_told_as_a_gap(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, api = one_edge
    reader = Reader()
    async with Client([edge.address], "token", api=api.address, on_event=reader) as client:
        # Given a live thread whose platform is restored from a backup
        await client.subscribe("t")
        await edge.post("t", "lost later")
        await eventually(lambda: reader.bodies == ["lost later"])
        api.status, api.code = 422, "invalid"
        edge.forget("t")
        # When the subscription is reset and REST does not know the position either
        await edge.say({"type": "thread.reset", "thread_id": "t", "reason": "generation"})
        # Then the program is told to reload, and the thread goes on from now
        await eventually(lambda: reader.of("client.gap"))
        await eventually(lambda: len(fabric.sent("thread.subscribe")) == 2)
        await edge.post("t", "after it")
        await eventually(lambda: reader.bodies[-1] == "after it")


async def test_a_connection_that_ends_while_a_gap_waits_for_its_reader_loses_nothing(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, api = one_edge
    fabric.replays = False
    for number in range(60):
        fabric.store("t", f"{number}")
    client = Client([edge.address], "token", api=api.address, events_max=10)
    async with client:
        # Given a gap that is half filled, its reader's queue full
        await client.subscribe("t", after="0")
        await eventually(lambda: fabric.reads)
        bodies: list[str] = []
        async with asyncio.timeout(10.0):
            async for event in client.events():
                if event.message:
                    bodies.append(event.message.body)
                    # When the connection ends again and again
                    if len(bodies) in {15, 30}:
                        await asyncio.sleep(0.05)
                        await edge.close_all(1012)
                if len(bodies) == 60:
                    break
        # Then every message came once and in order
        assert bodies == [f"{number}" for number in range(60)]


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
