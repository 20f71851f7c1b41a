"""Messages on their way: order per thread, three outcomes, the same frame on every attempt."""

from typing import Any

import pytest

from lilith_client.errors import CommandError, DisconnectedError, OutcomeUnknownError
from lilith_client.lanes import ANSWER_S, Lanes, Outgoing

RATE_LIMITED = CommandError("rate_limited", "wait", retryable=True, retry_after_s=3.0)
UNAVAILABLE = CommandError("unavailable", "later", retryable=True)
FORBIDDEN = CommandError("forbidden", "no")


def outgoing(ref: str, thread_id: str = "t", *, deadline: float = 100.0) -> Outgoing:
    return Outgoing(ref, thread_id, f"id-{ref}", {"ref": ref}, since=0.0, deadline=deadline)


def lanes_with(*items: Outgoing) -> Lanes:
    lanes = Lanes()
    for item in items:
        lanes.add(item)
    return lanes


def refs(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["ref"] for frame in frames]


def test_a_thread_has_one_message_in_flight_and_threads_do_not_wait_for_each_other() -> None:
    # Given two messages to one thread and one to another
    lanes = lanes_with(outgoing("1"), outgoing("2"), outgoing("3", "other"))
    # Then the first of each lane is due, once
    assert refs(lanes.due(0.0)) == ["1", "3"]
    assert lanes.due(0.0) == []
    # When the first is acknowledged
    settled = lanes.acknowledge("1", {"seq": 1})
    # Then its caller knows, and the second is due
    assert settled == ("1", {"seq": 1})
    assert refs(lanes.due(0.0)) == ["2"]


def test_a_message_in_flight_when_the_connection_ends_is_sent_again_before_later_ones() -> None:
    lanes = lanes_with(outgoing("1"), outgoing("2"))
    lanes.due(0.0)
    lanes.disconnected()
    assert refs(lanes.due(1.0)) == ["1"]


def test_a_message_without_an_answer_is_sent_again() -> None:
    lanes = lanes_with(outgoing("1"))
    lanes.due(0.0)
    assert lanes.wait_s(1.0) == ANSWER_S - 1.0
    assert lanes.due(ANSWER_S - 0.1) == []
    assert refs(lanes.due(ANSWER_S)) == ["1"]


def test_a_retryable_refusal_is_waited_out_and_holds_its_lane() -> None:
    # Given a refusal that says to come back after three seconds
    lanes = lanes_with(outgoing("1"), outgoing("2"))
    lanes.due(0.0)
    # When it arrives
    assert lanes.refuse("1", RATE_LIMITED, now=10.0) is None
    # Then nothing of that lane moves until then, and the same message goes first
    assert lanes.due(12.9) == []
    assert lanes.wait_s(12.0) == pytest.approx(1.0)
    assert refs(lanes.due(13.0)) == ["1"]


def test_a_refusal_for_good_fails_the_message_and_frees_its_lane() -> None:
    lanes = lanes_with(outgoing("1"), outgoing("2"))
    lanes.due(0.0)
    assert lanes.refuse("1", FORBIDDEN, now=0.0) == ("1", FORBIDDEN)
    assert refs(lanes.due(0.0)) == ["2"]


def outcome_at_the_deadline(lanes: Lanes) -> object:
    assert lanes.expired(99.0) == []
    [settled] = lanes.expired(100.0)
    assert len(lanes) == 0
    return settled.outcome


def test_at_the_deadline_a_message_that_was_never_written_is_known_not_to_be_stored() -> None:
    lanes = lanes_with(outgoing("1"))
    assert isinstance(outcome_at_the_deadline(lanes), DisconnectedError)


def test_at_the_deadline_a_message_that_was_always_refused_is_known_not_to_be_stored() -> None:
    lanes = lanes_with(outgoing("1"))
    for now in (0.0, 50.0):
        lanes.due(now)
        lanes.refuse("1", RATE_LIMITED, now)
    assert outcome_at_the_deadline(lanes) is RATE_LIMITED


@pytest.mark.parametrize("how", ["in flight", "disconnected", "unavailable", "then refused"])
def test_at_the_deadline_a_message_with_one_open_attempt_is_unknown(how: str) -> None:
    # Given an attempt that may have been stored
    lanes = lanes_with(outgoing("1"))
    lanes.due(50.0 if how != "in flight" else 90.0)
    if how == "disconnected":
        lanes.disconnected()
    elif how == "unavailable":
        lanes.refuse("1", UNAVAILABLE, 51.0)
    elif how == "then refused":
        # Refused at the second attempt says nothing about the first.
        lanes.disconnected()
        lanes.due(52.0)
        lanes.refuse("1", RATE_LIMITED, 53.0)
    # Then nobody may say that it failed
    outcome = outcome_at_the_deadline(lanes)
    assert isinstance(outcome, OutcomeUnknownError)
    assert outcome.client_msg_id == "id-1"


def test_at_its_deadline_a_message_is_not_sent_once_more() -> None:
    lanes = lanes_with(outgoing("1"))
    assert lanes.due(100.0) == []


def test_an_expired_message_behind_others_leaves_them_in_place() -> None:
    lanes = lanes_with(outgoing("1"), outgoing("2", deadline=1.0), outgoing("3"))
    lanes.due(0.0)
    assert [settled.ref for settled in lanes.expired(2.0)] == ["2"]
    lanes.acknowledge("1", {})
    assert refs(lanes.due(2.0)) == ["3"]


def test_when_the_client_stops_everything_is_settled() -> None:
    lanes = lanes_with(outgoing("1"), outgoing("2"))
    lanes.due(0.0)
    outcomes = [type(settled.outcome) for settled in lanes.clear()]
    assert outcomes == [OutcomeUnknownError, DisconnectedError]
    assert len(lanes) == 0
    assert lanes.due(0.0) == []
