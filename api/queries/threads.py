"""SQL of threads and their members: lists, objects, making and changing them."""

from typing import Final, LiteralString

from api.queries.objects import (
    COUNT_UNREAD,
    MESSAGE_COLUMNS,
    PARTICIPANT_COLUMNS,
    PARTICIPANT_JOINS,
    UNREAD_MESSAGES,
)

# Which threads a user sees on one page, by last activity: ids and the sort key; what they look like is OBJECTS.
#   $1 text asking user   $2 bool archived   $3 text participant or null   $4 text lower-case part of the title or of
#   another member's name or id, or null   $5 bool unread or null   $6 timestamptz, $7 uuid: the last row of the page
#   before, or nulls   $8 int limit
PAGE: Final[LiteralString] = (
    "SELECT t.thread_id, active.at AS active_at"  # noqa: S608 - constants of this package only
    """
    FROM thread_members AS me
    JOIN threads AS t ON t.thread_id = me.thread_id
    LEFT JOIN thread_tails AS tail ON tail.thread_id = me.thread_id
    LEFT JOIN receipts AS mine ON mine.thread_id = me.thread_id AND mine.user_id = me.user_id
    CROSS JOIN LATERAL (SELECT greatest(t.created_at, tail.last_activity_at) AS at) AS active
    WHERE me.user_id = $1 AND me.removed_at IS NULL
      AND (t.archived_at IS NOT NULL) = $2::bool
      AND ($3::text IS NULL OR EXISTS (
          SELECT FROM thread_members AS other
          WHERE other.thread_id = me.thread_id AND other.user_id = $3 AND other.removed_at IS NULL
      ))
      AND ($4::text IS NULL OR position($4 IN lower(t.title)) > 0 OR EXISTS (
          SELECT FROM thread_members AS other
          LEFT JOIN users AS u ON u.user_id = other.user_id
          WHERE other.thread_id = me.thread_id AND other.user_id <> me.user_id AND other.removed_at IS NULL
            AND (position($4 IN lower(u.name)) > 0 OR position($4 IN lower(other.user_id)) > 0)
      ))
      AND ($6::timestamptz IS NULL OR (active.at, t.thread_id) < ($6, $7::uuid))
      AND ($5::bool IS NULL OR $5 = EXISTS (
    """
    + UNREAD_MESSAGES
    + """
      ))
    ORDER BY active.at DESC, t.thread_id DESC
    LIMIT $8::int
    """
)

# The objects Thread as one member sees them, joined by commas in the order asked for; of threads of others, nothing.
# One row; objects is null when there are none. revision is the one of the last thread: for one thread, its own.
#   $1 text asking user   $2 uuid[] threads   $3 text[] their cursor suffixes   $4 bigint unread counted at most
OBJECTS: Final[LiteralString] = (
    "SELECT string_agg(row_to_json(o)::text, ',' ORDER BY asked.n) AS objects, max(t.revision) AS revision"  # noqa: S608
    """
    FROM unnest($2::uuid[], $3::text[]) WITH ORDINALITY AS asked(thread_id, suffix, n)
    JOIN thread_members AS me
      ON me.thread_id = asked.thread_id AND me.user_id = $1 AND me.removed_at IS NULL
    JOIN threads AS t ON t.thread_id = me.thread_id
    LEFT JOIN thread_tails AS tail ON tail.thread_id = me.thread_id
    LEFT JOIN receipts AS mine ON mine.thread_id = me.thread_id AND mine.user_id = me.user_id
    CROSS JOIN LATERAL (
        SELECT json_agg(row_to_json(one)) AS list
        FROM (
            SELECT
    """
    + PARTICIPANT_COLUMNS
    + "FROM thread_members AS p"
    + PARTICIPANT_JOINS
    + """
            WHERE p.thread_id = me.thread_id AND p.removed_at IS NULL
            ORDER BY (p.role = 'owner') DESC, p.joined_at, p.user_id
            LIMIT 100
        ) AS one
    ) AS participants
    CROSS JOIN LATERAL (
        SELECT count(*) AS count FROM thread_members AS p
        WHERE p.thread_id = me.thread_id AND p.removed_at IS NULL
    ) AS members
    CROSS JOIN LATERAL (
    """
    + COUNT_UNREAD
    + """
            LIMIT $4::bigint
        ) AS unread_messages
    ) AS counted
    LEFT JOIN LATERAL (
        SELECT row_to_json(message) AS object
        FROM (
            SELECT m.*, asked.suffix FROM messages AS m
            WHERE m.thread_id = me.thread_id AND m.seq >= me.visible_from
            ORDER BY m.seq DESC
            LIMIT 1
        ) AS m
    """
    + "CROSS JOIN LATERAL (SELECT "
    + MESSAGE_COLUMNS
    + """
        ) AS message
    ) AS last ON true
    CROSS JOIN LATERAL (
        SELECT
            encode(uuid_send(t.thread_id), 'hex') AS thread_id,
            t.kind,
            t.title,
            t.metadata,
            t.owner_id,
            to_char(t.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS created_at,
            to_char(t.archived_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS archived_at,
            participants.list AS participants,
            members.count AS participant_count,
            last.object AS last_message,
            counted.unread,
            coalesce(mine.read_seq, 0) AS read_seq,
            coalesce(tail.last_seq, 0) AS last_seq,
            CASE WHEN tail.last_seq > 0 THEN to_hex(tail.last_seq) || asked.suffix ELSE '0' END AS cursor,
            '[]'::json AS tags,
            false AS pinned,
            NULL::text AS muted_until,
            NULL::text AS draft,
            false AS me_archived
    ) AS o
    """
)

# What decides whether a user may write to a thread. No row: not a member.
#   $1 uuid thread   $2 text asking user
MEMBERSHIP: Final[LiteralString] = """
    SELECT t.kind, t.owner_id, t.revision, t.archived_at IS NOT NULL AS archived, me.role, me.visible_from
    FROM thread_members AS me
    JOIN threads AS t ON t.thread_id = me.thread_id
    WHERE me.thread_id = $1 AND me.user_id = $2 AND me.removed_at IS NULL
"""

# A user's threads: to find the one that a cursor belongs to.
#   $1 text asking user
THREADS_OF: Final[LiteralString] = """
    SELECT thread_id FROM thread_members WHERE user_id = $1 AND removed_at IS NULL
"""

# No row when the pair of a direct thread has one already; whoever inserts first wins, the other waits and finds it.
#   $1 uuid thread   $2 text kind   $3 text title   $4 jsonb metadata   $5 text owner   $6 text history
#   $7 text direct key or null
INSERT_THREAD: Final[LiteralString] = """
    INSERT INTO threads (thread_id, kind, title, metadata, owner_id, history, direct_key)
    VALUES ($1, $2, $3, $4::jsonb, $5, $6, $7)
    ON CONFLICT (direct_key) DO NOTHING
    RETURNING created_at
"""

# Everybody sees a new thread from its beginning. All rows get one joined_at: the transaction's.
#   $1 uuid thread   $2 text[] users   $3 text[] their roles
INSERT_MEMBERS: Final[LiteralString] = """
    INSERT INTO thread_members (thread_id, user_id, role)
    SELECT $1, member.user_id, member.role FROM unnest($2::text[], $3::text[]) AS member(user_id, role)
"""

# The thread of a pair, locked until the transaction ends.
#   $1 text direct key
LOCK_DIRECT: Final[LiteralString] = """
    SELECT thread_id, archived_at IS NOT NULL AS archived FROM threads WHERE direct_key = $1 FOR UPDATE
"""

# A thread that somebody is about to change, locked until the transaction ends. Whether they may is asked afterwards, in
# a statement of its own: one that waited for the lock would still see the members as they were before it.
#   $1 uuid thread
LOCK: Final[LiteralString] = """
    SELECT kind, title, metadata::text AS metadata, history, archived_at IS NOT NULL AS archived, revision
    FROM threads WHERE thread_id = $1 FOR UPDATE
"""

# An archived thread keeps the time at which it was archived first.
#   $1 uuid thread   $2 text title   $3 jsonb metadata   $4 bool archived
UPDATE: Final[LiteralString] = """
    UPDATE threads SET
        title = $2,
        metadata = $3::jsonb,
        archived_at = CASE WHEN $4::bool THEN coalesce(archived_at, now()) END,
        archive_reason = CASE WHEN $4::bool THEN coalesce(archive_reason, 'user') END,
        revision = revision + 1
    WHERE thread_id = $1
    RETURNING revision, now() AS changed_at
"""

# Who is a member now: the receivers of what the outbox says of a thread.
#   $1 uuid thread
MEMBER_IDS: Final[LiteralString] = """
    SELECT array_agg(user_id ORDER BY user_id) AS user_ids
    FROM thread_members WHERE thread_id = $1 AND removed_at IS NULL
"""
