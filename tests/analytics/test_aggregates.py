"""The fold is pure and additive: the same events give the same figures, however they are cut."""

from collections import Counter
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.aggregates import DomainEvent, decode, fold, hour_of

EVENTS = st.lists(
    st.builds(
        DomainEvent,
        type=st.sampled_from(["messaging.message.sent", "messaging.thread.created"]),
        time=st.datetimes(
            datetime(2026, 1, 1),  # noqa: DTZ001 - hypothesis wants naive bounds
            datetime(2026, 1, 3),  # noqa: DTZ001
            timezones=st.just(UTC),
        ),
    )
)


@given(EVENTS, st.integers(0, 50), st.integers(0, 50))
def test_however_events_are_cut_into_batches_the_figures_add_up(
    events: list[DomainEvent], first: int, second: int
) -> None:
    low, high = sorted((first, second))
    parts = (events[:low], events[low:high], events[high:])
    added: Counter[tuple[str, datetime]] = Counter()
    for part in parts:
        added.update(fold(part))
    assert added == fold(events)
    assert sum(added.values()) == len(events)


def test_an_hour_begins_at_its_first_microsecond_whatever_the_zone() -> None:
    eastern = timezone(timedelta(hours=5, minutes=30))
    assert hour_of(datetime(2026, 3, 1, 4, 59, 59, tzinfo=eastern)) == datetime(
        2026, 2, 28, 23, tzinfo=UTC
    )
    assert hour_of(datetime(2026, 3, 1, 4, tzinfo=UTC)) == datetime(2026, 3, 1, 4, tzinfo=UTC)


@pytest.mark.parametrize(
    "payload", [b"{", b"{}", b'{"type":"a"}', b'{"type":"a","time":"2026-01-01T00:00:00"}']
)
def test_what_is_no_event_is_refused(payload: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, ValueError)):
        decode(payload)
