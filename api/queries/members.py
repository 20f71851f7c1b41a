"""SQL of members: pages of them, one of them, who joins, leaves and gets another role."""

from typing import Final, LiteralString

from api.queries.objects import PARTICIPANT_COLUMNS, PARTICIPANT_JOINS

# The members of a thread, for a member: objects joined by commas, and the sort key of the last one.
#   $1 uuid thread   $2 text asking user   $3 timestamptz, $4 text: the last row of the page before, or nulls
#   $5 int limit
MEMBERS: Final[LiteralString] = (
    "SELECT row_to_json(o)::text AS object, p.joined_at, p.user_id"  # noqa: S608 - constants of this package only
    """
    FROM thread_members AS me
    JOIN thread_members AS p ON p.thread_id = me.thread_id AND p.removed_at IS NULL
    """
    + PARTICIPANT_JOINS
    + "CROSS JOIN LATERAL (SELECT "
    + PARTICIPANT_COLUMNS
    + """
    ) AS o
    WHERE me.thread_id = $1 AND me.user_id = $2 AND me.removed_at IS NULL
      AND ($3::timestamptz IS NULL OR (p.joined_at, p.user_id) > ($3, $4::text))
    ORDER BY p.joined_at, p.user_id
    LIMIT $5::int
    """
)

# One member, as the others see them.
#   $1 uuid thread   $2 text user
PARTICIPANT: Final[LiteralString] = (
    "SELECT row_to_json(o)::text AS object FROM thread_members AS p"  # noqa: S608 - constants of this package only
    + PARTICIPANT_JOINS
    + "CROSS JOIN LATERAL (SELECT "
    + PARTICIPANT_COLUMNS
    + ") AS o WHERE p.thread_id = $1 AND p.user_id = $2 AND p.removed_at IS NULL"
)

# A present or former member.
#   $1 uuid thread   $2 text user
READ: Final[LiteralString] = """
    SELECT role, removed_at IS NOT NULL AS removed FROM thread_members WHERE thread_id = $1 AND user_id = $2
"""

#   $1 uuid thread
COUNT: Final[LiteralString] = """
    SELECT count(*) AS members FROM thread_members WHERE thread_id = $1 AND removed_at IS NULL
"""

# Somebody joins, for the first time or again.
#   $1 uuid thread   $2 text user   $3 text role   $4 bigint the first seq that they see, 0: all
JOIN: Final[LiteralString] = """
    INSERT INTO thread_members (thread_id, user_id, role, visible_from) VALUES ($1, $2, $3, $4)
    ON CONFLICT (thread_id, user_id) DO UPDATE SET
        role = excluded.role,
        joined_at = now(),
        visible_from = excluded.visible_from,
        removed_at = NULL,
        changed_xid = pg_current_xact_id()
"""

#   $1 uuid thread   $2 text user   $3 text role
SET_ROLE: Final[LiteralString] = """
    UPDATE thread_members SET role = $3, changed_xid = pg_current_xact_id() WHERE thread_id = $1 AND user_id = $2
"""

#   $1 uuid thread   $2 text user
REMOVE: Final[LiteralString] = """
    UPDATE thread_members SET removed_at = now(), changed_xid = pg_current_xact_id()
    WHERE thread_id = $1 AND user_id = $2
"""

# Every change of the members is a new revision of the thread; a thread that is handed over has a new owner.
#   $1 uuid thread   $2 text owner, or null: the same
CHANGED: Final[LiteralString] = """
    UPDATE threads SET revision = revision + 1, owner_id = coalesce($2, owner_id)
    WHERE thread_id = $1
    RETURNING now() AS changed_at
"""

# How far the persister is in a thread; no row while it has nothing of it.
#   $1 uuid thread
TAIL: Final[LiteralString] = "SELECT last_seq FROM thread_tails WHERE thread_id = $1"
