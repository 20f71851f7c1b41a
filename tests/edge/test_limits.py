"""Thirty commands a second, three bad frames a minute, ten limit errors a minute."""

from hypothesis import given
from hypothesis import strategies as st

from edge.limits import BAD_FRAMES_MAX, COMMANDS_PER_S, CommandRate, ErrorCount


def test_thirty_commands_pass_at_once_and_the_next_hears_how_long_to_wait() -> None:
    rate = CommandRate(0.0)
    assert [rate.take(0.0) for _ in range(30)] == [None] * 30
    wait_ms = rate.take(0.0)
    assert wait_ms is not None
    assert rate.take(wait_ms / 1000 + 0.001) is None


@given(st.lists(st.floats(0, 0.5), max_size=400))
def test_no_stretch_of_time_lets_more_through_than_its_share(pauses: list[float]) -> None:
    # Given commands at any times
    rate, now, taken = CommandRate(0.0), 0.0, []
    for pause in pauses:
        now += pause
        if rate.take(now) is None:
            taken.append(now)
    # Then between any two of them there are at most a burst and the refill
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            allowed = COMMANDS_PER_S + (taken[last] - taken[first]) * COMMANDS_PER_S
            assert last - first + 1 <= allowed + 1e-6


def test_the_third_error_within_a_minute_is_one_too_many() -> None:
    count = ErrorCount(BAD_FRAMES_MAX)
    assert [count.is_full(now) for now in (0.0, 30.0, 59.9)] == [False, False, True]


def test_errors_older_than_a_minute_do_not_count() -> None:
    count = ErrorCount(BAD_FRAMES_MAX)
    assert not any(count.is_full(now) for now in (0.0, 30.0, 60.0, 90.0, 120.0))
