"""The pure state: which frame means what, in which order commands go out, what survives a reconnect."""

import random
from typing import Any

import msgspec
import pytest

from lilith_client.errors import ClientError, CommandError, DisconnectedError
from lilith_client.lanes import Settled
from lilith_client.objects import Event, Hello, Position
from lilith_client.state import COMMANDS_MAX, PACE_COUNT, Drain, State, decode
from lilith_client.subscriptions import Fill
from tests.sdk.scripted import HELLO


def connected() -> State:
    state = State(random.Random(1))
    state.open(msgspec.convert(HELLO, Hello), 0.0, local_ms=0)
    return state


def send(state: State, thread_id: str = "t") -> str:
    frame = {"type": "message.send", "thread_id": thread_id, "client_msg_id": "c", "body": "hi"}
    return state.send(frame, now=0.0, deadline=60.0)


def types(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["type"] for frame in frames]


def test_a_send_carries_its_ref_and_its_ack_settles_it() -> None:
    state = connected()
    ref = send(state)
    [frame] = state.due(0.0)
    assert frame["ref"] == ref
    ack = {"type": "ack", "ref": ref, "seq": 3}
    assert state.receive(ack, 0.0, room=True) == [Settled(ref, ack)]
    assert state.receive(ack, 0.0, room=True) == [], "a second answer is nobody's"


def test_sends_are_never_paced_and_everything_else_is() -> None:
    # Given sixty subscriptions and sixty sends
    state = connected()
    for number in range(60):
        state.subscribe(f"t{number}", None)
        send(state, f"t{number}")
    # Then all sends go at once, and as many subscriptions as a second allows
    sent = types(state.due(0.0))
    assert sent.count("message.send") == 60
    assert sent.count("thread.subscribe") == PACE_COUNT
    assert state.due(0.5) == []
    wait_s = state.wait_s(0.5)
    assert wait_s is not None
    assert types(state.due(0.5 + wait_s)).count("thread.subscribe") == PACE_COUNT


def test_small_commands_share_that_pace() -> None:
    state = connected()
    for _ in range(PACE_COUNT + 5):
        state.command({"type": "typing.start", "thread_id": "t"})
    state.subscribe("t", None)
    assert types(state.due(0.0)) == ["typing.start"] * PACE_COUNT
    wait_s = state.wait_s(0.0)
    assert wait_s is not None
    assert types(state.due(wait_s)) == ["typing.start"] * 5 + ["thread.subscribe"]


def test_after_a_reconnect_sends_and_subscriptions_go_again_and_other_commands_fail() -> None:
    # Given a send, a subscription and a typing that were written and not answered
    state = connected()
    sent, subscribed = send(state), state.subscribe("t", None)
    typed = state.command({"type": "typing.start", "thread_id": "t"})
    first = state.due(0.0)
    assert len(first) == 3
    # When the connection ends
    [settled] = state.close()
    # Then only the typing has failed
    assert settled.ref == typed
    assert isinstance(settled.outcome, DisconnectedError)
    # And the other two go again, unchanged
    state.open(msgspec.convert(HELLO, Hello), 5.0, local_ms=0)
    again = state.due(5.0)
    assert [frame["ref"] for frame in again] == [sent, subscribed]
    assert again == [frame for frame in first if frame["ref"] != typed]


def test_without_a_connection_commands_are_refused_at_once() -> None:
    with pytest.raises(DisconnectedError):
        State(random.Random(1)).command({"type": "ping"})


def test_the_queue_of_commands_is_bounded() -> None:
    state = connected()
    for _ in range(COMMANDS_MAX):
        state.command({"type": "ping"})
    with pytest.raises(DisconnectedError, match="wait already"):
        state.command({"type": "ping"})


def test_an_error_settles_whatever_its_ref_names() -> None:
    state = connected()
    refs = [send(state), state.subscribe("t", None), state.command({"type": "ping"})]
    state.due(0.0)
    for ref in refs:
        frame = {
            "type": "error",
            "ref": ref,
            "code": "not_found",
            "message": "nothing here",
            "retryable": False,
        }
        [settled] = state.receive(frame, 0.0, room=True)
        assert isinstance(settled, Settled)
        assert settled.ref == ref
        assert isinstance(settled.outcome, CommandError)
        assert settled.outcome.code == "not_found"


def test_an_error_without_a_ref_is_an_event() -> None:
    frame = {"type": "error", "code": "bad_frame", "message": "no JSON", "retryable": False}
    assert connected().receive(frame, 0.0, room=True) == [Event("error", frame)]


def test_a_frame_of_an_unknown_type_is_an_event() -> None:
    frame = {"type": "something.newer", "x": 1}
    assert connected().receive(frame, 0.0, room=True) == [Event("something.newer", frame)]


def test_a_draining_node_is_left() -> None:
    effects = connected().receive(
        {"type": "server.draining", "reconnect_after_ms": 1500}, 0.0, room=False
    )
    assert effects == [Drain(1.5)]


def test_a_reset_thread_is_told_and_read_over_rest() -> None:
    state = connected()
    ref = state.subscribe("t", None)
    state.due(0.0)
    state.receive({"type": "ack", "ref": ref, "cursor": "c3", "recovered": True}, 0.0, room=True)
    frame = {"type": "thread.reset", "thread_id": "t", "reason": "gap"}
    fill = Fill(ref, "t", Position("c3"), None)
    assert state.receive(frame, 0.0, room=True) == [Event("thread.reset", frame), fill]
    assert state.due(0.0) == [], "not before REST was read"


def test_a_reset_is_acted_on_even_when_the_reader_has_no_room() -> None:
    state = connected()
    ref = state.subscribe("t", None)
    state.due(0.0)
    state.receive({"type": "ack", "ref": ref, "cursor": "c3", "recovered": True}, 0.0, room=True)
    frame = {"type": "thread.reset", "thread_id": "t", "reason": "slow"}
    assert state.receive(frame, 0.0, room=False) == [Fill(ref, "t", Position("c3"), None)]


def test_the_server_asking_to_synchronise_is_an_event_and_never_dropped() -> None:
    state = connected()
    frame = {"type": "sync.required", "reason": "gap"}
    assert state.receive(frame, 0.0, room=True) == [Event("sync.required", frame)]
    assert state.receive(frame, 0.0, room=False) == []
    assert [event.type for event in state.room()] == ["sync.required"]


def test_ones_own_removal_is_the_last_event_of_a_thread() -> None:
    state = connected()
    ref = state.subscribe("t", None)
    state.due(0.0)
    state.receive({"type": "ack", "ref": ref, "cursor": "c3", "recovered": True}, 0.0, room=True)
    frame = {
        "type": "thread.member",
        "thread_id": "t",
        "user_id": "ava",
        "change": "removed",
        "seq": 6,
        "prev_seq": 3,
        "cursor": "c6",
    }
    events = state.receive(frame, 0.0, room=True)
    assert [event.type for event in events if isinstance(event, Event)] == [
        "thread.member",
        "client.subscription_ended",
    ]
    state.close()
    state.open(msgspec.convert(HELLO, Hello), 0.0, local_ms=0)
    assert state.due(0.0) == []


def test_what_did_not_fit_is_told_when_there_is_room_again() -> None:
    # Given a full queue
    state = connected()
    activity = {"type": "thread.activity", "thread_id": "t"}
    typing = {"type": "typing.active", "thread_id": "t"}
    assert state.receive(typing, 0.0, room=False) == []
    assert state.room() == [], "typing is over anyway"
    # When a thread's activity does not fit
    assert state.receive(activity, 0.0, room=False) == []
    # Then the reader is told once to synchronise
    [event] = state.room()
    assert (event.type, event.data["reason"]) == ("sync.required", "slow")
    assert state.room() == []


def test_when_the_client_stops_every_ref_is_settled() -> None:
    state = connected()
    refs = {send(state), state.command({"type": "ping"})}
    state.due(0.0)
    refs.add(state.command({"type": "ping"}))
    assert {settled.ref for settled in state.stop()} == refs


@pytest.mark.parametrize("data", ["no json", "[]", '{"type": 1}', "{}", b"\xff"])
def test_what_is_no_frame_is_an_error_and_not_a_crash(data: str | bytes) -> None:
    with pytest.raises(ClientError):
        decode(data)
