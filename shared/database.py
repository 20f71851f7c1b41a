"""PostgreSQL: the only module that opens connections, and what their errors mean.

JSON columns travel as text: PostgreSQL builds and parses it, Python never does. Connections prepare their statements
once and keep them; every statement has a deadline.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from typing import Final

import asyncpg

from shared.errors import LilithError

STATEMENT_TIMEOUT_S: Final = 10.0
LOCK_TIMEOUT_S: Final = 5.0
IDLE_IN_TRANSACTION_TIMEOUT_S: Final = 15.0
"""A process that hangs in the middle of a transaction gives its locks back after this long."""

LOCK_HEARTBEAT_S: Final = 3.0
_CONNECT_TIMEOUT_S: Final = 5.0
_LONGEST_WAIT_S: Final = 1.0
_log = logging.getLogger(__name__)


class DatabaseUnavailableError(LilithError):
    """PostgreSQL did not answer in time. Trying again may succeed."""

    def __init__(self, *, waited_s: float, reason: BaseException) -> None:
        super().__init__(f"PostgreSQL is not reachable after {waited_s:.0f} s: {reason!r}")
        self.waited_s = waited_s


# What a lost, restarting or overloaded server raises. Asked again later, the same statement may succeed.
TRANSIENT_ERRORS: Final[tuple[type[Exception], ...]] = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # What asyncpg says of a connection that the server ended in the moment in which it was used.
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)

# What a value raises that no retry will make storable: classes 22 (data), 23 (integrity) and 54 (limits of
# PostgreSQL, a too deep JSON for one). Ask for these before ``TRANSIENT_ERRORS``, whose base class is theirs.
DATA_ERRORS: Final[tuple[type[Exception], ...]] = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)


class Backoff:
    """The pauses between attempts: 0.1 s, doubling to 5 s, each with jitter so that processes do not return at once."""

    def __init__(self, *, first_s: float = 0.1, longest_s: float = 5.0) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def next_s(self) -> float:
        """Return how long to wait before the next attempt: between half and all of the current step."""
        step_s, self._next_s = self._next_s, min(self._next_s * 2, self._longest_s)
        return step_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret

    def reset(self) -> None:
        """Begin with the first pause again: an attempt succeeded."""
        self._next_s = self._first_s


async def open_pool(
    dsn: str, *, name: str, size: int, wait_s: float = 30.0, generic_plans: bool = False
) -> "asyncpg.Pool[asyncpg.Record]":
    """Return a pool of at most ``size`` connections, the first one connected.

    Args:
        dsn: ``postgresql://…``, as asyncpg understands it.
        name: ``application_name``: shown by ``pg_stat_activity``.
        size: Connections at most. They are opened when needed.
        wait_s: How long to try when PostgreSQL is still starting.
        generic_plans: Plan each statement once per connection instead of at every call. For short reads by key over
            a partitioned table, whose planning takes longer than they do; not where values decide between plans.

    Raises:
        DatabaseUnavailableError: No connection within ``wait_s``.
        asyncpg.InvalidAuthorizationSpecificationError: The server refused the login; waiting does not help.
        asyncpg.InvalidCatalogNameError: There is no such database.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    backoff = Backoff(longest_s=_LONGEST_WAIT_S)
    while True:
        pool = _pool(dsn, name=name, size=size, generic_plans=generic_plans)
        try:
            return await pool
        except (
            asyncpg.InvalidAuthorizationSpecificationError,
            asyncpg.InvalidCatalogNameError,
        ):
            raise
        except TRANSIENT_ERRORS as error:
            if loop.time() >= deadline:
                raise DatabaseUnavailableError(waited_s=wait_s, reason=error) from error
        await asyncio.sleep(min(backoff.next_s(), max(0.0, deadline - loop.time())))


async def close_pool(
    pool: "asyncpg.Pool[asyncpg.Record]", *, wait_s: float = _CONNECT_TIMEOUT_S
) -> None:
    """Close the pool; connections that are still in use ``wait_s`` later, or hang, are cut."""
    try:
        async with asyncio.timeout(wait_s):
            await pool.close()
    except TimeoutError:
        pool.terminate()


def _pool(dsn: str, *, name: str, size: int, generic_plans: bool) -> "asyncpg.Pool[asyncpg.Record]":
    return asyncpg.create_pool(
        dsn,
        min_size=1,
        max_size=size,
        timeout=_CONNECT_TIMEOUT_S,
        # The server's deadline comes first and names the statement; this one is for a server that hangs.
        command_timeout=STATEMENT_TIMEOUT_S + LOCK_TIMEOUT_S,
        server_settings={
            "application_name": name,
            "statement_timeout": _milliseconds(STATEMENT_TIMEOUT_S),
            "lock_timeout": _milliseconds(LOCK_TIMEOUT_S),
            "idle_in_transaction_session_timeout": _milliseconds(IDLE_IN_TRANSACTION_TIMEOUT_S),
            # Short statements by key; compiling one costs more than running it.
            "jit": "off",
            "timezone": "UTC",
            "plan_cache_mode": "force_generic_plan" if generic_plans else "auto",
        },
    )


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))


@contextlib.asynccontextmanager
async def hold_lock(
    pool: "asyncpg.Pool[asyncpg.Record]", try_lock: str, name: str
) -> AsyncIterator[asyncio.Event | None]:
    """Hold an advisory lock on a connection of its own, so that one process at a time does something.

    Yields None when another session holds it; else an event that is set as soon as the connection is gone, and with
    it the lock. Between the loss and the look at the event two may work: the lock is a convenience, no fence.

    Args:
        pool: Lends the connection for as long as the lock is held.
        try_lock: ``$1`` text name -> bool; sets ``idle_session_timeout``, so that a process which hangs lets go.
        name: What is locked.
    """
    async with pool.acquire() as connection:
        if not await connection.fetchval(try_lock, name):
            yield None
            return
        lost = asyncio.Event()

        async def speak() -> None:
            try:
                # Asked again, a session that holds the lock gets it once more; all of it ends with the session.
                while await connection.fetchval(try_lock, name):  # noqa: ASYNC110 - a heartbeat
                    await asyncio.sleep(LOCK_HEARTBEAT_S)
            except TRANSIENT_ERRORS as error:
                _log.warning("lock %s: the connection failed: %r", name, error)
            finally:
                lost.set()

        def ended(_connection: object) -> None:
            lost.set()

        connection.add_termination_listener(ended)
        heartbeat = asyncio.create_task(speak(), name=f"hold {name}")
        try:
            yield lost
        finally:
            heartbeat.cancel()
            await asyncio.wait([heartbeat])
            # The pool has taken back a connection that broke; it has no listeners any more.
            with contextlib.suppress(asyncpg.InterfaceError):
                connection.remove_termination_listener(ended)
