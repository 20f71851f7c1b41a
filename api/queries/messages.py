"""SQL of messages: pages of history, one message, what a retry asks. Only reads: the persister writes them."""

from typing import Final, LiteralString

from api.queries.objects import MESSAGE_COLUMNS_IN_THREAD, QUOTE_IN_THREAD

_ME: Final[LiteralString] = """
    WITH me AS MATERIALIZED (
        SELECT visible_from FROM thread_members WHERE thread_id = $1 AND user_id = $2 AND removed_at IS NULL
    )
"""

_ITEM: Final[LiteralString] = (
    "FROM found AS m CROSS JOIN me "
    + "CROSS JOIN LATERAL (SELECT "
    + MESSAGE_COLUMNS_IN_THREAD
    + ") AS o"
)

_FOUND: Final[LiteralString] = """
    , found AS (
        SELECT m.*, $3::text AS suffix
        FROM messages AS m
        WHERE m.thread_id = $1 AND m.seq > $4::bigint AND m.seq < $5::bigint
          AND m.seq >= (SELECT visible_from FROM me)
"""

# The body of a list, from numbered items. next_cursor tells where the next page begins and the bound that stays.
_BODY: Final[LiteralString] = """
    SELECT concat(
        '{"items":', coalesce(json_agg(item ORDER BY n) FILTER (WHERE n <= $6), '[]'),
        ',"next_cursor":', CASE WHEN max(n) > $6 THEN to_json(max(next) FILTER (WHERE n = $6))::text ELSE 'null' END,
        '}'
    ) AS body
    FROM numbered
    HAVING EXISTS (SELECT FROM me)
"""

# Pages of one thread. One row {body: text} for a member, no row for anybody else. One more message than the limit is
# read, to know whether there is a next page.
#   $1 uuid thread   $2 text asking user   $3 text cursor suffix   $4 bigint after (exclusive)
#   $5 bigint before (exclusive)   $6 int limit
LIST_NEWEST_FIRST: Final[LiteralString] = (
    _ME
    + _FOUND
    + """
        ORDER BY m.seq DESC
        LIMIT $6::int + 1
    ),
    numbered AS (
        SELECT row_number() OVER (ORDER BY m.seq DESC) AS n, row_to_json(o) AS item,
               concat('b.', to_hex($4::bigint), '.', to_hex(m.seq)) AS next
    """
    + _ITEM
    + ")"
    + _BODY
)

LIST_OLDEST_FIRST: Final[LiteralString] = (
    _ME
    + _FOUND
    + """
        ORDER BY m.seq
        LIMIT $6::int + 1
    ),
    numbered AS (
        SELECT row_number() OVER (ORDER BY m.seq) AS n, row_to_json(o) AS item,
               concat('a.', to_hex(m.seq), '.', to_hex($5::bigint)) AS next
    """
    + _ITEM
    + ")"
    + _BODY
)

# The newest messages of a thread, oldest first, as a JSON array without its brackets ('' when there are none).
#   $1 uuid thread   $2 text asking user   $3 text cursor suffix   $4 int limit
LATEST: Final[LiteralString] = (
    _ME  # noqa: S608 - constants of this package only
    + """
    , found AS (
        SELECT m.*, $3::text AS suffix
        FROM messages AS m
        WHERE m.thread_id = $1 AND m.seq >= (SELECT visible_from FROM me)
        ORDER BY m.seq DESC
        LIMIT $4::int
    )
    SELECT coalesce(string_agg(row_to_json(o)::text, ',' ORDER BY m.seq), '') AS items
    """
    + _ITEM
)

# The thread of a message, for its members; whether this one may see the message itself is asked by ONE. An id holds a
# digest of its thread, so it is in one only.
#   $1 uuid message   $2 text asking user
FIND_THREAD: Final[LiteralString] = """
    SELECT m.thread_id
    FROM messages AS m
    JOIN thread_members AS me ON me.thread_id = m.thread_id AND me.user_id = $2 AND me.removed_at IS NULL
    WHERE m.message_id = $1
"""

_ONE: Final[LiteralString] = (
    """
    FROM thread_members AS me
    JOIN LATERAL (
        SELECT m.*, $3::text AS suffix
        FROM messages AS m
        WHERE m.thread_id = $1 AND m.message_id = $4 AND m.seq >= me.visible_from
    ) AS m ON true
    """  # noqa: S608 - constants of this package only
    + "CROSS JOIN LATERAL (SELECT "
    + MESSAGE_COLUMNS_IN_THREAD
    + ") AS o WHERE me.thread_id = $1 AND me.user_id = $2 AND me.removed_at IS NULL"
)

# One message as the asking user sees it, as JSON text; no row when they may not.
#   $1 uuid thread   $2 text asking user   $3 text cursor suffix   $4 uuid message
ONE: Final[LiteralString] = "SELECT row_to_json(o)::text AS body" + _ONE

# What a new message answers, as its sender sees it, as JSON text; no row when it is nothing they may see.
#   $1 uuid thread   $2 text asking user   $3 uuid the message answered to
QUOTE_OF: Final[LiteralString] = (
    "SELECT o.quote::text AS quote"  # noqa: S608 - constants of this package only
    """
    FROM thread_members AS me
    CROSS JOIN LATERAL (SELECT $3::uuid AS reply_to, NULL::timestamptz AS deleted_at) AS m
    CROSS JOIN LATERAL (SELECT
    """
    + QUOTE_IN_THREAD
    + ") AS o WHERE me.thread_id = $1 AND me.user_id = $2 AND me.removed_at IS NULL"
)

# What is known of a message id, and how far the persister is, in one snapshot: without it a message stored between
# two statements would be reported as absent. Always one row.
#   $1 uuid thread   $2 uuid message   $3 text stream   $4 text consumer
FIND_FOR_RETRY: Final[LiteralString] = """
    SELECT
        c.last_seq AS persisted_seq,
        m.seq,
        to_char(m.sent_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS sent_at,
        encode(m.content_digest, 'hex') AS content_digest
    FROM (SELECT) AS always
    LEFT JOIN stream_cursors AS c ON c.stream = $3 AND c.consumer = $4
    LEFT JOIN messages AS m ON m.thread_id = $1 AND m.message_id = $2
"""

# How far the persister is in some threads of the asking user. What it passed over (a second copy, poison) moves no
# tail, so its own position counts too.
#   $1 uuid[] threads   $2 text[] the stream of each   $3 text consumer
REACHED: Final[LiteralString] = """
    SELECT coalesce(max(greatest(tail.last_seq, c.last_seq)), 0) AS last_seq
    FROM unnest($1::uuid[], $2::text[]) AS asked(thread_id, stream)
    LEFT JOIN thread_tails AS tail ON tail.thread_id = asked.thread_id
    LEFT JOIN stream_cursors AS c ON c.stream = asked.stream AND c.consumer = $3
"""

# Whether the persister has not reached these seqs of these streams.
#   $1 text[] streams   $2 bigint[] seqs   $3 text consumer
BEHIND: Final[LiteralString] = """
    SELECT EXISTS (
        SELECT
        FROM unnest($1::text[], $2::bigint[]) AS asked(stream, seq)
        LEFT JOIN stream_cursors AS c ON c.stream = asked.stream AND c.consumer = $3
        WHERE asked.seq > coalesce(c.last_seq, 0)
    ) AS behind
"""

# The newest message at or below a position, NULL for none, and how far the persister is, in one snapshot. One row.
#   $1 uuid thread   $2 bigint position   $3 text stream   $4 text consumer
NEWEST_AT: Final[LiteralString] = """
    SELECT c.last_seq AS persisted_seq, (SELECT max(seq) FROM messages WHERE thread_id = $1 AND seq <= $2) AS seq
    FROM (SELECT) AS always
    LEFT JOIN stream_cursors AS c ON c.stream = $3 AND c.consumer = $4
"""

# A message that somebody is about to change, as they see it, and what decides whether they may. No row: they see none.
#   $1 uuid thread   $2 text asking user   $3 text cursor suffix   $4 uuid message
TO_CHANGE: Final[LiteralString] = (
    "SELECT m.sender_id, m.kind, m.seq, m.changed_seq, m.edited_at, m.deleted_at IS NOT NULL AS deleted,"
    " row_to_json(o)::text AS object" + _ONE
)

# The versions of a message, oldest first, the current one included; none of a deleted one. One row {body: text}, no row
# when the asking user may not see the message. One version more than the limit is read.
#   $1 uuid thread   $2 text asking user   $3 uuid message   $4 int version after which to begin   $5 int limit
HISTORY: Final[LiteralString] = """
    WITH target AS MATERIALIZED (
        SELECT m.*
        FROM thread_members AS me
        JOIN messages AS m ON m.thread_id = $1 AND m.message_id = $3 AND m.seq >= me.visible_from
        WHERE me.thread_id = $1 AND me.user_id = $2 AND me.removed_at IS NULL
    ), versions AS (
        SELECT version, e.body, e.edited_at, editor_id
        FROM message_edits AS e JOIN target ON e.thread_id = $1 AND e.message_id = target.message_id
        UNION ALL
        -- As sent: a message that was never edited has no versions of its own.
        SELECT 1, body, sent_at, sender_id FROM target WHERE edited_at IS NULL AND deleted_at IS NULL
    ), numbered AS (
        SELECT row_number() OVER (ORDER BY version) AS n, version, json_build_object(
            'version', version,
            'body', body,
            'edited_at', to_char(edited_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
            'editor_id', editor_id
        ) AS item
        FROM versions WHERE version > $4::int ORDER BY version LIMIT $5::int + 1
    )
    SELECT concat(
        '{"items":', coalesce(json_agg(item ORDER BY n) FILTER (WHERE n <= $5), '[]'),
        ',"next_cursor":',
        CASE WHEN max(n) > $5 THEN to_json(to_hex(max(version) FILTER (WHERE n = $5)))::text ELSE 'null' END,
        '}'
    ) AS body
    FROM numbered
    HAVING EXISTS (SELECT FROM target)
"""
