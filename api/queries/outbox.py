"""SQL of the api's outbox: rows to publish, written in the transaction of the change that they tell of."""

from typing import Final, LiteralString

from shared.outbox import OutboxQueries

# The entry of bucket access as the thread is in this transaction: everything that an edge must know of it.
#   $1 uuid thread
QUEUE_ACCESS: Final[LiteralString] = """
    INSERT INTO api_outbox (kind, subject, payload)
    SELECT 'access', encode(uuid_send(t.thread_id), 'hex'), convert_to(json_build_object(
        'thread_id', encode(uuid_send(t.thread_id), 'hex'),
        'revision', t.revision,
        'kind', t.kind,
        'owner_id', t.owner_id,
        'archived', t.archived_at IS NOT NULL,
        'members', (
            SELECT json_object_agg(m.user_id, json_build_object(
                'role', m.role,
                'joined_at', to_char(m.joined_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
                'visible_from', m.visible_from
            ))
            FROM thread_members AS m WHERE m.thread_id = t.thread_id AND m.removed_at IS NULL
        )
    )::text, 'UTF8')
    FROM threads AS t WHERE t.thread_id = $1
    RETURNING id
"""

# The entry of bucket users.
#   $1 text user
QUEUE_USER: Final[LiteralString] = """
    INSERT INTO api_outbox (kind, subject, payload)
    SELECT 'user', u.user_id, convert_to(json_build_object(
        'user_id', u.user_id, 'revision', u.revision, 'name', u.name, 'avatar_url', u.avatar_url, 'role', u.role
    )::text, 'UTF8')
    FROM users AS u WHERE u.user_id = $1
    RETURNING id
"""

# Anything else. subject is the thread's id: rows of one subject are published in the order of their ids.
#   $1 text kind   $2 text subject   $3 text message id or null   $4 bytea payload
QUEUE: Final[LiteralString] = """
    INSERT INTO api_outbox (kind, subject, message_id, payload) VALUES ($1, $2, $3, $4) RETURNING id
"""

# What is committed about a thread or user and not yet published.
#   $1 text subject
PENDING: Final[LiteralString] = "SELECT id FROM api_outbox WHERE subject = $1 ORDER BY id"

#   $1 text lock name
TRY_LOCK: Final[LiteralString] = """
    SELECT pg_try_advisory_lock(hashtextextended($1, 0)) FROM set_config('idle_session_timeout', '15s', false)
"""

#   $1 bigint at most
OLDEST: Final[LiteralString] = """
    SELECT id, kind, subject, message_id, payload FROM api_outbox ORDER BY id LIMIT $1::bigint
"""

#   $1 bigint[] ids
THROUGH: Final[LiteralString] = """
    SELECT older.id, older.kind, older.subject, older.message_id, older.payload
    FROM api_outbox AS older
    WHERE EXISTS (
        SELECT FROM api_outbox AS own
        WHERE own.id = ANY($1::bigint[]) AND own.subject = older.subject AND older.id <= own.id
    )
    ORDER BY older.id
"""

#   $1 bigint[] ids
FORGET: Final[LiteralString] = "DELETE FROM api_outbox WHERE id = ANY($1::bigint[])"

OUTBOX: Final = OutboxQueries(try_lock=TRY_LOCK, oldest=OLDEST, through=THROUGH, forget=FORGET)
