"""The quick way of counting unread messages gives what counting one by one gives."""

import random
from collections.abc import AsyncIterator

import asyncpg
import pytest

from persister import queries
from shared.identity import new_id

USERS = ("ava", "ben", "cid", "dot", "eve")
SEQ_MAX = 40
NAIVE = """
    SELECT replace(m.thread_id::text, '-', '') AS thread_id, m.user_id, (
        SELECT count(*) FROM messages x LEFT JOIN receipts r ON r.thread_id = m.thread_id AND r.user_id = m.user_id
        WHERE x.thread_id = m.thread_id AND x.seq > coalesce(r.read_seq, 0) AND x.seq >= m.visible_from
          AND x.sender_id <> m.user_id AND x.kind = 'text' AND x.deleted_at IS NULL
    ) AS unread
    FROM thread_members m WHERE m.removed_at IS NULL
"""


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a migrated database."""
    made = await asyncpg.connect(database_url)
    yield made
    await made.close()


async def fill(connection: asyncpg.Connection, rng: random.Random) -> list[str]:
    """Make threads with every kind of member, message and marker; return their ids."""
    threads = [new_id() for _ in range(12)]
    for thread_id in threads:
        await connection.execute(
            "INSERT INTO threads (thread_id, kind, owner_id, history) VALUES ($1, 'group', 'ava', 'all')",
            thread_id,
        )
        for user in rng.sample(USERS, rng.randint(1, 5)):
            await connection.execute(
                "INSERT INTO thread_members (thread_id, user_id, role, visible_from, removed_at) "
                "VALUES ($1, $2, 'member', $3, CASE WHEN $4 THEN now() END)",
                thread_id,
                user,
                rng.choice([0, 0, rng.randint(1, SEQ_MAX)]),
                rng.random() < 0.2,
            )
            if rng.random() < 0.7:
                # Below the user's own messages at times: a marker may be moved back.
                await connection.execute(
                    "INSERT INTO receipts (thread_id, user_id, read_seq) VALUES ($1, $2, $3)",
                    thread_id,
                    user,
                    rng.randint(0, SEQ_MAX),
                )
        seqs = sorted(rng.sample(range(1, SEQ_MAX), rng.choice([0, 3, 30])))
        for seq in seqs:
            await connection.execute(
                "INSERT INTO messages (thread_id, seq, message_id, client_msg_id, sender_id, kind, body, attachments, "
                "metadata, sent_at, deleted_at, changed_seq, content_digest) VALUES "
                "($1, $2, $3, $3, $4, $5, '', '[]', '{}', now(), CASE WHEN $6 THEN now() END, $2, '')",
                thread_id,
                seq,
                new_id(),
                rng.choice(USERS),
                rng.choice(["text"] * 5 + ["system"]),
                rng.random() < 0.1,
            )
        if seqs:
            await connection.execute(
                "INSERT INTO thread_tails (thread_id, last_seq, last_message_seq, last_activity_at) "
                "VALUES ($1, $2, $2, now())",
                thread_id,
                seqs[-1],
            )
    return threads


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count_max", [1, 7, 1_000])
async def test_quick_and_naive_counts_agree(
    connection: asyncpg.Connection, seed: int, count_max: int
) -> None:
    # Given threads with all kinds of members, messages and markers
    threads = await fill(connection, random.Random(seed))
    # When they are counted both ways
    naive = {
        (row["thread_id"], row["user_id"]): row["unread"] for row in await connection.fetch(NAIVE)
    }
    quick = await connection.fetch(queries.MEMBERS_AND_UNREAD, threads, 501, count_max)
    totals = await connection.fetch(queries.UNREAD_TOTALS, list(USERS), count_max)
    # Then they agree, up to where counting stops
    assert {(row["thread_id"], row["user_id"]): row["unread"] for row in quick} == {
        key: min(unread, count_max) for key, unread in naive.items()
    }
    assert {row["user_id"]: row["unread_total"] for row in totals} == {
        user: min(count_max, sum(n for (_, of), n in naive.items() if of == user)) for user in USERS
    }
