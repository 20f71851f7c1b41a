"""Pools that say who they are, give up in time, and locks that a hanging process cannot keep."""

import asyncio
import time

import asyncpg
import pytest

from persister.queries import TRY_LOCK
from shared import database
from shared.database import Backoff, DatabaseUnavailableError, close_pool, hold_lock, open_pool
from tests.support.servers import PostgresServer


async def test_every_connection_names_its_process_and_has_deadlines(database_url: str) -> None:
    pool = await open_pool(database_url, name="persister-0", size=2)
    names = [
        "application_name",
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "TimeZone",
    ]
    rows = await pool.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY ($1)", names)
    await close_pool(pool)
    assert {row["name"]: row["setting"] for row in rows} == {
        "application_name": "persister-0",
        "statement_timeout": "10000",
        "lock_timeout": "5000",
        "idle_in_transaction_session_timeout": "15000",
        "TimeZone": "UTC",
    }


async def test_json_stays_text(database_url: str) -> None:
    pool = await open_pool(database_url, name="test", size=1)
    assert await pool.fetchval("SELECT $1::jsonb", '{"a": 1}') == '{"a": 1}'
    await close_pool(pool)


async def test_a_server_that_never_answers_is_an_error_in_time() -> None:
    started_s = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match="not reachable after 0 s"):
        await open_pool("postgresql://a@127.0.0.1:1/a", name="test", size=1, wait_s=0.3)
    assert time.monotonic() - started_s < 2


async def test_a_server_that_is_still_starting_is_waited_for(
    database_url: str, postgres_server: PostgresServer
) -> None:
    # Given a PostgreSQL that is down
    postgres_server.stop()
    opening = asyncio.create_task(open_pool(database_url, name="test", size=1))
    await asyncio.sleep(0.3)
    # When it comes up
    postgres_server.start()
    # Then the pool opens
    pool = await asyncio.wait_for(opening, 10)
    assert await pool.fetchval("SELECT 1") == 1
    await close_pool(pool)


async def test_a_refused_login_is_not_tried_again(database_url: str) -> None:
    wrong = database_url.replace("://lilith:", "://nobody:")
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await open_pool(wrong, name="test", size=1)


async def test_closing_does_not_wait_for_a_connection_that_is_never_returned(
    database_url: str,
) -> None:
    pool = await open_pool(database_url, name="test", size=1)
    await pool.acquire()
    started_s = time.monotonic()
    await close_pool(pool, wait_s=0.1)
    assert time.monotonic() - started_s < 2
    assert pool.is_closing()


async def test_one_holds_the_lock_and_the_other_hears_no(database_url: str) -> None:
    pool = await open_pool(database_url, name="test", size=3)
    async with hold_lock(pool, TRY_LOCK, "a") as first:
        assert first is not None
        assert not first.is_set()
        async with hold_lock(pool, TRY_LOCK, "a") as second:
            assert second is None
        async with hold_lock(pool, TRY_LOCK, "b") as other:
            assert other is not None
    async with hold_lock(pool, TRY_LOCK, "a") as again:
        assert again is not None
    await close_pool(pool)


async def test_a_holder_whose_connection_is_cut_learns_it_at_once(database_url: str) -> None:
    pool = await open_pool(database_url, name="test", size=3)
    async with hold_lock(pool, TRY_LOCK, "a") as lost:
        assert lost is not None
        await pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
        )
        await asyncio.wait_for(lost.wait(), 2)
        async with hold_lock(pool, TRY_LOCK, "a") as next_holder:
            assert next_holder is not None
    await close_pool(pool)


async def test_a_holder_that_hangs_loses_the_lock(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a holder that is silent for longer than its session may idle
    monkeypatch.setattr(database, "LOCK_HEARTBEAT_S", 60.0)
    soon = TRY_LOCK.replace("'15s'", "'300ms'")
    pool = await open_pool(database_url, name="test", size=3)
    async with hold_lock(pool, soon, "a") as lost:
        assert lost is not None
        # When the time is over, then the server has ended the session, and another may hold the lock
        await asyncio.wait_for(lost.wait(), 5)
        async with hold_lock(pool, TRY_LOCK, "a") as next_holder:
            assert next_holder is not None
    await close_pool(pool)


async def test_a_holder_that_speaks_keeps_the_lock(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_HEARTBEAT_S", 0.05)
    soon = TRY_LOCK.replace("'15s'", "'300ms'")
    pool = await open_pool(database_url, name="test", size=3)
    async with hold_lock(pool, soon, "a") as lost:
        assert lost is not None
        await asyncio.sleep(0.8)
        assert not lost.is_set()
    await close_pool(pool)


def test_pauses_grow_to_a_limit_with_jitter_and_begin_anew() -> None:
    backoff = Backoff(first_s=0.1, longest_s=5.0)
    pauses = [backoff.next_s() for _ in range(10)]
    steps = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 5.0]
    assert all(step / 2 <= pause <= step for step, pause in zip(steps, pauses, strict=True))
    backoff.reset()
    assert backoff.next_s() <= 0.1
