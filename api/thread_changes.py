"""Making and changing threads: what is written in one transaction, and what the outbox tells of it.

PostgreSQL first. Each function runs inside the caller's transaction, holds the thread's lock to its end, and leaves
outbox rows behind under the thread's id; after the commit the route waits until ``api.relay`` has published them.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from api.access import access_of
from api.problems import ProblemError, unavailable
from api.queries import outbox as outbox_queries
from api.queries import threads as queries
from api.relay import KIND_CREATED, THREAD_ARCHIVED, THREAD_CREATED, domain_row, event_row
from shared.cursors import cursor_suffix
from shared.events import ThreadArchived, ThreadChanged, timestamp
from shared.identity import ThreadId, UserId, new_id
from shared.outbox import NotRelayedError
from shared.protocol import UNREAD_MAX, ErrorCode

if TYPE_CHECKING:
    from api.dependencies import Connection, Parts

_WRITER_ROLES: Final = ("owner", "admin")


class NewThread(NamedTuple):
    """A thread to be made. ``others`` are its members besides the owner."""

    kind: Literal["direct", "group", "broadcast"]
    owner_id: UserId
    others: list[UserId]
    title: str | None
    metadata: dict[str, Any]
    history: Literal["all", "joined"]


class ThreadState(NamedTuple):
    """What PUT and PATCH may change."""

    title: str | None
    metadata: dict[str, Any]
    archived: bool


class LockedThread(NamedTuple):
    """A thread as it is while nobody else can change it, and its revision."""

    state: ThreadState
    revision: int


class ThreadText(NamedTuple):
    """The object Thread as one member sees it, as JSON text, and its revision."""

    body: str
    revision: int


async def insert_thread(connection: "Connection", thread_id: ThreadId, new: NewThread) -> bool:
    """Make the thread, with its members and its outbox rows.

    Returns:
        False, and nothing done, when the pair of a direct thread has one already.
    """
    created_at: datetime | None = await connection.fetchval(
        queries.INSERT_THREAD,
        thread_id,
        new.kind,
        new.title,
        _json(new.metadata),
        new.owner_id,
        new.history,
        direct_key(new),
    )
    if created_at is None:
        return False
    members = [new.owner_id, *new.others]
    roles = ["owner", *("member" for _ in new.others)]
    await connection.execute(queries.INSERT_MEMBERS, thread_id, members, roles)
    await connection.execute(outbox_queries.QUEUE_ACCESS, thread_id)
    # Nobody has written or read here yet, so the owner's view of the new thread is everybody's.
    thread = await read_thread(connection, thread_id, new.owner_id)
    frame = f'{{"type":"thread.created","thread":{thread.body}}}'.encode()
    await queue(connection, thread_id, (KIND_CREATED, None, frame))
    data = {
        "thread_id": thread_id,
        "kind": new.kind,
        "created_by": new.owner_id,
        "participants": members,
        "created_at": timestamp(created_at),
    }
    await queue(connection, thread_id, domain_row(THREAD_CREATED, thread_id, data))
    return True


async def reopen_direct(connection: "Connection", new: NewThread) -> ThreadId:
    """Return the thread that the pair has already, un-archived."""
    row = await connection.fetchrow(queries.LOCK_DIRECT, direct_key(new))
    # It cannot have gone: threads are archived, never deleted, and the key never changes.
    assert row is not None  # noqa: S101
    thread_id = ThreadId(row["thread_id"].hex)
    if row["archived"]:
        locked = await lock_thread(connection, thread_id, new.owner_id)
        await change_thread(
            connection, thread_id, locked, locked.state._replace(archived=False), by=new.owner_id
        )
    return thread_id


async def lock_thread(
    connection: "Connection", thread_id: ThreadId, user_id: UserId
) -> LockedThread:
    """Lock a thread for a change by one of those who may: owner and admins, in a direct thread both sides.

    Raises:
        ProblemError: ``not_found``: not a member; ``forbidden``: a member who may not.
    """
    row = await connection.fetchrow(queries.LOCK, thread_id)
    _entry, member = await access_of(connection, thread_id, user_id)
    assert row is not None  # noqa: S101 - it has a member, and threads are never deleted
    if row["kind"] != "direct" and member.role not in _WRITER_ROLES:
        raise ProblemError(ErrorCode.FORBIDDEN)
    metadata = msgspec.json.decode(row["metadata"], type=dict[str, Any])
    return LockedThread(ThreadState(row["title"], metadata, row["archived"]), row["revision"])


async def change_thread(
    connection: "Connection",
    thread_id: ThreadId,
    locked: LockedThread,
    wanted: ThreadState,
    *,
    by: UserId,
) -> int:
    """Bring a locked thread to the wanted state, and return its revision. Nothing to change makes no event."""
    changed = _changed(locked.state, wanted)
    is_archived_now = wanted.archived and not locked.state.archived
    if not changed and not is_archived_now:
        return locked.revision
    row = await connection.fetchrow(
        queries.UPDATE, thread_id, wanted.title, _json(wanted.metadata), wanted.archived
    )
    assert row is not None  # noqa: S101 - we hold its lock
    at = timestamp(row["changed_at"])
    # The entry before the events: what an edge lets through and what it shows must not contradict each other.
    await connection.execute(outbox_queries.QUEUE_ACCESS, thread_id)
    if changed:
        event_id = new_id()
        updated = ThreadChanged(thread_id, event_id, at, by, changed)
        await queue(connection, thread_id, event_row(updated, event_id))
    if is_archived_now:
        event_id = new_id()
        archived = ThreadArchived(thread_id, event_id, at, by, "user")
        await queue(connection, thread_id, event_row(archived, event_id))
        data = {"thread_id": thread_id, "reason": "user", "by": by, "at": at}
        await queue(connection, thread_id, domain_row(THREAD_ARCHIVED, thread_id, data))
    return int(row["revision"])


async def settle(parts: "Parts", subject: ThreadId | UserId) -> None:
    """Return when everything that was committed about the thread or user has been told to the edges.

    Raises:
        ProblemError: ``unavailable``: not within a second. The change is kept and will be told; the same request
            again finds it done.
    """
    async with parts.connection() as connection:
        rows = await connection.fetch(outbox_queries.PENDING, subject)
    if not rows:
        return
    try:
        await parts.outbox.relay_now([row["id"] for row in rows])
    except NotRelayedError as error:
        raise unavailable("The change is stored, but not everybody knows yet.") from error


async def read_thread(connection: "Connection", thread_id: ThreadId, user_id: UserId) -> ThreadText:
    """Return the thread as the user sees it.

    Raises:
        ProblemError: ``not_found``: not a member.
    """
    row = await connection.fetchrow(
        queries.OBJECTS, user_id, [thread_id], [cursor_suffix(thread_id)], UNREAD_MAX
    )
    if row is None or row["objects"] is None:
        raise ProblemError(ErrorCode.NOT_FOUND)
    return ThreadText(row["objects"], row["revision"])


def direct_key(new: NewThread) -> str | None:
    """Return the name of a pair, the same from both sides; ``None`` for a thread that is not direct."""
    if new.kind != "direct":
        return None
    return ":".join(sorted((new.owner_id, *new.others)))


def _changed(old: ThreadState, new: ThreadState) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    if old.title != new.title:
        changed["title"] = new.title
    # As JSON: in Python true equals 1.
    if _json(old.metadata) != _json(new.metadata):
        changed["metadata"] = new.metadata
    if old.archived and not new.archived:
        changed["archived_at"] = None
    return changed


async def queue(
    connection: "Connection", thread_id: ThreadId, row: tuple[str, str | None, bytes]
) -> None:
    """Leave a row in the outbox, under the thread's id: rows of one thread are published in their order."""
    kind, message_id, payload = row
    await connection.execute(outbox_queries.QUEUE, kind, thread_id, message_id, payload)


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()
