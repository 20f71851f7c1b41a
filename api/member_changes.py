"""Who joins, leaves and decides: what is written in one transaction, and what the outbox tells of it.

Roles: the owner is above the admins, they are above the members. Owner and admins add and remove those below them; only
the owner makes admins. A thread always has exactly one owner: it is handed over by giving another member the role
``owner``, which makes the former one an admin, and until then its owner cannot leave.

The order of the outbox is what removal rests on: the ``access`` entry first, so that nobody lets the removed member in
any more, then the event in the log, where their reading ends exactly, then the word to their sessions.
"""

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from api.access import access_of
from api.positions import next_seq
from api.problems import ProblemError, invalid
from api.queries import members as queries
from api.queries import outbox as outbox_queries
from api.queries import threads as thread_queries
from api.queries import users as user_queries
from api.relay import event_row, feed_row
from api.thread_changes import queue, read_thread
from shared.access import MEMBERS_MAX, Role
from shared.cursors import encode_cursor
from shared.events import ThreadMember, timestamp
from shared.identity import ThreadId, UserId, new_id
from shared.protocol import UNREAD_MAX, ErrorCode, ThreadActivity
from shared.subjects import stream_of

if TYPE_CHECKING:
    from api.dependencies import Connection, Parts

_RANK: Final[dict[Role, int]] = {"member": 0, "admin": 1, "owner": 2}
_Change = Literal["joined", "left", "removed", "role"]


class LockedMembers(NamedTuple):
    """A thread whose members nobody else can change meanwhile, and who is about to change them."""

    thread_id: ThreadId
    history: Literal["all", "joined"]
    by: UserId
    role: Role


class _Told(NamedTuple):
    """One ``thread.member`` event to be."""

    user_id: UserId
    role: Role
    change: _Change


async def lock_members(
    connection: "Connection", thread_id: ThreadId, user_id: UserId
) -> LockedMembers:
    """Lock a thread for a change of its members.

    Raises:
        ProblemError: ``not_found``: not a member; ``invalid``: a direct thread has its two for ever.
    """
    row = await connection.fetchrow(thread_queries.LOCK, thread_id)
    _entry, member = await access_of(connection, thread_id, user_id)
    assert row is not None  # noqa: S101 - it has a member, and threads are never deleted
    if row["kind"] == "direct":
        raise invalid("/thread_id", "is a direct thread, whose members never change")
    return LockedMembers(thread_id, row["history"], user_id, member.role)


async def put_member(
    parts: "Parts",
    connection: "Connection",
    locked: LockedMembers,
    user_id: UserId,
    role: Role | None,
) -> bool:
    """Make somebody a member, or give a member another role.

    Args:
        parts: Of this process.
        connection: In the transaction that locked the thread.
        locked: The thread, and who asks.
        user_id: Whom.
        role: ``owner`` hands the thread over; None leaves a member's role, and makes a new one ``member``.

    Returns:
        Whether they joined.

    Raises:
        ProblemError: ``forbidden``; ``invalid``: a new member cannot own; ``limit_reached``.
        BusError: The end of the log cannot be asked for.
    """
    if locked.role == "member":
        raise ProblemError(ErrorCode.FORBIDDEN)
    row = await connection.fetchrow(queries.READ, locked.thread_id, user_id)
    if row is None or row["removed"]:
        await _join(parts, connection, locked, user_id, role or "member")
        return True
    if role is not None and role != row["role"]:
        await _set_role(connection, locked, user_id, row["role"], role)
    return False


async def remove_member(connection: "Connection", locked: LockedMembers, user_id: UserId) -> None:
    """Remove a member, or oneself. Who was removed before stays so, and nothing is told again.

    Raises:
        ProblemError: ``not_found``: never a member; ``forbidden``; ``conflict``: the owner wants to leave.
    """
    is_own = user_id == locked.by
    if is_own and locked.role == "owner":
        detail = "Hand the thread over first: give another member the role owner."
        raise ProblemError(ErrorCode.CONFLICT, detail)
    if not is_own and locked.role == "member":
        raise ProblemError(ErrorCode.FORBIDDEN)
    row = await connection.fetchrow(queries.READ, locked.thread_id, user_id)
    if row is None:
        raise ProblemError(ErrorCode.NOT_FOUND)
    if row["removed"]:
        return
    if not is_own:
        _require_above(locked, row["role"])
    await connection.execute(queries.REMOVE, locked.thread_id, user_id)
    change: _Change = "left" if is_own else "removed"
    await _tell(connection, locked, [_Told(user_id, row["role"], change)])
    frame = await _farewell(connection, locked.thread_id, user_id)
    await queue(connection, locked.thread_id, feed_row(user_id, frame))


async def _join(
    parts: "Parts", connection: "Connection", locked: LockedMembers, user_id: UserId, role: Role
) -> None:
    if role == "owner":
        raise invalid("/role", "can be owner only of somebody who is a member already")
    _require_above(locked, role)
    if await connection.fetchval(queries.COUNT, locked.thread_id) >= MEMBERS_MAX:
        detail = f"A thread has at most {MEMBERS_MAX} members."
        raise ProblemError(ErrorCode.LIMIT_REACHED, detail)
    visible_from = 0
    if locked.history == "joined":
        # The event of the join does not have its place yet. Everything that is stored from now on has a higher seq.
        stream = stream_of(locked.thread_id, parts.settings.messaging_streams)
        visible_from = await next_seq(parts.bus, stream)
    await connection.execute(queries.JOIN, locked.thread_id, user_id, role, visible_from)
    await _tell(connection, locked, [_Told(user_id, role, "joined")])
    thread = await read_thread(connection, locked.thread_id, user_id)
    frame = f'{{"type":"thread.created","thread":{thread.body}}}'.encode()
    await queue(connection, locked.thread_id, feed_row(user_id, frame))


async def _set_role(
    connection: "Connection", locked: LockedMembers, user_id: UserId, old: Role, new: Role
) -> None:
    told = [_Told(user_id, new, "role")]
    _require_above(locked, old)
    if new == "owner":
        if locked.role != "owner":
            raise ProblemError(ErrorCode.FORBIDDEN)
        await connection.execute(queries.SET_ROLE, locked.thread_id, locked.by, "admin")
        told.append(_Told(locked.by, "admin", "role"))
    else:
        _require_above(locked, new)
    await connection.execute(queries.SET_ROLE, locked.thread_id, user_id, new)
    await _tell(connection, locked, told, owner_id=user_id if new == "owner" else None)


async def _tell(
    connection: "Connection",
    locked: LockedMembers,
    told: list[_Told],
    *,
    owner_id: UserId | None = None,
) -> None:
    changed_at = await connection.fetchval(queries.CHANGED, locked.thread_id, owner_id)
    await connection.execute(outbox_queries.QUEUE_ACCESS, locked.thread_id)
    for one in told:
        event = ThreadMember(
            thread_id=locked.thread_id,
            event_id=new_id(),
            at=timestamp(changed_at),
            by=locked.by,
            user_id=one.user_id,
            role=one.role,
            change=one.change,
        )
        await queue(connection, locked.thread_id, event_row(event, event.event_id))


async def _farewell(connection: "Connection", thread_id: ThreadId, user_id: UserId) -> bytes:
    """Return the frame that takes a thread off the lists of somebody who is no member any more."""
    frame = ThreadActivity(
        thread_id=thread_id,
        cursor=encode_cursor(thread_id, await connection.fetchval(queries.TAIL, thread_id) or 0),
        unread=0,
        unread_total=await connection.fetchval(user_queries.UNREAD_TOTAL, user_id, UNREAD_MAX),
        last_message=None,
        me={"removed": True},
    )
    return msgspec.json.encode(frame)


def _require_above(locked: LockedMembers, role: Role) -> None:
    if _RANK[locked.role] <= _RANK[role]:
        raise ProblemError(ErrorCode.FORBIDDEN)
