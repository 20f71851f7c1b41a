"""Positions: every event once and in order, and every hole noticed."""

from typing import Any

from lilith_client.errors import CommandError
from lilith_client.objects import Event, Position
from lilith_client.subscriptions import Fill, Subscriptions


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
    assert subscriptions.acknowledge("r", ack(cursor)) == []
    return subscriptions


def filling(after: Position) -> tuple[Subscriptions, Fill]:
    """Return a thread that an edge could not replay, and its gap."""
    subscriptions = asked(after)
    [fill] = subscriptions.acknowledge("r", ack("c18", recovered=False))
    assert isinstance(fill, Fill)
    return subscriptions, fill


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
    subscriptions.acknowledge("r", ack("c10"))
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
    subscriptions.acknowledge("r", ack("c20"))
    assert arrive(subscriptions, message(15, 12), message(18, 15), message(19, 18)) == [15, 18, 19]


def test_after_a_reconnect_the_subscription_resumes_from_the_last_event() -> None:
    subscriptions = live()
    arrive(subscriptions, message(12, 10))
    subscriptions.disconnected()
    frame = ask(subscriptions)
    assert frame is not None
    assert frame["after"] == "c12"


def test_an_unrecovered_gap_is_filled_and_the_thread_resumed_from_where_rest_ended() -> None:
    # Given a thread at 12 whose resume was not recovered
    subscriptions, fill = filling(Position("c12", 12))
    assert fill == Fill("r", "t", Position("c12", 12), "c18")
    # When a live event arrives while REST is read
    assert arrive(subscriptions, message(20, 18)) == [], "it comes again"
    changes = [event for seq in (15, 18) for event in subscriptions.fill(fill, message(seq, 0))]
    assert seqs(changes) == [15, 18]
    assert {event.source for event in changes} == {"history"}
    # Then the thread is subscribed again from there, and what came meanwhile comes in its place
    subscriptions.filled(fill, "c18")
    frame = ask(subscriptions)
    assert frame is not None
    assert frame["after"] == "c18"
    assert subscriptions.acknowledge("r", ack("c20")) == []
    assert arrive(subscriptions, message(20, 18), message(21, 20)) == [20, 21]


def test_the_resume_after_a_gap_that_is_not_recovered_either_is_a_gap_again() -> None:
    subscriptions, fill = filling(Position("c12", 12))
    subscriptions.fill(fill, message(18, 0))
    subscriptions.filled(fill, "c18")
    ask(subscriptions)
    again = subscriptions.acknowledge("r", ack("c5000", recovered=False))
    assert again == [Fill("r", "t", Position("c18", 18), "c5000")]


def test_changes_of_messages_in_a_gap_are_handed_on_in_their_place() -> None:
    subscriptions, fill = filling(Position("c12", 12))
    edited = {**message(15, 0, "m3"), "type": "message.updated", "body": "other"}
    deleted = {**message(18, 0, "m4"), "type": "message.deleted"}
    told = [*subscriptions.fill(fill, edited), *subscriptions.fill(fill, deleted)]
    assert [event.type for event in told] == ["message.updated", "message.deleted"]
    assert subscriptions.position("t") == Position("c18", 18)


def test_changes_older_than_the_position_are_not_shown_again() -> None:
    subscriptions, fill = filling(Position("c12", 12))
    assert subscriptions.fill(fill, message(11, 0)) == []
    assert seqs(subscriptions.fill(fill, message(15, 0))) == [15]


def test_a_gap_of_a_subscription_that_was_replaced_is_nobodys() -> None:
    # Given a gap that is being filled when the program subscribes the thread anew
    subscriptions, fill = filling(Position("c12", 12))
    subscriptions.add("s", "t", Position("c15", 15))
    ask(subscriptions)
    subscriptions.acknowledge("s", ack("c18", recovered=False))
    # Then the old gap's changes and its end mean nothing
    assert subscriptions.fill(fill, message(15, 0)) == []
    subscriptions.filled(fill, "c18")
    subscriptions.skip_gap(fill)
    assert subscriptions.give_up(fill, "not_found") == []
    assert subscriptions.position("t") == Position("c15", 15)


def test_a_reset_thread_is_read_over_rest_and_subscribed_again() -> None:
    # Given a live thread at 12
    subscriptions = live()
    arrive(subscriptions, message(12, 10))
    # When the server ends its subscription
    fill = subscriptions.reset("t")
    # Then everything after 12 is read over REST, however far it goes, and nothing of the socket is believed
    assert fill == Fill("r", "t", Position("c12", 12), None)
    assert arrive(subscriptions, message(15, 12)) == []
    subscriptions.filled(fill, "c30")
    frame = ask(subscriptions)
    assert frame is not None
    assert frame["after"] == "c30"


def test_a_reset_while_a_gap_is_filled_begins_no_second_one() -> None:
    subscriptions, _ = filling(Position("c12", 12))
    assert subscriptions.reset("t") is None
    subscriptions.disconnected()
    assert subscriptions.reset("t") is None, "it is asked for again anyway"


def test_caught_up_belongs_to_the_present_subscription() -> None:
    subscriptions = asked(Position("c12", 12))
    frame = {"type": "thread.caught_up", "thread_id": "t", "cursor": "c18"}
    assert subscriptions.caught_up(frame, room=True) == [], "that of the one before"
    subscriptions.acknowledge("r", ack("c18"))
    assert [event.type for event in subscriptions.caught_up(frame, room=True)] == [
        "thread.caught_up"
    ]


def test_caught_up_that_does_not_fit_comes_again() -> None:
    subscriptions = live()
    frame = {"type": "thread.caught_up", "thread_id": "t", "cursor": "c10"}
    assert subscriptions.caught_up(frame, room=False) == []
    subscriptions.room()
    assert ask(subscriptions) is not None


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


def test_a_gap_that_nobody_can_fill_is_told_and_the_thread_goes_on_from_now() -> None:
    # Given a gap after 12 that cannot be filled
    subscriptions, fill = filling(Position("c12", 12))
    subscriptions.skip_gap(fill)
    # Then the thread is subscribed from now
    frame = ask(subscriptions)
    assert frame is not None
    assert "after" not in frame
    # And only then the reader is told: what they reload meets what is live
    told = subscriptions.acknowledge("r", ack("c18"))
    data = {"thread_id": "t", "after": "c12", "until": "c18"}
    assert told == [Event("client.gap", data, "client")]
    assert arrive(subscriptions, message(20, 18)) == [20]
    subscriptions.disconnected()
    ask(subscriptions)
    assert subscriptions.acknowledge("r", ack("c20")) == [], "it is told once"


def test_a_position_that_a_new_log_does_not_know_is_bridged_over_rest() -> None:
    # Given a thread at 12, and a server that calls this cursor invalid after a reconnect
    subscriptions = live()
    arrive(subscriptions, message(12, 10))
    subscriptions.disconnected()
    ask(subscriptions)
    # Then what lies between is a gap to fill
    told = subscriptions.refuse("r", CommandError("invalid", "beyond the tail"), 0.0)
    assert told == [Fill("r", "t", Position("c12", 12), None)]


def test_a_wrong_position_of_the_caller_is_the_callers_error() -> None:
    subscriptions = asked(Position("nonsense"))
    assert subscriptions.refuse("r", CommandError("invalid", "no cursor"), 0.0) == []
    assert "r" not in subscriptions


def test_a_thread_that_is_not_ours_any_more_ends_and_says_so() -> None:
    subscriptions = live()
    subscriptions.disconnected()
    ask(subscriptions)
    [event] = subscriptions.refuse("r", CommandError("not_found", "nothing here"), 0.0)
    assert isinstance(event, Event)
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
