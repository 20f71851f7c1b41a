"""Read markers: asked for, heard of, and said again after a reconnect."""

import random
from typing import Any

import msgspec
import pytest
from websockets.asyncio.server import ServerConnection

from lilith_client import MESSAGE_READ, Client, CommandError, DisconnectedError, Event, MessageRead
from lilith_client.marks import MARK_READ, MARKS_MAX, RESTATED_S, Marks
from lilith_client.objects import Hello
from lilith_client.state import State
from tests.sdk.scripted import HELLO, Api, Edge, Fabric, Reader, refusing


def opened(state: State, now: float) -> State:
    state.open(msgspec.convert(HELLO, Hello), now, local_ms=0)
    return state


def marks(state: State, now: float) -> list[Any]:
    """Return (thread, seq) of the marks that are due."""
    return [
        (frame["thread_id"], frame.get("seq"))
        for frame in state.due(now)
        if frame["type"] == MARK_READ
    ]


async def test_a_mark_returns_where_the_marker_is(one_edge: tuple[Fabric, Edge, Api]) -> None:
    # Given a server on which somebody's other device has read further
    fabric, edge, _ = one_edge

    async def acknowledge(socket: ServerConnection, frame: dict[str, Any]) -> bool:
        if frame["type"] != MARK_READ:
            return False
        ack = {"type": "ack", "ref": frame["ref"], "read_seq": 9}
        await socket.send(msgspec.json.encode(ack).decode())
        return True

    fabric.on_command = acknowledge
    async with Client([edge.address], "token") as client:
        # Then it says so, and the command names what was given
        assert await client.mark_read("t", seq=3) == 9
        assert await client.mark_read("t", message_id="m") == 9
    asked = [{**frame, "ref": None} for frame in fabric.sent(MARK_READ)]
    assert asked == [
        {"type": MARK_READ, "thread_id": "t", "seq": 3, "ref": None},
        {"type": MARK_READ, "thread_id": "t", "message_id": "m", "ref": None},
    ]


async def test_a_refused_mark_is_an_error(one_edge: tuple[Fabric, Edge, Api]) -> None:
    fabric, edge, _ = one_edge
    fabric.on_command = refusing(MARK_READ, "feature_disabled")
    async with Client([edge.address], "token", on_event=Reader()) as client:
        with pytest.raises(CommandError, match="feature_disabled"):
            await client.mark_read("t", seq=3)


def test_who_has_read_is_an_event() -> None:
    frame = {"type": MESSAGE_READ, "thread_id": "t", "user_id": "ben", "seq": 7, "at": "now"}
    state = opened(State(random.Random(1)), 0.0)
    assert state.receive(frame, 0.0, room=True) == [Event(MESSAGE_READ, frame)]
    assert Event(MESSAGE_READ, frame).read == MessageRead("t", "ben", 7, "now")
    assert Event("message.new", {}).read is None
    # A full queue drops it, and nothing need be read again for it: the next one says more
    assert state.receive(frame, 0.0, room=False) == []
    assert state.room() == []


def test_what_was_just_read_is_said_again_on_the_next_connection() -> None:
    # Given marks of two threads, one of them long ago
    state = opened(State(random.Random(1)), 0.0)
    state.mark_read("old", {"seq": 1}, 0.0)
    state.mark_read("new", {"seq": 2}, RESTATED_S - 1)
    state.mark_read("new", {"seq": 3}, RESTATED_S)
    assert len(marks(state, RESTATED_S)) == 3
    # When the connection is lost and another one made
    state.close()
    opened(state, RESTATED_S + 1)
    # Then the last mark of the recent one is said again, once
    assert marks(state, RESTATED_S + 1) == [("new", 3)]
    assert marks(state, RESTATED_S + 2) == []


def test_a_mark_without_a_connection_is_neither_kept_nor_said_later() -> None:
    state = State(random.Random(1))
    with pytest.raises(DisconnectedError):
        state.mark_read("t", {"seq": 1}, 0.0)
    assert marks(opened(state, 0.0), 0.0) == []


def test_only_so_many_threads_are_remembered() -> None:
    made = Marks()
    for number in range(MARKS_MAX + 1):
        made.note({"thread_id": f"t{number}"}, 0.0)
    kept = [frame["thread_id"] for frame in made.recent(0.0)]
    assert kept == [f"t{number}" for number in range(1, MARKS_MAX + 1)]
