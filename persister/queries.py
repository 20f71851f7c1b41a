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

# Sending marks everything before as read. Never back.
#   $1 uuid[] threads, $2 text[] senders, $3 bigint[] their last seqs, $4 timestamptz[]; each pair once
ADVANCE_RECEIPTS: Final[LiteralString] = """
    INSERT INTO receipts AS r (thread_id, user_id, read_seq, delivered_seq, read_at)
    SELECT thread_id, user_id, seq, seq, at
    FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::timestamptz[]) AS sent (thread_id, user_id, seq, at)
    ON CONFLICT (thread_id, user_id) DO UPDATE SET
        read_seq = greatest(r.read_seq, excluded.read_seq),
        delivered_seq = greatest(r.delivered_seq, excluded.delivered_seq),
        read_at = CASE WHEN excluded.read_seq > r.read_seq THEN excluded.read_at ELSE r.read_at END
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
