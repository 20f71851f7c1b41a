"""Reconnecting: which close codes allow it, how long to wait, which edge is next, how fast to talk."""

import random

import pytest

from lilith_client.policy import (
    Backoff,
    Pace,
    Rotation,
    may_reconnect,
    may_retry_handshake,
)


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1008, 1012, 1013, 4000, 4401, 4408, 4429, 4499])
def test_these_close_codes_allow_to_come_back(code: int) -> None:
    assert may_reconnect(code)


@pytest.mark.parametrize("code", [4500, 4501, 4503, 4504, 4999])
def test_these_close_codes_are_final(code: int) -> None:
    assert not may_reconnect(code)


def test_only_temporary_refusals_of_the_handshake_are_tried_again() -> None:
    statuses = (400, 401, 403, 404, 426, 429, 500, 503)
    assert [status for status in statuses if may_retry_handshake(status)] == [429, 500, 503]


def test_waits_are_drawn_below_a_ceiling_that_doubles_to_thirty_seconds() -> None:
    backoffs = [Backoff(random.Random(seed)) for seed in range(300)]
    rounds = [[backoff.next_s() for backoff in backoffs] for _ in range(9)]
    for number, waits in enumerate(rounds):
        ceiling = min(30.0, 0.5 * 2**number)
        assert max(waits) <= ceiling
        assert max(waits) > ceiling * 0.9, "full jitter reaches the ceiling"
        assert min(waits) < ceiling * 0.1, "full jitter reaches zero"


def test_after_a_connection_that_held_the_first_wait_is_short_again() -> None:
    backoff = Backoff(random.Random(1))
    for _ in range(10):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() <= 0.5


def test_addresses_are_used_in_turn_from_the_first_one_on() -> None:
    rotation = Rotation(["a", "b"])
    seen = []
    for _ in range(3):
        seen.append(rotation.current)
        rotation.advance()
    assert seen == ["a", "b", "a"]


def test_no_address_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Rotation([])


def test_the_pace_never_exceeds_its_count_in_any_window() -> None:
    # Given somebody who asks a hundred times a second for five seconds
    pace = Pace(25, 1.0)
    taken = [now / 100 for now in range(500) if pace.take(now / 100)]
    # Then no window of a second holds more than the count, and the time is used
    for start in taken:
        assert sum(start <= time < start + 1.0 for time in taken) <= 25
    assert len(taken) >= 25 * 4


def test_the_pace_says_how_long_to_wait() -> None:
    pace = Pace(1, 1.0)
    assert pace.take(10.0)
    assert pace.wait_s(10.25) == 0.75
    assert not pace.take(10.25)
    assert pace.take(11.0)
