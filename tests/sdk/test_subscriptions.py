"""Positions: every event once and in order, and every hole noticed."""

from typing import Any

from lilith_client.errors import CommandError
from lilith_client.objects import Event, Position
from lilith_client.subscriptions import HELD_MAX, Fill, Subscriptions

SINCE = "2026-11-24T12:00:00.000Z"


def message(seq: int, prev_seq: int, message_id: str = "") -> dict[str, Any]:
    return {
        "type": "message.new",
        "thread_id": "t",
        "message_id": message_id or f"m{seq}",
        "seq": seq,
        "prev_seq": prev_seq,
        "cursor": f"c{seq}",
    }


def ack(cursor: str, *, recovered: bool = True) -> dict[str, Any]:
    return {"cursor": cursor, "recovered": recovered}


def asked(after: Position | None = None) -> Subscriptions:
    subscriptions = Subscriptions()
    subscriptions.add("r", "t", after)
    ask(subscriptions)
    return subscriptions


def live(after: Position | None = None, cursor: str = "c10") -> Subscriptions:
    subscriptions = asked(after)
    assert subscriptions.acknowledge("r", ack(cursor), since=SINCE) is None
    return subscriptions


def ask(subscriptions: Subscriptions, now: float = 0.0) -> dict[str, Any] | None:
    item = subscriptions.due(now)
    return subscriptions.ask(item, now) if item else None


def seqs(events: list[Event]) -> list[int]:
    return [event.data["seq"] for event in events]


def arrive(subscriptions: Subscriptions, *frames: dict[str, Any]) -> list[int]:
    return [seq for frame in frames for seq in seqs(subscriptions.arrive(frame, room=True))]


def test_a_subscription_from_now_begins_at_the_cursor_of_its_ack() -> None:
    subscriptions = Subscriptions()
    subscriptions.add("r", "t", None)
    assert ask(subscriptions) == {"type": "thread.subscribe", "ref": "r", "thread_id": "t"}
    assert ask(subscriptions) is None, "it is asked once"
    subscriptions.acknowledge("r", ack("c10"), since=SINCE)
    assert subscriptions.position("t") == Position("c10")


def test_events_in_order_are_handed_on_once_and_move_the_position() -> None:
    subscriptions = live()
    assert arrive(subscriptions, message(12, 10), message(15, 12), message(15, 12)) == [12, 15]
    assert subscriptions.position("t") == Position("c15", 15)


def test_any_event_that_is_repeated_is_dropped() -> None:
    subscriptions = live()
    renamed = {**message(12, 10), "type": "thread.updated"}
    assert arrive(subscriptions, renamed, renamed) == [12]


def test_a_second_copy_of_a_message_is_dropped_and_its_place_is_passed() -> None:
    subscriptions = live()
    frames = message(12, 10, "m"), message(15, 12, "m"), message(16, 15)
    assert arrive(subscriptions, *frames) == [12, 16]


def test_a_missing_link_hands_nothing_on_and_subscribes_again_from_the_position() -> None:
    # Given a thread at 12
    subscriptions = live()
    arrive(subscriptions, message(12, 10))
    # When 18 says that it follows 15, which never came
    assert arrive(subscriptions, message(18, 15)) == []
    # Then later events wait too, and the subscription is asked for again from 12
    assert arrive(subscriptions, message(19, 18)) == []
    frame = ask(subscriptions)
    assert frame is not None
    assert frame["after"] == "c12"
    # And what the old subscription still delivers before the ack is not believed
    assert arrive(subscriptions, message(20, 19)) == []
    subscriptions.acknowledge("r", ack("c20"), since=SINCE)
    assert arrive(subscriptions, message(15, 12), message(18, 15), message(19, 18)) == [15, 18, 19]


def test_after_a_reconnect_the_subscription_resumes_from_the_last_event() -> None:
    subscriptions = live()
    arrive(subscriptions, message(12, 10))
    subscriptions.disconnected()
    frame = ask(subscriptions)
    assert frame is not None
    assert frame["after"] == "c12"


def test_an_unrecovered_gap_is_filled_before_live_events_that_came_meanwhile() -> None:
    # Given a thread at 12 whose resume was not recovered
    subscriptions = asked(Position("c12", 12))
    fill = subscriptions.acknowledge("r", ack("c18", recovered=False), since=SINCE)
    assert fill == Fill("t", Position("c12", 12), "c18", None)
    # When a live event arrives while history is read
    assert arrive(subscriptions, message(20, 18)) == []
    history = [event for seq in (15, 18) for event in subscriptions.fill("t", message(seq, 0))]
    subscriptions.filled(fill)
    # Then history comes first, then what was held, and from then on it is live
    assert subscriptions.position("t") == Position("c18", 18)
    assert seqs(history) == [15, 18]
    assert {event.source for event in history} == {"history"}
    assert seqs(subscriptions.next_held("t") or []) == [20]
    assert subscriptions.next_held("t") is None
    assert arrive(subscriptions, message(21, 20)) == [21]


def test_history_older_than_the_position_is_not_shown_again() -> None:
    subscriptions = asked(Position("c12", 12))
    subscriptions.acknowledge("r", ack("c15", recovered=False), since=SINCE)
    assert subscriptions.fill("t", message(11, 0)) == []
    assert seqs(subscriptions.fill("t", message(15, 0))) == [15]


def test_a_filled_gap_ends_where_the_server_said_even_without_a_message_there() -> None:
    # Given a gap whose last event, 18, is no message
    subscriptions = asked(Position("c12", 12))
    fill = subscriptions.acknowledge("r", ack("c18", recovered=False), since=SINCE)
    assert fill is not None
    subscriptions.fill("t", message(15, 0))
    # When REST has answered with everything up to it
    subscriptions.filled(fill)
    # Then the next resume begins there
    assert subscriptions.position("t") == Position("c18", 15)


def test_a_held_event_that_history_already_showed_is_not_shown_again() -> None:
    subscriptions = asked(Position("c12", 12))
    subscriptions.acknowledge("r", ack("c15", recovered=False), since=SINCE)
    arrive(subscriptions, message(18, 15))
    for seq in (15, 18):
        subscriptions.fill("t", message(seq, 0))
    assert subscriptions.next_held("t") == []
    assert subscriptions.next_held("t") is None


def test_too_many_held_events_are_given_up_and_read_again() -> None:
    subscriptions = asked(Position("c1", 1))
    subscriptions.acknowledge("r", ack("c9", recovered=False), since=SINCE)
    arrive(subscriptions, *(message(10 + n, 9 + n) for n in range(HELD_MAX + 1)))
    assert subscriptions.next_held("t") is None
    frame = ask(subscriptions)
    assert frame is not None
    assert frame["after"] == "c1"


def test_without_room_the_event_is_not_lost_but_read_again_later() -> None:
    # Given a thread at 12 and a reader whose queue is full
    subscriptions = live()
    arrive(subscriptions, message(12, 10))
    assert subscriptions.arrive(message(15, 12), room=False) == []
    assert ask(subscriptions) is None, "not before there is room"
    # When there is room again
    subscriptions.room()
    # Then the thread is resumed from 12
    frame = ask(subscriptions)
    assert frame is not None
    assert frame["after"] == "c12"


def test_a_gap_that_nobody_can_fill_is_told() -> None:
    subscriptions = asked(Position("c12", 12))
    fill = subscriptions.acknowledge("r", ack("c18", recovered=False), since=SINCE)
    assert fill is not None
    [event] = subscriptions.skip_gap(fill)
    assert event.type == "client.gap"
    assert event.data == {"thread_id": "t", "after": "c12", "until": "c18"}
    assert subscriptions.next_held("t") is None
    assert arrive(subscriptions, message(20, 18)) == [20]


def test_a_position_that_a_new_log_does_not_know_is_bridged_over_rest() -> None:
    # Given a thread at 12, and a server that calls this cursor invalid after a reconnect
    subscriptions = live()
    arrive(subscriptions, message(12, 10))
    subscriptions.disconnected()
    ask(subscriptions)
    assert subscriptions.refuse("r", CommandError("invalid", "beyond the tail"), 0.0) == []
    # Then it is subscribed from now
    frame = ask(subscriptions)
    assert frame is not None
    assert "after" not in frame
    # And what lies between is a gap to fill, whatever "recovered" says for a subscription from now
    fill = subscriptions.acknowledge("r", ack("c99"), since=SINCE)
    assert fill == Fill("t", Position("c12", 12), "c99", SINCE)


def test_a_wrong_position_of_the_caller_is_the_callers_error() -> None:
    subscriptions = asked(Position("nonsense"))
    assert subscriptions.refuse("r", CommandError("invalid", "no cursor"), 0.0) == []
    assert "r" not in subscriptions


def test_a_thread_that_is_not_ours_any_more_ends_and_says_so() -> None:
    subscriptions = live()
    subscriptions.disconnected()
    ask(subscriptions)
    [event] = subscriptions.refuse("r", CommandError("not_found", "nothing here"), 0.0)
    assert (event.type, event.data["reason"]) == ("client.subscription_ended", "not_found")
    assert ask(subscriptions) is None


def test_a_temporary_refusal_is_asked_again_after_the_wait_it_names() -> None:
    subscriptions = asked()
    error = CommandError("rate_limited", "wait", retryable=True, retry_after_s=2.0)
    subscriptions.refuse("r", error, 10.0)
    assert subscriptions.wait_s(10.0) == 2.0
    assert ask(subscriptions, 11.9) is None
    assert ask(subscriptions, 12.0) is not None


def test_an_ack_that_never_comes_is_asked_for_again() -> None:
    subscriptions = asked()
    assert ask(subscriptions, 29.0) is None
    assert ask(subscriptions, 30.0) is not None


def test_events_of_threads_that_are_not_subscribed_are_ignored() -> None:
    subscriptions = live()
    subscriptions.remove("t")
    assert arrive(subscriptions, message(12, 10)) == []
    assert subscriptions.position("t") is None
