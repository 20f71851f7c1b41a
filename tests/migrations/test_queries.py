"""Every SQL constant of every service is prepared on the migrated schema, and every table has one writer."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ("edge", "persister", "api", "analytics", "shared", "cli")
WRITE = re.compile(
    r"\b(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE)\s+(?:ONLY\s+)?([a-z_]+)"
)
STATEMENT = re.compile(
    r"\s*(?:--.*\n\s*)*(SELECT|INSERT|UPDATE|DELETE|WITH|MERGE|VALUES|TABLE|LOCK|SET)\b"
)
ROWS_OF_EACH_CONSUMER = {"stream_cursors", "dead_letters"}
"""Tables that several services write, each its own rows."""


def query_modules() -> list[str]:
    """Return the dotted names of all ``queries.py``, ``*_queries.py`` and modules of packages ``queries``."""
    paths = (
        path
        for service in SERVICES
        for path in sorted((ROOT / service).rglob("*.py"))
        if path.stem == "queries" or path.stem.endswith("_queries") or path.parent.name == "queries"
    )
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]


def statements() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every statement.

    A text that another constant contains is a part that statements share; it is prepared as part of them.
    """
    constants = {
        f"{module_name}.{name}": value
        for module_name in query_modules()
        for name, value in vars(importlib.import_module(module_name)).items()
        if name.isupper() and isinstance(value, str)
    }
    texts = set(constants.values())
    for name, value in constants.items():
        is_part = any(value in text for text in texts if text != value)
        if STATEMENT.match(value) and not is_part:
            yield name, value


@pytest.fixture(scope="module")
def all_statements() -> dict[str, str]:
    return dict(statements())


async def test_postgresql_prepares_every_statement(
    all_statements: dict[str, str], database_url: str
) -> None:
    # Given the newest schema
    connection = await asyncpg.connect(database_url)
    refused = {}
    # When each constant is prepared
    for name, statement in all_statements.items():
        try:
            await connection.prepare(statement)
        except asyncpg.PostgresError as error:
            refused[name] = str(error)
    await connection.close()
    # Then PostgreSQL knows every table, column and type in it
    assert refused == {}
    assert any(name.startswith("persister.") for name in all_statements)


def test_every_table_has_one_writing_service(all_statements: dict[str, str]) -> None:
    writers: dict[str, set[str]] = {}
    for name, statement in all_statements.items():
        # "ON CONFLICT … DO UPDATE SET" and "FOR UPDATE" name no table.
        text = re.sub(r"DO\s+UPDATE\s+SET|FOR\s+(NO\s+KEY\s+)?UPDATE", "", statement)
        for table in WRITE.findall(text):
            writers.setdefault(table, set()).add(name.split(".")[0])
    shared = {table: by for table, by in writers.items() if len(by) > 1}
    assert set(shared) <= ROWS_OF_EACH_CONSUMER


async def test_the_writer_that_the_schema_names_is_the_one_that_writes(
    all_statements: dict[str, str], database_url: str
) -> None:
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch(
        "SELECT relname, obj_description(oid) AS comment FROM pg_class "
        "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
    )
    await connection.close()
    named = {row["relname"]: row["comment"] for row in rows if row["relname"] != "alembic_version"}
    assert all(comment and comment.startswith("writer: ") for comment in named.values()), named
    for name, statement in all_statements.items():
        text = re.sub(r"DO\s+UPDATE\s+SET|FOR\s+(NO\s+KEY\s+)?UPDATE", "", statement)
        for table in set(WRITE.findall(text)) - ROWS_OF_EACH_CONSUMER:
            writer = named[table].removeprefix("writer: ")
            assert name.startswith((f"{writer}.", f"shared.{writer}")), f"{name} writes {table}"
