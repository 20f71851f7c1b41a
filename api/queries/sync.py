"""SQL of ``GET /api/sync``: what changed for a user, by the transactions that changed it."""

from typing import Final, LiteralString

from api.queries.objects import COUNT_UNREAD

# Where a reader is that has read nothing yet, or everything: whatever is not visible in this snapshot will carry a
# transaction id of at least xmin. generation names this history of transactions: the cluster, its timeline and the
# database; each kind of restore changes one of them. Asked on a primary only.
POSITION: Final[LiteralString] = """
    SELECT
        left(md5(concat_ws('.',
            (SELECT system_identifier FROM pg_control_system()),
            left(pg_walfile_name(pg_current_wal_lsn()), 8),
            (SELECT oid FROM pg_database WHERE datname = current_database())
        )), 8) AS generation,
        pg_snapshot_xmin(s.snapshot)::text AS xmin,
        pg_snapshot_xmax(s.snapshot)::text AS xmax
    FROM (SELECT pg_current_snapshot() AS snapshot) AS s
"""

# The threads of a user that changed in transaction $2 or later: the thread, the membership or the own read marker. An
# ended membership is one too. Without $2 all present ones. By thread, so that a page begins where the one before ended.
#   $1 text user   $2 text transaction id or null   $3 uuid thread after which to begin   $4 bigint unread counted at
#   most   $5 int limit
CHANGED_THREADS: Final[LiteralString] = (
    """
    WITH found AS (
        SELECT me.thread_id, me.user_id, me.visible_from, false AS removed, tail.last_seq, mine.read_seq
        FROM thread_members AS me
        LEFT JOIN thread_tails AS tail ON tail.thread_id = me.thread_id
        LEFT JOIN receipts AS mine ON mine.thread_id = me.thread_id AND mine.user_id = me.user_id
        WHERE me.user_id = $1 AND me.removed_at IS NULL AND me.thread_id > $3
          AND ($2::text IS NULL OR $2::text::xid8 <= ANY (ARRAY[me.changed_xid, tail.changed_xid, mine.changed_xid]))
        UNION ALL
        SELECT me.thread_id, me.user_id, me.visible_from, true, NULL, NULL
        FROM thread_members AS me
        WHERE me.user_id = $1 AND me.removed_at IS NOT NULL AND me.thread_id > $3
          AND me.changed_xid >= $2::text::xid8
        ORDER BY thread_id
        LIMIT $5::int
    )
    SELECT
        encode(uuid_send(me.thread_id), 'hex') AS thread_id,
        me.removed,
        coalesce(me.last_seq, 0) AS last_seq,
        CASE WHEN me.removed THEN 0 ELSE (
    """  # noqa: S608 - constants of this package only
    + COUNT_UNREAD
    + """
            LIMIT $4::bigint
        ) AS unread_messages) END AS unread
    FROM found AS me
    CROSS JOIN LATERAL (SELECT me.read_seq) AS mine
    ORDER BY me.thread_id
    """
)
