"""How the rows of the api's outbox are published. Every kind may be published twice without harm.

======================  ================================================================================
kind                    published as
======================  ================================================================================
``access``, ``user``    an entry of bucket ``access`` or ``users``; a lower revision never wins
``standing``            an entry of bucket ``standing``, likewise
``event``               an event of the thread, on its own subject; its id keeps it from being stored twice
``created``             a ``thread.created`` frame to the feed of every member
``feed``                a frame to the feed of one user
``messaging.*``         a domain event of that type, in stream ``EVENTS``
======================  ================================================================================

The ``subject`` of a row is the id of the thread or user that it tells of: rows of one are published in order.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from api.dependencies import POOL_WAIT_S
from api.queries import threads as thread_queries
from shared.access import decode_access, decode_user
from shared.bus import Bus, KvConflictError, OutgoingMessage
from shared.events import AnyThreadEvent, encode_event, timestamp
from shared.identity import ThreadId, UserId, new_id
from shared.outbox import OutboxRow, store_events
from shared.standing import decode_standing
from shared.subjects import (
    ACCESS_BUCKET,
    STANDING_BUCKET,
    USERS_BUCKET,
    msg_subject,
    user_subject,
)

if TYPE_CHECKING:
    import asyncpg

KIND_ACCESS: Final = "access"
KIND_USER: Final = "user"
KIND_STANDING: Final = "standing"
KIND_EVENT: Final = "event"
KIND_CREATED: Final = "created"
KIND_FEED: Final = "feed"
DOMAIN_PREFIX: Final = "messaging."
THREAD_CREATED: Final = "messaging.thread.created"
THREAD_ARCHIVED: Final = "messaging.thread.archived"

SOURCE: Final = "/lilith/api"
EVENT_HEADERS: Final = {"content-type": "application/cloudevents+json"}
_EVENT_TIMEOUT_S: Final = 5.0
_CONFLICTS_MAX: Final = 20
_CONFLICT_PAUSE_S: Final = 0.05

_log = logging.getLogger(__name__)


class ForOne(msgspec.Struct, frozen=True):
    """A frame, and whose sessions get it."""

    user_id: str
    frame: msgspec.Raw


_FOR_ONE: Final = msgspec.json.Decoder(ForOne)


class Relay:
    """Publishes outbox rows. Its ``publish`` is what ``shared.outbox.Outbox`` calls."""

    def __init__(self, bus: Bus, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._bus = bus
        self._pool = pool

    async def publish(self, rows: Sequence[OutboxRow]) -> None:
        """Publish the rows in their order; domain events last, together.

        Raises:
            BusError, or one of ``shared.database.TRANSIENT_ERRORS``: try all of them again.
        """
        domain: list[OutgoingMessage] = []
        told_feeds = False
        for row in rows:
            if row.kind == KIND_ACCESS:
                await put_entry(self._bus, ACCESS_BUCKET, row.subject, row.payload)
            elif row.kind == KIND_USER:
                await put_entry(self._bus, USERS_BUCKET, row.subject, row.payload)
            elif row.kind == KIND_STANDING:
                await put_entry(self._bus, STANDING_BUCKET, row.subject, row.payload)
            elif row.kind == KIND_EVENT:
                await self._bus.store(
                    msg_subject(ThreadId(row.subject)),
                    row.payload,
                    message_id=row.message_id,
                    timeout_s=_EVENT_TIMEOUT_S,
                )
            elif row.kind == KIND_CREATED:
                await self._tell_members(ThreadId(row.subject), row.payload)
                told_feeds = True
            elif row.kind == KIND_FEED:
                told = _FOR_ONE.decode(row.payload)
                self._bus.publish(user_subject(UserId(told.user_id)), bytes(told.frame))
                told_feeds = True
            elif row.kind.startswith(DOMAIN_PREFIX):
                domain.append(OutgoingMessage(row.kind, row.payload, row.message_id, EVENT_HEADERS))
            else:
                _log.error("outbox row %d has an unknown kind %r: dropped", row.id, row.kind)
        if told_feeds:
            await self._bus.flush()
        if domain:
            await store_events(self._bus, domain)

    async def _tell_members(self, thread_id: ThreadId, frame: bytes) -> None:
        async with self._pool.acquire(timeout=POOL_WAIT_S) as connection:
            user_ids = await connection.fetchval(thread_queries.MEMBER_IDS, thread_id)
        for user_id in user_ids or ():
            self._bus.publish(user_subject(UserId(user_id)), frame)


_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    ACCESS_BUCKET: decode_access,
    USERS_BUCKET: decode_user,
    STANDING_BUCKET: decode_standing,
}


async def put_entry(bus: Bus, bucket: str, key: str, value: bytes) -> bool:
    """Write an entry of bucket ``access``, ``users`` or ``standing`` unless an equal or newer one is there.

    Returns:
        Whether it was written.

    Raises:
        KvConflictError: Lost against other writers again and again: try later.
        BusError: NATS did not answer.
    """
    decode = _DECODERS[bucket]
    revision = decode(value).revision
    expected = 0
    for _ in range(_CONFLICTS_MAX):
        stored = await bus.kv_get(bucket, key)
        if stored is not None and _revision(decode, stored.value) >= revision:
            return False
        expected = 0 if stored is None else stored.revision
        try:
            await bus.kv_put(bucket, key, value, expected=expected)
        except KvConflictError:
            # Another writer was faster, or the replica that was read lags behind: decide again.
            await asyncio.sleep(_CONFLICT_PAUSE_S)
        else:
            return True
    raise KvConflictError(bucket, key, expected=expected)


def event_row(event: AnyThreadEvent, event_id: str) -> tuple[str, str, bytes]:
    """Return kind, message id and payload of the row that publishes an event of a thread."""
    return KIND_EVENT, event_id, encode_event(event)


def feed_row(user_id: UserId, frame: bytes) -> tuple[str, None, bytes]:
    """Return kind, message id and payload of the row that brings a frame to every session of one user."""
    return KIND_FEED, None, msgspec.json.encode(ForOne(user_id, msgspec.Raw(frame)))


def domain_row(kind: str, subject: str, data: dict[str, Any]) -> tuple[str, str, bytes]:
    """Return kind, message id and payload of the row that publishes a domain event (CloudEvents 1.0, structured).

    Args:
        kind: The event's type, which is its NATS subject: ``messaging.thread.created``.
        subject: What it tells of: a thread id, else a user id.
        data: Its own fields. Never a message body.
    """
    event_id = new_id()
    event = {
        "specversion": "1.0",
        "id": event_id,
        "source": SOURCE,
        "type": kind,
        "subject": subject,
        "time": timestamp(),
        "datacontenttype": "application/json",
        "data": data,
    }
    return kind, event_id, msgspec.json.encode(event)


def _revision(decode: Callable[[bytes], Any], value: bytes) -> int:
    try:
        return int(decode(value).revision)
    except msgspec.DecodeError:
        # Not one of ours: whatever it is, it decides nothing.
        return 0
