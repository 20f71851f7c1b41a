"""The client against a scripted server: sending, its three outcomes, and the small commands."""

import asyncio
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from lilith_client import (
    Client,
    ClientError,
    CommandError,
    DisconnectedError,
    OutcomeUnknownError,
    Position,
)
from tests.sdk.scripted import Api, Edge, Fabric, Reader, refusing
from tests.support.eventually import eventually


async def test_a_message_is_sent_acknowledged_and_seen(one_edge: tuple[Fabric, Edge, Api]) -> None:
    fabric, edge, api = one_edge
    reader = Reader()
    async with Client([edge.address], "token", api=api.address, on_event=reader) as client:
        # Given a subscribed thread
        subscribed = await client.subscribe("t")
        assert (subscribed.cursor, subscribed.recovered) == ("0", True)
        # When a message is sent
        sent = await client.send("t", "hello", reply_to="m1", metadata={"a": 1})
        # Then it is stored, and seen by the same id
        assert fabric.bodies("t") == ["hello"]
        await eventually(lambda: reader.bodies == ["hello"])
        [event] = reader.of("message.new")
        assert event.message is not None
        assert event.message.client_msg_id == sent.client_msg_id
        assert client.position("t") == Position(sent.cursor, sent.seq)
        # And the command was as the protocol says
        [command] = fabric.sent("message.send")
        assert command["reply_to"] == "m1"
        assert command["metadata"] == {"a": 1}
        assert "attachments" not in command
        assert int(sent.client_msg_id[:12], 16) > 1_790_000_000_000, "the time of hello"


async def test_events_come_through_the_iterator_too_and_end_with_close(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    _, edge, _ = one_edge
    client = Client([edge.address], "token")
    await client.connect()
    await client.subscribe("t")
    await edge.post("t", "hi")
    seen = []
    async for event in client.events():
        seen.append(event.type)
        if event.type == "message.new":
            await client.close()
    assert seen == ["client.connected", "thread.caught_up", "message.new"]


async def test_many_messages_to_one_thread_keep_the_order_of_the_calls(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, _ = one_edge
    async with Client([edge.address], "token") as client:
        await asyncio.gather(*(client.send("t", f"{number}") for number in range(200)))
    assert fabric.bodies("t") == [f"{number}" for number in range(200)]


async def test_a_lost_ack_makes_a_retry_with_the_same_id_and_no_second_message(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, _ = one_edge
    # Given an edge that stores the first message and dies before it acknowledges
    died: list[bool] = []

    def die_once(socket: ServerConnection, frame: dict[str, Any]) -> bool:
        if frame["type"] != "message.send" or died:
            return False
        died.append(True)
        fabric.store("t", frame["body"], client_msg_id=frame["client_msg_id"])
        socket.transport.abort()
        return True

    fabric.on_command = die_once
    async with Client([edge.address], "token") as client:
        # When three messages are sent
        sent = await asyncio.gather(*(client.send("t", body) for body in ("a", "b", "c")))
    # Then each is stored once, in order, and the first says that it had been there already
    assert fabric.bodies("t") == ["a", "b", "c"]
    assert [outcome.duplicate for outcome in sent] == [True, False, False]
    first, second = fabric.sent("message.send")[:2]
    assert first == second, "the same frame, id included"


async def test_a_refused_message_fails_with_its_code(one_edge: tuple[Fabric, Edge, Api]) -> None:
    fabric, edge, _ = one_edge
    fabric.on_command = refusing("message.send", "thread_archived")
    async with Client([edge.address], "token") as client:
        with pytest.raises(CommandError) as refused:
            await client.send("t", "x")
        assert refused.value.code == "thread_archived"
        assert client.unsettled == 0


async def test_a_message_that_is_never_answered_for_sure_is_unknown(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, _ = one_edge
    fabric.on_command = refusing("message.send", "unavailable", retryable=True)
    async with Client([edge.address], "token") as client:
        with pytest.raises(OutcomeUnknownError) as unknown:
            await client.send("t", "x", client_msg_id="c1", deadline_s=0.7)
        assert len(fabric.sent("message.send")) == 2
        # And the same call later tells what became of it
        fabric.on_command = lambda _socket, _frame: None
        sent = await client.send("t", "x", client_msg_id=unknown.value.client_msg_id)
        assert sent.client_msg_id == "c1"


async def test_a_message_that_never_left_is_not_unknown(one_edge: tuple[Fabric, Edge, Api]) -> None:
    _fabric, edge, _api = one_edge
    async with Client([edge.address], "token") as client:
        await edge.stop()
        await eventually(lambda: client.hello is None)
        with pytest.raises(DisconnectedError):
            await client.send("t", "x", deadline_s=0.2)
    await edge.start()


async def test_closing_settles_what_waits(one_edge: tuple[Fabric, Edge, Api]) -> None:
    fabric, edge, _ = one_edge
    fabric.on_command = lambda _socket, frame: frame["type"] == "message.send"
    client = Client([edge.address], "token")
    await client.connect()
    sending = [asyncio.create_task(client.send("t", "x")) for _ in range(2)]
    await eventually(lambda: client.unsettled == 2)
    await eventually(lambda: fabric.sent("message.send"))
    await client.close()
    outcomes = await asyncio.gather(*sending, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknownError, DisconnectedError]


async def test_small_commands_are_answered(one_edge: tuple[Fabric, Edge, Api]) -> None:
    fabric, edge, _ = one_edge
    async with Client([edge.address], "token") as client:
        assert await client.ping() < 5.0
        await client.typing("t")
        await client.typing("t", active=False)
        await client.subscribe("t")
        await client.unsubscribe("t")
        await client.unsubscribe("never subscribed")
    kinds = [frame["type"] for frame in fabric.commands]
    assert kinds == [
        "ping",
        "typing.start",
        "typing.stop",
        "thread.subscribe",
        "thread.unsubscribe",
    ]


async def test_a_subscription_that_is_replaced_before_its_ack_does_not_wait_for_ever(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, _ = one_edge
    # Given an edge that does not answer the first subscription
    fabric.on_command = lambda _socket, _frame: len(fabric.sent("thread.subscribe")) == 1
    async with Client([edge.address], "token") as client:
        first = asyncio.create_task(client.subscribe("t"))
        await eventually(lambda: fabric.sent("thread.subscribe"))
        # When the thread is subscribed again
        await client.subscribe("t")
        # Then the first caller hears about it
        with pytest.raises(ClientError, match="subscribed again"):
            await first


async def test_a_thread_that_is_not_ours_cannot_be_subscribed(
    one_edge: tuple[Fabric, Edge, Api],
) -> None:
    fabric, edge, _ = one_edge
    fabric.on_command = refusing("thread.subscribe", "not_found")
    async with Client([edge.address], "token") as client:
        with pytest.raises(CommandError) as refused:
            await client.subscribe("t")
        assert refused.value.code == "not_found"
