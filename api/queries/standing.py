"""SQL of standing: bans, revoked tokens, their entries of bucket ``standing``, and the audit log."""

from typing import Final, LiteralString

_ENTRY: Final[LiteralString] = """
    json_build_object(
        'user_id', s.user_id,
        'revision', s.revision,
        'banned_until', to_char(s.banned_until AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
        'reason', s.reason,
        'min_iat', s.min_iat,
        'deactivated', s.deactivated
    )::text
"""

# A ban replaces the one before it.
#   $1 text user   $2 timestamptz until   $3 text reason or null   $4 text who bans
BAN: Final[LiteralString] = """
    INSERT INTO standings AS known (user_id, banned_until, reason, banned_by, banned_at) VALUES ($1, $2, $3, $4, now())
    ON CONFLICT (user_id) DO UPDATE SET
        banned_until = excluded.banned_until,
        reason = excluded.reason,
        banned_by = excluded.banned_by,
        banned_at = excluded.banned_at,
        changed_at = now(),
        revision = known.revision + 1
"""

# No row when there is no ban.
#   $1 text user
UNBAN: Final[LiteralString] = """
    UPDATE standings SET
        banned_until = NULL, reason = NULL, banned_by = NULL, banned_at = NULL,
        changed_at = now(), revision = revision + 1
    WHERE user_id = $1 AND banned_until IS NOT NULL
    RETURNING revision
"""

# Revoked is revoked: never moves back.
#   $1 text user   $2 bigint Unix seconds
REVOKE: Final[LiteralString] = """
    INSERT INTO standings AS known (user_id, min_iat) VALUES ($1, $2)
    ON CONFLICT (user_id) DO UPDATE SET
        min_iat = greatest(known.min_iat, excluded.min_iat), changed_at = now(), revision = known.revision + 1
"""

#   $1 text user
QUEUE_STANDING: Final[LiteralString] = (
    "INSERT INTO api_outbox (kind, subject, payload) SELECT 'standing', s.user_id, convert_to("  # noqa: S608
    + _ENTRY
    + ", 'UTF8') FROM standings AS s WHERE s.user_id = $1"
)

#   $1 text who did it   $2 text what   $3 text to whom   $4 jsonb details
AUDIT: Final[LiteralString] = (
    "INSERT INTO audit_log (actor_id, action, target, details) VALUES ($1, $2, $3, $4)"
)

# A ban that is over is none.
#   $1 text user
ACTIVE_BAN: Final[LiteralString] = """
    SELECT banned_until, reason, banned_at, banned_by FROM standings WHERE user_id = $1 AND banned_until > now()
"""

#   $1 text user
ENTRY: Final[LiteralString] = (
    "SELECT " + _ENTRY + " AS entry FROM standings AS s WHERE s.user_id = $1"  # noqa: S608
)

# What the bucket must hold, in pages: everything that has an effect, and what was changed within a day, because a
# bucket that was lost may have left an older entry in a mirror.
#   $1 text after this user   $2 float8 seconds that revoked tokens stay known   $3 bigint at most
CURRENT: Final[LiteralString] = (
    "SELECT s.user_id, s.revision, " + _ENTRY + " AS entry FROM standings AS s"  # noqa: S608
    """
    WHERE s.user_id > $1 AND (
        s.banned_until > now() OR s.deactivated
        OR s.min_iat > extract(epoch FROM now()) - $2
        OR s.changed_at > now() - interval '1 day'
    )
    ORDER BY s.user_id LIMIT $3
    """
)
