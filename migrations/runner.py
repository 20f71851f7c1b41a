"""Bring a database to a revision, and back. Everything here is synchronous and works from an installed package.

Each call runs in a thread and event loop of its own, so it may be called with or without a running loop (it blocks
one: ``await asyncio.to_thread(runner.upgrade, dsn)``). Several callers at once take turns on an advisory lock.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

import asyncpg

# alembic and sqlalchemy take 0.3 s to import; the services and most words of the command line need neither.
if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import Script
    from sqlalchemy import Connection

HEAD: Final = "head"
BASE: Final = "base"

_LOCK_KEY: Final = 0x6C696C697468  # "lilith"
_LOCK_WAIT_S: Final = 120
_CONNECT_S: Final = 10.0
_LOCATION: Final = Path(__file__).parent
_T = TypeVar("_T")


class Revision(NamedTuple):
    """One revision and whether the database has it."""

    revision: str
    title: str
    applied: bool


def upgrade(dsn: str, revision: str = HEAD) -> None:
    """Apply every revision up to ``revision`` in one transaction; does nothing when it is there already.

    Raises:
        asyncpg.PostgresError, OSError: The database is not reachable or refused a statement; nothing was changed.
    """
    from alembic import command

    _run(dsn, lambda config: command.upgrade(config, revision))


def downgrade(dsn: str, revision: str = "-1") -> None:
    """Take revisions back: ``-1`` the last one, ``base`` all of them. **Loses the data** of what it drops."""
    from alembic import command

    _run(dsn, lambda config: command.downgrade(config, revision))


def status(dsn: str) -> list[Revision]:
    """Return every revision, oldest first, and whether it is applied."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = _config()
    heads: list[str] = []

    def read(with_connection: "Config") -> None:
        connection: Connection = with_connection.attributes["connection"]
        heads.extend(MigrationContext.configure(connection).get_current_heads())

    _run(dsn, read)
    scripts = ScriptDirectory.from_config(config)
    applied = {
        script.revision
        for head in heads
        for script in scripts.iterate_revisions(head, BASE, inclusive=True)
    }
    walk = reversed(list(scripts.walk_revisions()))
    return [Revision(one.revision, one.doc, one.revision in applied) for one in walk]


def is_current(dsn: str) -> bool:
    """Return whether the database has every revision of this version."""
    return all(revision.applied for revision in status(dsn))


def sql(revision: str = HEAD) -> str:
    """Return the script that ``upgrade`` from an empty database would run, for those who run SQL by hand.

    ``"0001:0002"`` is the part between two revisions.
    """
    from alembic import command

    script = StringIO()
    command.upgrade(_config(script), revision, sql=True)
    return script.getvalue()


def new(name: str) -> Path:
    """Make an empty revision after the last one and return its path. For a checkout of the repository."""
    from alembic import command

    number = f"{len(list((_LOCATION / 'versions').glob('[0-9]*.py'))) + 1:04d}"
    made = command.revision(_config(), message=name, rev_id=number)
    return Path(cast("Script", made).path)


def _config(script: StringIO | None = None) -> "Config":
    from alembic.config import Config

    config = Config(output_buffer=script, stdout=StringIO())
    # The file format of alembic's options gives a percent sign a meaning.
    config.set_main_option("script_location", str(_LOCATION).replace("%", "%%"))
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    config.set_main_option("path_separator", "os")
    return config


def _run(dsn: str, work: "Callable[[Config], object]") -> None:
    """Do ``work`` with ``config.attributes["connection"]`` connected, holding the lock."""
    _in_own_loop(lambda: _with_connection(dsn, work))


async def _with_connection(dsn: str, work: "Callable[[Config], object]") -> None:
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    # asyncpg reads the address itself, so whatever it understands works here (sockets, several hosts, sslmode).
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(dsn, timeout=_CONNECT_S),
        poolclass=NullPool,
    )
    try:
        async with engine.connect() as connection:
            await connection.run_sync(lambda sync: _locked(sync, work))
    finally:
        await engine.dispose()


def _locked(connection: "Connection", work: "Callable[[Config], object]") -> None:
    from sqlalchemy import text

    # Held by the session, not the transaction: a revision may need to commit in between (CREATE INDEX CONCURRENTLY).
    # The connection is closed afterwards, which gives it back whatever happens.
    connection.execute(text(f"SET lock_timeout = '{_LOCK_WAIT_S}s'"))
    connection.execute(text(f"SELECT pg_advisory_lock({_LOCK_KEY})"))
    connection.execute(text("SET lock_timeout = DEFAULT"))
    connection.commit()
    config = _config()
    config.attributes["connection"] = connection
    work(config)


def _in_own_loop(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="migrations") as thread:
        return thread.submit(lambda: asyncio.run(work())).result()
