"""What the api answers on NATS: ``svc.message.find``, ``.position`` and ``.send``, and ``svc.user.seen``.

Requests come from edges and platform services; the queue group gives each to one api process. A handler that fails is
answered with an error by the bus, so an asker never waits for nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Literal, LiteralString

import msgspec

from api.dependencies import Parts
from api.messages import send
from api.positions import stream_tail
from api.problems import ProblemError, problem_of
from api.queries import messages as message_queries
from api.queries import users as user_queries
from api.relay import put_entry
from shared.access import UserEntry
from shared.auth import ROLES
from shared.bus import BusError, Subscription
from shared.errors import InvalidIdError, LilithError
from shared.identity import ThreadId, canonical_id, client_message_id, message_id, user_id
from shared.outbox import NotRelayedError
from shared.protocol import (
    RETRYABLE,
    Error,
    ErrorCode,
    FrameError,
    SendMessage,
    parse_object,
)
from shared.subjects import (
    PERSISTER_DURABLE,
    SVC_MESSAGE_FIND,
    SVC_MESSAGE_POSITION,
    SVC_MESSAGE_SEND,
    SVC_QUEUE,
    SVC_USER_SEEN,
    USERS_BUCKET,
    stream_of,
)

if TYPE_CHECKING:
    import asyncpg

CONCURRENCY: Final = 32
"""Requests of one service at a time: more would only wait for a connection to PostgreSQL."""

FIND_WAIT_S: Final = 1.5
"""The persister is usually some milliseconds behind: waiting for it beats answering ``unknown``."""

_FIND_POLL_S: Final = 0.05
_NAME_CHARS_MAX: Final = 100


Status = Literal["stored", "absent", "unknown"]


class FindMessage(msgspec.Struct, frozen=True):
    """Was this triple ever stored? Asked before a late retry is published."""

    thread_id: str
    sender_id: str
    client_msg_id: str
    content_digest: str = ""


class Found(msgspec.Struct, frozen=True, omit_defaults=True):
    """``stored`` with its position and content, ``absent`` for certain, or ``unknown``: try again later."""

    status: Status
    message_id: str | None = None
    seq: int | None = None
    sent_at: str | None = None
    content_digest: str | None = None


class FindPosition(msgspec.Struct, frozen=True):
    """Where is this message, or which is the newest one at or below this position? Asked to move a read marker."""

    thread_id: str
    message_id: str | None = None
    seq: int = 0


class SeenUser(msgspec.Struct, frozen=True):
    """What a token says of a user."""

    user_id: str
    role: str
    name: str | None = None


class SendFor(SendMessage, frozen=True, kw_only=True, tag=SVC_MESSAGE_SEND):
    """A message that a platform service sends for a user."""

    sender_id: str


class Services:
    """Serves the four requests while the process lives."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def serve(self) -> list[Subscription]:
        """Begin to answer; ``Subscription.close`` ends it."""
        handlers: dict[str, Callable[[bytes], Awaitable[bytes]]] = {
            SVC_MESSAGE_FIND: self.find,
            SVC_MESSAGE_POSITION: self.position,
            SVC_USER_SEEN: self.seen,
            SVC_MESSAGE_SEND: self.send,
        }
        return [
            self._parts.bus.serve(
                subject, SVC_QUEUE, self._counting(subject, handler), concurrency=CONCURRENCY
            )
            for subject, handler in handlers.items()
        ]

    async def find(self, payload: bytes) -> bytes:
        """Answer ``svc.message.find``.

        ``absent`` only if the persister has passed the last seq that the stream had *when this was asked*: whatever
        was stored before is then either in PostgreSQL or nowhere.

        Raises:
            FrameError, InvalidIdError: Not a request of ours.
        """
        asked = parse_object(payload, FindMessage)
        thread_id = ThreadId(canonical_id(asked.thread_id))
        client_msg_id = client_message_id(asked.client_msg_id)
        wanted = message_id(thread_id, user_id(asked.sender_id), client_msg_id)
        row, is_certain = await self._look_up(message_queries.FIND_FOR_RETRY, thread_id, wanted)
        if row["seq"] is None:
            return msgspec.json.encode(Found("absent" if is_certain else "unknown"))
        found = Found("stored", wanted, row["seq"], row["sent_at"], row["content_digest"])
        return msgspec.json.encode(found)

    async def position(self, payload: bytes) -> bytes:
        """Answer ``svc.message.position``: where a message is, or which is the newest one at or below a position.

        Raises:
            FrameError, InvalidIdError: Not a request of ours.
        """
        asked = parse_object(payload, FindPosition)
        thread_id = ThreadId(canonical_id(asked.thread_id))
        if asked.message_id is not None:
            wanted = canonical_id(asked.message_id)
            row, is_certain = await self._look_up(message_queries.FIND_FOR_RETRY, thread_id, wanted)
            absent: Status = "absent" if is_certain else "unknown"
            status: Status = absent if row["seq"] is None else "stored"
        else:
            # One that is newer than what PostgreSQL has could be the wanted one: there must be none.
            row, is_certain = await self._look_up(
                message_queries.NEWEST_AT, thread_id, asked.seq, is_first_enough=False
            )
            status = "stored" if is_certain else "unknown"
        return msgspec.json.encode(Found(status, seq=row["seq"] or 0))

    async def seen(self, payload: bytes) -> bytes:
        """Answer ``svc.user.seen`` with the user's entry, once every edge can read it.

        Raises:
            FrameError, InvalidIdError, NotRelayedError, BusError: The edge asks again at the next connection.
        """
        asked = parse_object(payload, SeenUser)
        name = asked.name if asked.name and len(asked.name) <= _NAME_CHARS_MAX else None
        if asked.role not in ROLES:
            raise FrameError(ErrorCode.INVALID)
        user = user_id(asked.user_id)
        rows = await self._parts.seen.record(user, name, asked.role)
        if rows:
            await self._parts.outbox.relay_now(rows)
        async with self._parts.connection() as connection:
            row = await connection.fetchrow(user_queries.PROFILE, user)
        assert row is not None  # noqa: S101 - users are never deleted
        entry = UserEntry(user, row["revision"], row["name"], row["avatar_url"], row["role"])
        value = msgspec.json.encode(entry)
        if not rows:
            # Known, and yet the edge had to ask: the bucket may have lost the entry.
            await put_entry(self._parts.bus, USERS_BUCKET, user, value)
        return value

    async def send(self, payload: bytes) -> bytes:
        """Answer ``svc.message.send`` with the object Message, or with the WebSocket's ``error`` frame."""
        try:
            asked = parse_object(payload, SendFor)
            sender = user_id(asked.sender_id)
            if await self._parts.standing.is_banned(sender):
                return _error(ProblemError(ErrorCode.BANNED))
            outcome = await send(self._parts, sender, asked)
        except InvalidIdError:
            return _error(ProblemError(ErrorCode.NOT_FOUND))
        except (LilithError, TimeoutError) as error:
            return _error(problem_of(error))
        return outcome.message

    async def _look_up(
        self,
        statement: LiteralString,
        thread_id: ThreadId,
        wanted: str | int,
        *,
        is_first_enough: bool = True,
    ) -> "tuple[asyncpg.Record, bool]":
        """Return the row, and whether it is final: the persister has passed what the stream held when asked.

        A row without that may still get a (larger) ``seq``.

        Args:
            statement: Its parameters are thread, ``wanted``, stream and consumer; it always returns one row.
            thread_id: The thread.
            wanted: What is looked for.
            is_first_enough: Whether a row that has a ``seq`` will not change any more.
        """
        stream = stream_of(thread_id, self._parts.settings.messaging_streams)
        try:
            tail = await stream_tail(self._parts.bus, stream)
        except BusError:
            tail = None
        deadline = time.monotonic() + FIND_WAIT_S
        while True:
            async with self._parts.connection() as connection:
                row = await connection.fetchrow(
                    statement, thread_id, wanted, stream, PERSISTER_DURABLE
                )
            assert row is not None  # noqa: S101 - the statement always returns a row
            is_certain = tail is not None and (row["persisted_seq"] or 0) >= tail
            is_found = is_first_enough and row["seq"] is not None
            if is_found or is_certain or tail is None or time.monotonic() > deadline:
                return row, is_certain
            await asyncio.sleep(_FIND_POLL_S)

    def _counting(
        self, name: str, handler: Callable[[bytes], Awaitable[bytes]]
    ) -> Callable[[bytes], Awaitable[bytes]]:
        async def counted(payload: bytes) -> bytes:
            result = "failed"
            try:
                answer = await handler(payload)
                result = "answered"
            except (FrameError, InvalidIdError):
                result = "refused"
                raise
            except NotRelayedError:
                result = "late"
                raise
            finally:
                self._parts.metrics.services.labels(name, result).inc()
            return answer

        return counted


def _error(problem: ProblemError) -> bytes:
    retry_after = problem.headers.get("Retry-After")
    frame = Error(
        code=problem.code,
        message=problem.detail,
        retryable=problem.code in RETRYABLE,
        retry_after_ms=int(retry_after) * 1000 if retry_after else msgspec.UNSET,
        details=problem.errors or msgspec.UNSET,
    )
    return msgspec.json.encode(frame)
