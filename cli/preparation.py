"""What must be done to the servers before a service may start: migrations, then streams."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from shared.errors import ConfigurationError, LilithError
from shared.settings import load_settings

_NAME: Final = "provision"


class PreparationFailedError(LilithError):
    """A server could not be made ready. The text names it (without its password) and what it said."""


async def migrate(database_url: str) -> None:
    """Bring the database to the newest revision; costs 0.3 s when it is there already."""
    with explained(database_url):
        from migrations import runner  # alembic is slow to import, and most words need none of it.

        await asyncio.to_thread(runner.upgrade, database_url)


async def provision(
    nats_url: str, database_url: str, *, new_generation: Collection[str] = ()
) -> list[str]:
    """Create or verify every stream, consumer and bucket; return what was done, one line each.

    Raises:
        ProvisionError: The server or a stream breaks a promise; the text says which and what to do.
    """
    from shared import provision as machinery
    from shared.bus import Bus
    from shared.database import close_pool, open_pool
    from shared.subjects import inbox_prefix

    settings = load_settings()
    pool = await open_pool(database_url, name=_NAME, size=1)
    try:
        bus = await Bus.connect(
            nats_url,
            name=_NAME,
            on_closed=lambda _reason: None,
            inbox_prefix=inbox_prefix(_NAME, _NAME),
        )
        try:
            report = await machinery.provision(
                bus, pool, settings, new_generation=list(new_generation)
            )
        finally:
            await bus.close()
    finally:
        await close_pool(pool)
    return report.lines()


def nats_url() -> str:
    """Return the NATS server of the environment.

    Raises:
        ConfigurationError: None is named.
    """
    url = load_settings().nats_url
    if not url:
        raise ConfigurationError("set NATS_URL to nats://provision:…@host:4222")
    return url


def database_url() -> str:
    """Return the database of the environment.

    Raises:
        ConfigurationError: None is named.
    """
    settings = load_settings()
    if not settings.database_url and not settings.database_postgres_password:
        raise ConfigurationError("set DATABASE_URL, or DATABASE_POSTGRES_PASSWORD and its parts")
    return settings.dsn


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what the database or alembic refuse into one sentence.

    Raises:
        PreparationFailedError: Instead of their own exceptions.
    """
    from alembic.util import CommandError
    from asyncpg import InterfaceError, PostgresError

    try:
        yield
    except (OSError, PostgresError, InterfaceError, CommandError) as error:
        address = urlsplit(url)
        place = f"{address.hostname}:{address.port or 5432}{address.path}"
        raise PreparationFailedError(
            f"the database at {place}: {str(error) or type(error).__name__}; "
            "is it running, and is DATABASE_URL right?"
        ) from error
