"""The pure fold from events to figures: no clock, no I/O.

``fold`` is a homomorphism: the figures of two stretches of events add up to those of both together. That is why a
batch may be folded alone and added to what is stored, and why a rebuild from the first event gives the same.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec

EventCounts = Counter[tuple[str, datetime]]
"""Number of events by type and hour (UTC, the hour's start)."""


class DomainEvent(msgspec.Struct, frozen=True):
    """The envelope of a CloudEvent, as far as the figures need it."""

    type: str
    time: datetime


_DECODER: Final = msgspec.json.Decoder(DomainEvent)


def decode(payload: bytes) -> DomainEvent:
    """Return the event in a stored payload.

    Raises:
        msgspec.DecodeError: No CloudEvent, or one without a type and a time.
        ValueError: Its time names no zone.
    """
    event = _DECODER.decode(payload)
    if event.time.tzinfo is None:
        raise ValueError("an event whose time names no zone")
    return event


def hour_of(moment: datetime) -> datetime:
    """Return the start of the hour in UTC."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def fold(events: Iterable[DomainEvent]) -> EventCounts:
    """Return the figures of ``events``."""
    return Counter((event.type, hour_of(event.time)) for event in events)
