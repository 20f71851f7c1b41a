"""Folds read markers into ``receipts``: the ``handle`` of ``shared.consumer`` on stream ``RCPT``.

``RCPT`` keeps the last value of each member and thread, so an event is a state: folding one twice, or only the newest
of several, gives the same row. A marker that own messages moved further stays where it is: both sources keep columns
of their own, and the row is the same in whatever order they come.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from persister import queries
from persister.projections import OutboxRecord
from shared.bus import Delivery
from shared.events import timestamp
from shared.identity import canonical_id, user_id
from shared.receipts import decode_receipt
from shared.subjects import thread_of

if TYPE_CHECKING:
    import asyncpg

    from shared.consumer import Connection

MESSAGE_READ: Final = "message.read"
MARKER_MOVED: Final = "marker.moved"
"""Kinds of the outbox rows: others are shown more as read; only the member's own marker moved."""

_ENCODER: Final = msgspec.json.Encoder()


class Read(msgspec.Struct, frozen=True):
    """What an outbox row says of a marker: the data of ``messaging.message.read``."""

    thread_id: str
    user_id: str
    seq: int
    read_at: str


class Mark(NamedTuple):
    """The markers of a member in a thread, in the order of ``queries.FOLD_MARKS``."""

    thread_id: str
    user_id: str
    read: int
    shown: int
    delivered: int
    over: int
    at: datetime | None


def mark_of(delivery: Delivery) -> Mark:
    """Return the markers in one event.

    Raises:
        msgspec.DecodeError, InvalidIdError, ValueError: Poison.
    """
    receipt = decode_receipt(delivery.payload)
    return Mark(
        canonical_id(thread_of(delivery.subject)),
        user_id(delivery.subject.rpartition(".")[2]),
        receipt.read,
        receipt.shown,
        receipt.delivered,
        receipt.over,
        datetime.fromisoformat(receipt.at) if receipt.at else None,
    )


async def store_receipts(
    connection: "Connection", deliveries: Sequence[Delivery], *, careful: bool
) -> None:
    """Write the markers of ``deliveries`` inside the open transaction, and what others are to be told.

    Raises:
        asyncpg.DataError, msgspec.DecodeError, InvalidIdError, ValueError: One of them can never be stored.
    """
    del careful  # Folding tolerates everything that comes twice.
    marks = {(mark.thread_id, mark.user_id): mark for mark in map(mark_of, deliveries)}
    # Ascending, as the messages' transactions take these rows: they never lock them crosswise.
    ordered = [marks[key] for key in sorted(marks)]
    moved = await connection.fetch(
        queries.FOLD_MARKS, *(list(column) for column in zip(*ordered, strict=True))
    )
    outbox = [_announced(row["thread_id"], row["user_id"], row) for row in moved]
    if outbox:
        await connection.copy_records_to_table(
            queries.OUTBOX_TABLE, records=outbox, columns=queries.OUTBOX_COLUMNS
        )


def _announced(thread_id: str, reader: str, row: "asyncpg.Record") -> OutboxRecord:
    read = Read(thread_id, reader, row["shown_seq"], timestamp(row["read_at"]))
    kind = MESSAGE_READ if row["is_shown"] else MARKER_MOVED
    return OutboxRecord(kind, thread_id, f"{thread_id}.{reader}", _ENCODER.encode(read))
