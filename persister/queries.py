"""The SQL of the persister. A test prepares every constant on the migrated schema.

Batches travel as arrays: one round trip and one plan for any number of rows.
"""

from typing import Final, LiteralString

from shared.consumer import ConsumerQueries
from shared.outbox import OutboxQueries

MESSAGES: Final = "messages"
MESSAGE_COLUMNS: Final = (
    "thread_id",
    "seq",
    "message_id",
    "client_msg_id",
    "sender_id",
    "kind",
    "body",
    "attachments",
    "reply_to",
    "metadata",
    "sent_at",
    "changed_seq",
    "content_digest",
)
OUTBOX_TABLE: Final = "persister_outbox"
OUTBOX_COLUMNS: Final = ("kind", "subject", "message_id", "payload")

# The careful way; the quick one is COPY, which refuses the whole batch for one duplicate. A second copy of a message
# (a retry older than the dedupe window) has a higher seq, so the one that is kept is the one that was first. A
# conflict on (thread_id, seq) alone is another message at the same place: that must fail, not vanish.
#   $1…$13 one array per column of MESSAGE_COLUMNS, ascending by seq -> the seqs that are new
INSERT_MESSAGES: Final[LiteralString] = """
    INSERT INTO messages (thread_id, seq, message_id, client_msg_id, sender_id, kind, body, attachments, reply_to,
                          metadata, sent_at, changed_seq, content_digest)
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[],
                         $8::jsonb[], $9::uuid[], $10::jsonb[], $11::timestamptz[], $12::bigint[], $13::bytea[])
    ON CONFLICT (message_id, thread_id) DO NOTHING
    RETURNING seq
"""

# The api's relay may publish an event twice: its event_id is known then, and the first seq stays.
#   $1 uuid[] threads, $2 bigint[] seqs, $3 uuid[] event ids, $4 text[] types, $5 jsonb[] payloads, $6 timestamptz[]
INSERT_THREAD_EVENTS: Final[LiteralString] = """
    INSERT INTO thread_events (thread_id, seq, event_id, type, payload, at)
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::jsonb[], $6::timestamptz[])
    ON CONFLICT (event_id, thread_id) DO NOTHING
"""

# A deleted message keeps its place, its sender and its digest (a retry of it is a duplicate), and nothing of its
# content. What was deleted, is unknown, or comes after the event in the log stays as it is.
#   $1 uuid[] threads, $2 bigint[] seqs of the events, $3 uuid[] messages, $4 timestamptz[] -> the seqs that took effect
DELETE_MESSAGES: Final[LiteralString] = """
    WITH asked AS MATERIALIZED (
        SELECT DISTINCT ON (thread_id, message_id) *
        FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::timestamptz[]) AS a (thread_id, seq, message_id, at)
        ORDER BY thread_id, message_id, seq
    ), deleted AS (
        UPDATE messages m SET body = '', attachments = '[]', metadata = '{}', edited_at = NULL,
               deleted_at = a.at, changed_seq = a.seq, changed_xid = pg_current_xact_id()
        FROM asked a
        WHERE m.thread_id = a.thread_id AND m.message_id = a.message_id AND m.seq < a.seq AND m.deleted_at IS NULL
        RETURNING m.thread_id, m.message_id, a.seq
    ), erased AS (
        DELETE FROM message_edits e USING deleted d
        WHERE e.thread_id = d.thread_id AND e.message_id = d.message_id
    )
    SELECT seq FROM deleted
"""

# Each edit is one more version; the first one keeps the message as it was sent as version 1.
#   $1 uuid[] threads, $2 bigint[] seqs of the events, $3 uuid[] events, $4 uuid[] messages, $5 text[] bodies,
#   $6 timestamptz[], $7 text[] editors -> the seqs that took effect
EDIT_MESSAGES: Final[LiteralString] = """
    WITH asked AS MATERIALIZED (
        SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::uuid[], $5::text[], $6::timestamptz[],
                             $7::text[]) AS a (thread_id, seq, event_id, message_id, body, edited_at, editor_id)
    ), fresh AS MATERIALIZED (
        SELECT DISTINCT ON (a.thread_id, a.event_id)
               a.*, m.seq AS message_seq, m.body AS first_body, m.sent_at, m.sender_id
        FROM asked a
        JOIN messages m ON m.thread_id = a.thread_id AND m.message_id = a.message_id
        WHERE m.seq < a.seq AND m.deleted_at IS NULL
          AND NOT EXISTS (SELECT FROM message_edits e WHERE e.thread_id = a.thread_id AND e.event_id = a.event_id)
        ORDER BY a.thread_id, a.event_id, a.seq
    ), edited AS MATERIALIZED (
        SELECT f.thread_id, f.message_id, coalesce(max(e.version), 0) AS versions
        FROM (SELECT DISTINCT thread_id, message_id FROM fresh) AS f
        LEFT JOIN message_edits e ON e.thread_id = f.thread_id AND e.message_id = f.message_id
        GROUP BY f.thread_id, f.message_id
    ), first_versions AS (
        INSERT INTO message_edits (thread_id, message_id, version, event_id, body, edited_at, editor_id)
        SELECT DISTINCT ON (thread_id, message_id) thread_id, message_id, 1, NULL::uuid, first_body, sent_at, sender_id
        FROM fresh JOIN edited USING (thread_id, message_id) WHERE versions = 0
    ), later_versions AS (
        INSERT INTO message_edits (thread_id, message_id, version, event_id, body, edited_at, editor_id)
        SELECT thread_id, message_id,
               greatest(versions, 1) + row_number() OVER (PARTITION BY thread_id, message_id ORDER BY seq),
               event_id, body, edited_at, editor_id
        FROM fresh JOIN edited USING (thread_id, message_id)
    ), changed AS (
        UPDATE messages m SET body = l.body, edited_at = l.edited_at, changed_seq = l.seq,
               changed_xid = pg_current_xact_id()
        FROM (
            SELECT DISTINCT ON (thread_id, message_id) * FROM fresh ORDER BY thread_id, message_id, seq DESC
        ) AS l
        WHERE m.thread_id = l.thread_id AND m.seq = l.message_seq
    )
    SELECT seq FROM fresh
"""

# One row per thread of the batch. A thread event moves last_seq alone: lists are sorted by messages.
#   $1 uuid[] threads, $2 bigint[] last seqs, $3 bigint[] last message seqs (0: none in this batch),
#   $4 timestamptz[] time of that message, or of the event when there is none
ADVANCE_TAILS: Final[LiteralString] = """
    INSERT INTO thread_tails AS t (thread_id, last_seq, last_message_seq, last_activity_at)
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::timestamptz[])
    ON CONFLICT (thread_id) DO UPDATE SET
        last_seq = greatest(t.last_seq, excluded.last_seq),
        last_message_seq = greatest(t.last_message_seq, excluded.last_message_seq),
        last_activity_at = CASE WHEN excluded.last_message_seq > t.last_message_seq
                                THEN excluded.last_activity_at ELSE t.last_activity_at END,
        changed_xid = pg_current_xact_id()
"""

# Sending marks everything before as read, unless the member moved the marker back from behind that message.
#   $1 uuid[] threads, $2 text[] senders, $3 bigint[] their last seqs, $4 timestamptz[]; each pair once, ascending
ADVANCE_RECEIPTS: Final[LiteralString] = """
    INSERT INTO receipts AS r (thread_id, user_id, read_seq, delivered_seq, shown_seq, sent_seq, read_at)
    SELECT thread_id, user_id, seq, seq, seq, seq, at
    FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::timestamptz[]) AS sent (thread_id, user_id, seq, at)
    ON CONFLICT (thread_id, user_id) DO UPDATE SET
        read_seq = CASE WHEN excluded.sent_seq > r.marked_over
                        THEN greatest(r.read_seq, excluded.sent_seq) ELSE r.read_seq END,
        delivered_seq = greatest(r.delivered_seq, excluded.delivered_seq),
        shown_seq = greatest(r.shown_seq, excluded.shown_seq),
        sent_seq = greatest(r.sent_seq, excluded.sent_seq),
        read_at = CASE WHEN excluded.shown_seq > r.shown_seq THEN excluded.read_at ELSE r.read_at END,
        changed_xid = pg_current_xact_id()
"""

# Where members put their markers. What own messages marked beyond it stays, unless it was put back from behind them.
# No row is written that would not change.
#   $1 uuid[] threads, $2 text[] users, $3 bigint[] read, $4 bigint[] shown, $5 bigint[] delivered, $6 bigint[] over,
#   $7 timestamptz[]; each pair once, ascending -> the rows whose marker moved, for the member or for others
FOLD_MARKS: Final[LiteralString] = """
    WITH marks AS MATERIALIZED (
        SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                             $7::timestamptz[]) AS m (thread_id, user_id, read, shown, delivered, over, at)
    ), before AS MATERIALIZED (
        SELECT thread_id, user_id, coalesce(r.read_seq, 0) AS read_seq, coalesce(r.shown_seq, 0) AS shown_seq
        FROM marks LEFT JOIN receipts r USING (thread_id, user_id)
    ), folded AS (
        INSERT INTO receipts AS r (thread_id, user_id, read_seq, delivered_seq, read_at, marked_seq, marked_over,
                                   shown_seq)
        SELECT thread_id, user_id, read, delivered, at, read, over, shown FROM marks
        ON CONFLICT (thread_id, user_id) DO UPDATE SET
            read_seq = greatest(excluded.marked_seq,
                                CASE WHEN r.sent_seq > excluded.marked_over THEN r.sent_seq ELSE 0 END),
            delivered_seq = greatest(r.delivered_seq, excluded.delivered_seq),
            shown_seq = greatest(r.shown_seq, excluded.shown_seq),
            marked_seq = excluded.marked_seq,
            marked_over = excluded.marked_over,
            read_at = CASE WHEN excluded.shown_seq > r.shown_seq THEN excluded.read_at ELSE r.read_at END,
            changed_xid = pg_current_xact_id()
        WHERE excluded.shown_seq > r.shown_seq OR excluded.delivered_seq > r.delivered_seq
           OR (r.marked_seq, r.marked_over) IS DISTINCT FROM (excluded.marked_seq, excluded.marked_over)
        RETURNING r.thread_id, r.user_id, r.read_seq, r.shown_seq, r.read_at
    )
    SELECT replace(f.thread_id::text, '-', '') AS thread_id, f.user_id, f.shown_seq,
           coalesce(f.read_at, now()) AS read_at, f.shown_seq > before.shown_seq AS is_shown
    FROM folded f JOIN before USING (thread_id, user_id)
    WHERE f.shown_seq > before.shown_seq OR f.read_seq <> before.read_seq
"""

# The state of threads as their lists show it.
#   $1 uuid[] threads, $2 int code points of the preview -> one row per thread that has events
THREAD_STATES: Final[LiteralString] = """
    SELECT replace(t.thread_id::text, '-', '') AS thread_id, t.last_seq, t.last_message_seq,
           replace(m.message_id::text, '-', '') AS message_id, m.sender_id, left(m.body, $2) AS preview,
           to_char(m.sent_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS sent_at
    FROM thread_tails t
    LEFT JOIN messages m ON m.thread_id = t.thread_id AND m.seq = t.last_message_seq
    WHERE t.thread_id = ANY ($1::uuid[])
"""

# Who is in the threads now, and what each has not read: visible messages of others above the read position, without
# deleted and system ones, at most $3. Each thread is scanned once, not once per member: what counts for a member who
# wrote none of these messages is how many lie above their position. The few who wrote some are counted one by one;
# writing marks as read, so that there is little to count.
#   $1 uuid[] threads, $2 bigint members per thread at most, $3 bigint count at most
MEMBERS_AND_UNREAD: Final[LiteralString] = """
    WITH members AS MATERIALIZED (
        SELECT t.thread_id, m.user_id, m.visible_from,
               greatest(coalesce(r.read_seq, 0), m.visible_from - 1) AS position
        FROM unnest($1::uuid[]) AS t (thread_id)
        CROSS JOIN LATERAL (
            SELECT user_id, visible_from FROM thread_members
            WHERE thread_id = t.thread_id AND removed_at IS NULL
            ORDER BY user_id LIMIT $2
        ) AS m
        LEFT JOIN receipts r ON r.thread_id = t.thread_id AND r.user_id = m.user_id
    ), recent AS MATERIALIZED (
        SELECT thread_id, array_agg(x.seq ORDER BY x.seq) AS seqs, array_agg(DISTINCT x.sender_id) AS senders
        FROM (SELECT thread_id, min(position) AS position FROM members GROUP BY thread_id) AS least
        CROSS JOIN LATERAL (
            SELECT seq, sender_id FROM messages
            WHERE thread_id = least.thread_id AND seq > least.position AND kind = 'text' AND deleted_at IS NULL
            ORDER BY seq DESC LIMIT $3
        ) AS x
        GROUP BY thread_id
    )
    SELECT replace(m.thread_id::text, '-', '') AS thread_id, m.user_id, m.visible_from,
           CASE WHEN recent.seqs IS NULL THEN 0
                WHEN m.user_id = ANY (recent.senders) THEN (
                    SELECT count(*) FROM (
                        SELECT FROM messages
                        WHERE thread_id = m.thread_id AND seq > m.position AND sender_id <> m.user_id
                          AND kind = 'text' AND deleted_at IS NULL
                        LIMIT $3
                    ) AS unread_messages
                )
                ELSE cardinality(recent.seqs) - width_bucket(m.position, recent.seqs)
           END AS unread
    FROM members m LEFT JOIN recent ON recent.thread_id = m.thread_id
    ORDER BY m.thread_id, m.user_id
"""

# The same for some members only. Who is no member any more has no row.
#   $1 uuid[] threads, $2 text[] users, $3 bigint count at most
UNREAD_OF: Final[LiteralString] = """
    SELECT replace(m.thread_id::text, '-', '') AS thread_id, m.user_id, m.visible_from, counted.unread
    FROM unnest($1::uuid[], $2::text[]) AS asked (thread_id, user_id)
    JOIN thread_members m USING (thread_id, user_id)
    LEFT JOIN receipts r USING (thread_id, user_id)
    CROSS JOIN LATERAL (
        SELECT count(*) AS unread FROM (
            SELECT FROM messages x
            WHERE x.thread_id = m.thread_id AND x.seq > greatest(coalesce(r.read_seq, 0), m.visible_from - 1)
              AND x.sender_id <> m.user_id AND x.kind = 'text' AND x.deleted_at IS NULL
            LIMIT $3
        ) AS unread_messages
    ) AS counted
    WHERE m.removed_at IS NULL
"""

# A user's unread messages over all threads, at most $2: counting stops there, whatever was neglected for how long.
# A thread whose last message is read is not looked into.
#   $1 text[] users, $2 bigint count at most
UNREAD_TOTALS: Final[LiteralString] = """
    SELECT u.user_id, c.unread_total
    FROM unnest($1::text[]) AS u (user_id)
    CROSS JOIN LATERAL (
        SELECT count(*) AS unread_total FROM (
            SELECT
            FROM thread_members m
            JOIN thread_tails t ON t.thread_id = m.thread_id
            LEFT JOIN receipts r ON r.thread_id = m.thread_id AND r.user_id = m.user_id
            CROSS JOIN LATERAL (
                SELECT FROM messages
                WHERE thread_id = m.thread_id AND seq > greatest(coalesce(r.read_seq, 0), m.visible_from - 1)
                  AND sender_id <> m.user_id AND kind = 'text' AND deleted_at IS NULL
                LIMIT $2
            ) AS unread_messages
            WHERE m.user_id = u.user_id AND m.removed_at IS NULL AND t.last_message_seq > coalesce(r.read_seq, 0)
            LIMIT $2
        ) AS counted
    ) AS c
"""

# Which of those that were told are members no more: they left between the reading and the telling.
#   $1 uuid[] threads, $2 text[] users, pairwise
GONE: Final[LiteralString] = """
    SELECT replace(m.thread_id::text, '-', '') AS thread_id, m.user_id
    FROM unnest($1::uuid[], $2::text[]) AS told (thread_id, user_id)
    JOIN thread_members m ON m.thread_id = told.thread_id AND m.user_id = told.user_id
    WHERE m.removed_at IS NOT NULL
"""

#   $1 uuid[] threads -> their numbers of members
COUNT_MEMBERS: Final[LiteralString] = """
    SELECT replace(thread_id::text, '-', '') AS thread_id, count(*) AS members FROM thread_members
    WHERE thread_id = ANY ($1::uuid[]) AND removed_at IS NULL
    GROUP BY thread_id
"""

# A session that hangs is ended after the timeout and lets go of the lock; a healthy one speaks every 3 s.
TRY_LOCK: Final[LiteralString] = """
    SELECT pg_try_advisory_lock(hashtextextended($1, 0)) FROM set_config('idle_session_timeout', '15s', false)
"""
ENSURE_CURSOR: Final[LiteralString] = """
    INSERT INTO stream_cursors (stream, consumer, last_seq) VALUES ($1, $2, 0) ON CONFLICT DO NOTHING
"""
LOCK_CURSOR: Final[LiteralString] = """
    SELECT last_seq FROM stream_cursors WHERE stream = $1 AND consumer = $2 FOR UPDATE
"""
ADVANCE_CURSOR: Final[LiteralString] = """
    UPDATE stream_cursors SET last_seq = $3 WHERE stream = $1 AND consumer = $2
"""
BURY: Final[LiteralString] = """
    INSERT INTO dead_letters (stream, consumer, seq, subject, payload, error) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (stream, consumer, seq) DO NOTHING
"""

CONSUMER: Final = ConsumerQueries(
    try_lock=TRY_LOCK,
    ensure_cursor=ENSURE_CURSOR,
    lock_cursor=LOCK_CURSOR,
    advance_cursor=ADVANCE_CURSOR,
    bury=BURY,
)

OLDEST_OUTBOX_ROWS: Final[LiteralString] = """
    SELECT id, kind, subject, message_id, payload FROM persister_outbox ORDER BY id LIMIT $1
"""
OUTBOX_ROWS_THROUGH: Final[LiteralString] = """
    SELECT id, kind, subject, message_id, payload FROM persister_outbox o
    WHERE EXISTS (
        SELECT FROM persister_outbox asked
        WHERE asked.id = ANY ($1::bigint[]) AND asked.subject = o.subject AND asked.id >= o.id
    )
    ORDER BY id
"""
FORGET_OUTBOX_ROWS: Final[LiteralString] = """
    DELETE FROM persister_outbox WHERE id = ANY ($1::bigint[])
"""

OUTBOX: Final = OutboxQueries(
    try_lock=TRY_LOCK,
    oldest=OLDEST_OUTBOX_ROWS,
    through=OUTBOX_ROWS_THROUGH,
    forget=FORGET_OUTBOX_ROWS,
)
