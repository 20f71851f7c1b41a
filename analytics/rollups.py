"""Adds the figures of a batch to what is stored: the ``handle`` of ``shared.consumer``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analytics import queries
from analytics.aggregates import decode, fold
from shared.bus import Delivery

if TYPE_CHECKING:
    from shared.consumer import Connection


async def store_figures(
    connection: "Connection", deliveries: Sequence[Delivery], *, careful: bool
) -> None:
    """Add the figures of ``deliveries`` inside the open transaction, which also moves the cursor.

    Raises:
        msgspec.DecodeError, ValueError: One of them is no event of ours.
    """
    del careful  # Adding has no quicker and no more careful way.
    counts = fold(decode(delivery.payload) for delivery in deliveries)
    # Sorted, so that whoever else would add to the same rows locks them in the same order.
    keys = sorted(counts)
    await connection.execute(
        queries.ADD_EVENT_COUNTS,
        [type_ for type_, _hour in keys],
        [hour for _type, hour in keys],
        [counts[key] for key in keys],
    )
