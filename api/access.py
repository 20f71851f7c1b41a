"""What a user may do in a thread, as PostgreSQL knows it now: the same entry, with one member, that edges cache."""

from typing import TYPE_CHECKING

from api.problems import not_found
from api.queries import threads as queries
from shared.access import AccessEntry, Member
from shared.identity import ThreadId, UserId

if TYPE_CHECKING:
    from api.dependencies import Connection


async def access_of(
    connection: "Connection", thread_id: ThreadId, user_id: UserId
) -> tuple[AccessEntry, Member]:
    """Return the thread's entry as far as it concerns one member, and the member.

    Raises:
        ProblemError: ``not_found``: not a member.
    """
    row = await connection.fetchrow(queries.MEMBERSHIP, thread_id, user_id)
    if row is None:
        raise not_found()
    member = Member(row["role"], "", row["visible_from"])
    entry = AccessEntry(
        thread_id=thread_id,
        revision=row["revision"],
        kind=row["kind"],
        owner_id=row["owner_id"],
        archived=row["archived"],
        members={user_id: member},
    )
    return entry, member
