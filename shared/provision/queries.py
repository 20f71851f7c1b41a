"""The SQL of provisioning. It writes ``stream_generations`` alone, and reads where the persister stands."""

from typing import Final, LiteralString

# One provisioning at a time: two that create a stream at once could disagree about its generation.
#   $1 text lock name
LOCK: Final[LiteralString] = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"

#   $1 text stream -> integer
READ_GENERATION: Final[LiteralString] = (
    "SELECT generation FROM stream_generations WHERE stream = $1"
)

#   $1 text stream, $2 text consumer -> bigint
READ_CURSOR: Final[LiteralString] = (
    "SELECT last_seq FROM stream_cursors WHERE stream = $1 AND consumer = $2"
)

# A generation never goes back, whoever writes it.
#   $1 text stream, $2 integer generation
SAVE_GENERATION: Final[LiteralString] = """
    INSERT INTO stream_generations (stream, generation) VALUES ($1, $2)
    ON CONFLICT (stream) DO UPDATE SET generation = excluded.generation, created_at = now()
    WHERE stream_generations.generation < excluded.generation
"""
