"""SQL of ``GET /api/threads/{id}/changes``: what is different in a thread since a position, as it is now."""

from typing import Final, LiteralString

from api.queries.objects import MESSAGE_COLUMNS_IN_THREAD

# Messages newer than the position; older ones that changed after it; facts of the thread. Each is one frame at its
# place in the log: a message at its own, as it is now; a change of an older message at the change's, the last one
# alone. One more than the limit is read of each, so that nothing before the end of the page is left out.
_FOUND: Final[LiteralString] = """
    WITH me AS MATERIALIZED (
        SELECT visible_from FROM thread_members WHERE thread_id = $1 AND user_id = $2 AND removed_at IS NULL
    ), found AS (
        (
            SELECT 'message.new' AS type, seq AS position, seq
            FROM messages
            WHERE thread_id = $1 AND seq > $4::bigint AND seq >= (SELECT visible_from FROM me)
            ORDER BY seq LIMIT $5::int + 1
        ) UNION ALL (
            SELECT CASE WHEN deleted_at IS NULL THEN 'message.updated' ELSE 'message.deleted' END, changed_seq, seq
            FROM messages
            WHERE thread_id = $1 AND changed_seq > $4::bigint AND changed_seq > seq AND seq <= $4::bigint
              AND seq >= (SELECT visible_from FROM me)
            ORDER BY changed_seq LIMIT $5::int + 1
        ) UNION ALL (
            SELECT type, seq, seq
            FROM thread_events
            WHERE thread_id = $1 AND seq > $4::bigint AND seq >= (SELECT visible_from FROM me)
            ORDER BY seq LIMIT $5::int + 1
        )
    ), page AS (
        SELECT *, row_number() OVER log AS n, lag(position, 1, $4::bigint) OVER log AS prev
        FROM found
        WINDOW log AS (ORDER BY position)
        ORDER BY position LIMIT $5::int + 1
    )
"""

_NEW: Final[LiteralString] = (
    "SELECT row_to_json(o) FROM ("  # noqa: S608 - constants of this package only
    "SELECT m.*, $3::text AS suffix FROM messages AS m WHERE m.thread_id = $1 AND m.seq = page.seq) AS m "
    "CROSS JOIN LATERAL (SELECT page.type, "
    + MESSAGE_COLUMNS_IN_THREAD
    + ", page.prev AS prev_seq) AS o"
)

_UPDATED: Final[LiteralString] = """
    SELECT json_build_object(
        'type', page.type,
        'thread_id', encode(uuid_send(m.thread_id), 'hex'),
        'message_id', encode(uuid_send(m.message_id), 'hex'),
        'body', m.body,
        'edited_at', to_char(m.edited_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
        'seq', page.position, 'prev_seq', page.prev, 'cursor', to_hex(page.position) || $3
    ) FROM messages AS m WHERE m.thread_id = $1 AND m.seq = page.seq
"""

_DELETED: Final[LiteralString] = """
    SELECT json_build_object(
        'type', page.type,
        'thread_id', encode(uuid_send(m.thread_id), 'hex'),
        'message_id', encode(uuid_send(m.message_id), 'hex'),
        'deleted_at', to_char(m.deleted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
        'seq', page.position, 'prev_seq', page.prev, 'cursor', to_hex(page.position) || $3
    ) FROM messages AS m WHERE m.thread_id = $1 AND m.seq = page.seq
"""

_FACT: Final[LiteralString] = """
    SELECT (e.payload || jsonb_build_object(
        'seq', page.position, 'prev_seq', page.prev, 'cursor', to_hex(page.position) || $3
    ))::json FROM thread_events AS e WHERE e.thread_id = $1 AND e.seq = page.seq
"""

# One row {body: text} for a member, no row for anybody else. next_cursor is the position of the page's last frame,
# cursor the end of the thread in this snapshot: everything up to there is on this page or on the ones after it.
#   $1 uuid thread   $2 text asking user   $3 text cursor suffix   $4 bigint position   $5 int limit
CHANGES: Final[LiteralString] = (
    _FOUND  # noqa: S608 - constants of this package only
    + ", items AS (SELECT page.n, page.position, CASE page.type"
    + " WHEN 'message.new' THEN ("
    + _NEW
    + ") WHEN 'message.updated' THEN ("
    + _UPDATED
    + ") WHEN 'message.deleted' THEN ("
    + _DELETED
    + ") ELSE ("
    + _FACT
    + """) END AS item FROM page CROSS JOIN me)
    SELECT concat(
        '{"items":', coalesce(json_agg(item ORDER BY n) FILTER (WHERE n <= $5), '[]'),
        ',"next_cursor":',
        CASE WHEN max(n) > $5 THEN to_json(to_hex(max(position) FILTER (WHERE n = $5)) || $3)::text ELSE 'null' END,
        ',"cursor":',
        to_json((
            SELECT CASE WHEN reached.seq > 0 THEN to_hex(reached.seq) || $3 ELSE '0' END
            FROM (
                SELECT greatest($4, (SELECT last_seq FROM thread_tails WHERE thread_id = $1)) AS seq
            ) AS reached
        ))::text,
        '}'
    ) AS body
    FROM items
    HAVING EXISTS (SELECT FROM me)
"""
)
