"""The SQL of analytics. A test prepares every constant on the migrated schema."""

from typing import Final, LiteralString

from shared.consumer import ConsumerQueries

#   $1 text[] types, $2 timestamptz[] hours, $3 bigint[] counts; each pair once
ADD_EVENT_COUNTS: Final[LiteralString] = """
    INSERT INTO analytics_event_counts AS c (type, hour, count)
    SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::bigint[])
    ON CONFLICT (type, hour) DO UPDATE SET count = c.count + excluded.count
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
