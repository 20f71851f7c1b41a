"""Migrations go up, down and up again, one at a time, from any caller."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest

from migrations import runner

SCHEMA = """
    SELECT table_name || '.' || column_name, data_type, is_nullable, column_default
    FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL
    SELECT tablename || ' ' || indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT conrelid::regclass || ' ' || conname, pg_get_constraintdef(oid), '', ''
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT relname, relkind::text, coalesce(reloptions::text, ''), coalesce(obj_description(oid), '')
    FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT proname, prosrc, '', '' FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    ORDER BY 1, 2
"""
"""Everything that a revision can leave behind in schema ``public``."""


async def schema_of(dsn: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(SCHEMA)]
    finally:
        await connection.close()


async def test_up_down_to_nothing_and_up_again_gives_the_same_schema(
    empty_database_url: str,
) -> None:
    # Given an empty database, taken to the newest revision
    runner.upgrade(empty_database_url)
    first = await schema_of(empty_database_url)
    assert ("messages", "p", "", "writer: persister") in first
    # When every revision is taken back
    runner.downgrade(empty_database_url, runner.BASE)
    # Then nothing is left but alembic's own table
    rest = await schema_of(empty_database_url)
    assert {str(row[0]).split(".")[0].split(" ")[0] for row in rest} <= {
        "alembic_version",
        "alembic_version_pkc",
    }
    # And going up again makes the same
    runner.upgrade(empty_database_url)
    assert await schema_of(empty_database_url) == first


async def test_every_single_step_down_and_up_is_possible(empty_database_url: str) -> None:
    runner.upgrade(empty_database_url)
    whole = await schema_of(empty_database_url)
    for _ in runner.status(empty_database_url):
        runner.downgrade(empty_database_url)
    assert not any(revision.applied for revision in runner.status(empty_database_url))
    for _ in runner.status(empty_database_url):
        runner.upgrade(empty_database_url, "+1")
    assert await schema_of(empty_database_url) == whole


async def test_two_callers_at_once_take_turns(empty_database_url: str) -> None:
    # Given four processes that start together, each migrating
    with ThreadPoolExecutor(4) as callers:
        # When all of them run, then none fails
        list(callers.map(runner.upgrade, [empty_database_url] * 4))
    assert runner.is_current(empty_database_url)


async def test_a_running_loop_may_call_it_and_goes_on_afterwards(empty_database_url: str) -> None:
    runner.upgrade(empty_database_url)
    await asyncio.sleep(0)
    assert asyncio.get_running_loop().is_running()


async def test_status_tells_what_is_missing(empty_database_url: str) -> None:
    before = runner.status(empty_database_url)
    assert before[0].revision == "0001"
    assert not before[0].applied
    assert not runner.is_current(empty_database_url)
    runner.upgrade(empty_database_url)
    assert [revision.applied for revision in runner.status(empty_database_url)] == [True] * len(
        before
    )


async def test_the_offline_script_makes_the_same_schema(empty_database_url: str) -> None:
    # Given the script that a database administrator gets
    script = runner.sql()
    # When it is run by hand
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute(script)
    await connection.close()
    # Then the runner finds nothing left to do
    by_hand = await schema_of(empty_database_url)
    assert runner.is_current(empty_database_url)
    runner.downgrade(empty_database_url, runner.BASE)
    runner.upgrade(empty_database_url)
    assert await schema_of(empty_database_url) == by_hand


def test_a_new_revision_gets_the_next_number_and_the_last_one_as_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a copy of the package with the first revision alone
    for name in ("env.py", "script.py.mako", "versions/0001_spine.py"):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        target.write_text((Path(runner.__file__).parent / name).read_text())
    monkeypatch.setattr(runner, "_LOCATION", tmp_path)
    # When somebody asks for a new one
    path = runner.new("quota ledger")
    # Then it stands behind the first
    assert path.name == "0002_quota_ledger.py"
    text = path.read_text()
    assert "revision = '0002'" in text or 'revision = "0002"' in text
    assert "down_revision = '0001'" in text or 'down_revision = "0001"' in text


async def test_an_unreachable_database_is_an_error_and_not_a_wait_for_ever() -> None:
    with pytest.raises(OSError, match=r"."):
        runner.upgrade("postgresql://nobody@127.0.0.1:1/none")
