"""SQL of idempotency keys: one row per user, route and key, kept for a day."""

from typing import Final, LiteralString

# The first request of a key takes the row; so does one that finds it expired, or abandoned by a process that died.
# No row: somebody else has it, see READ.
#   $1 text user   $2 text route   $3 text key   $4 bytea digest of the body   $5 float8 seconds kept
#   $6 float8 seconds after which an unanswered request counts as abandoned
CLAIM: Final[LiteralString] = """
    INSERT INTO idempotency_keys AS known (user_id, route, key, body_digest) VALUES ($1, $2, $3, $4)
    ON CONFLICT (user_id, route, key) DO UPDATE SET
        body_digest = excluded.body_digest, status = NULL, location = NULL, response = NULL, created_at = now()
    WHERE known.created_at < now() - make_interval(secs => $5::float8)
       OR (known.status IS NULL AND known.body_digest = excluded.body_digest
           AND known.created_at < now() - make_interval(secs => $6::float8))
    RETURNING true AS claimed
"""

#   $1 text user   $2 text route   $3 text key
READ: Final[LiteralString] = """
    SELECT body_digest, status, location, response FROM idempotency_keys
    WHERE user_id = $1 AND route = $2 AND key = $3
"""

# In the transaction of the change itself: either both happened or neither.
#   $1 text user   $2 text route   $3 text key   $4 smallint status   $5 text location   $6 bytea response
RECORD: Final[LiteralString] = """
    UPDATE idempotency_keys SET status = $4::smallint, location = $5, response = $6
    WHERE user_id = $1 AND route = $2 AND key = $3
"""

# A request that failed leaves nothing behind: the same key may be used again.
#   $1 text user   $2 text route   $3 text key
RELEASE: Final[LiteralString] = """
    DELETE FROM idempotency_keys WHERE user_id = $1 AND route = $2 AND key = $3 AND status IS NULL
"""

#   $1 float8 seconds kept
FORGET_OLD: Final[LiteralString] = """
    DELETE FROM idempotency_keys WHERE created_at < now() - make_interval(secs => $1::float8)
"""
