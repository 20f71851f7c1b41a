"""Typing dots: a refresh at most every three seconds, a stop only when somebody saw the start."""

from edge.typists import TYPISTS_MAX, Typists
from shared.identity import ThreadId, UserId

T, U = ThreadId("t"), UserId("ava")


def test_a_refresh_passes_every_three_seconds() -> None:
    typists = Typists()
    assert [typists.starts(T, U, now) for now in (0.0, 1.0, 2.9, 3.0, 4.0)] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_a_stop_passes_once_and_the_next_start_is_news() -> None:
    typists = Typists()
    assert not typists.stops(T, U, 0.0)
    assert typists.starts(T, U, 1.0)
    assert typists.stops(T, U, 1.5)
    assert not typists.stops(T, U, 1.6)
    assert typists.starts(T, U, 1.7)


def test_a_stop_after_the_dot_has_expired_tells_nobody_anything() -> None:
    typists = Typists()
    typists.starts(T, U, 0.0)
    assert not typists.stops(T, U, 6.0)


def test_a_message_ends_the_dot() -> None:
    typists = Typists()
    typists.starts(T, U, 0.0)
    typists.sent(T, U)
    assert typists.starts(T, U, 0.1)


def test_the_number_of_typists_is_bounded_and_old_ones_make_room() -> None:
    typists = Typists()
    for number in range(TYPISTS_MAX):
        assert typists.starts(T, UserId(f"u{number}"), 0.0)
    assert not typists.starts(T, U, 1.0)
    assert typists.starts(T, U, 7.0)
    assert len(typists) == 1
