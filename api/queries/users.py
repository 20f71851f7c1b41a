"""SQL of users: what their tokens said of them, and what they see of themselves."""

from typing import Final, LiteralString

from api.queries.objects import UNREAD_MESSAGES

# The last token decides; a token without a name leaves the name as it was. No row when nothing changed.
#   $1 text user   $2 text name or null   $3 text role
SEEN: Final[LiteralString] = """
    INSERT INTO users AS known (user_id, name, role) VALUES ($1, $2, $3)
    ON CONFLICT (user_id) DO UPDATE SET
        name = coalesce(excluded.name, known.name),
        role = excluded.role,
        revision = known.revision + 1,
        seen_at = now()
    WHERE known.role <> excluded.role OR known.name IS DISTINCT FROM coalesce(excluded.name, known.name)
    RETURNING revision
"""

#   $1 text user
PROFILE: Final[LiteralString] = """
    SELECT name, avatar_url, role, revision FROM users WHERE user_id = $1
"""

# A user's unread messages over all threads, at most $2, as the feeds count them: a thread whose last message is read is
# not looked into.
#   $1 text user   $2 bigint count at most
UNREAD_TOTAL: Final[LiteralString] = (
    """
    SELECT count(*) AS unread_total FROM (
        SELECT
        FROM thread_members AS me
        JOIN thread_tails AS tail ON tail.thread_id = me.thread_id
        LEFT JOIN receipts AS mine ON mine.thread_id = me.thread_id AND mine.user_id = me.user_id
        CROSS JOIN LATERAL (
    """  # noqa: S608 - constants of this package only
    + UNREAD_MESSAGES
    + """
            LIMIT $2::bigint
        ) AS unread_messages
        WHERE me.user_id = $1 AND me.removed_at IS NULL AND tail.last_message_seq > coalesce(mine.read_seq, 0)
        LIMIT $2::bigint
    ) AS counted
    """
)

# Does PostgreSQL answer?
PROBE: Final[LiteralString] = "SELECT 1 AS alive"
