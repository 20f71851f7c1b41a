"""Real servers for tests: nats-server and PostgreSQL as processes of the test, fast to start.

Fixtures (made available to every test by ``tests/conftest.py``):

``nats_server``
    A nats-server of this test alone (about 50 ms), with the repository's ``nats/server.conf``, its
    users and an empty store: ``nats_server.url("edge")``. ``kill9()``, ``start()``, ``restart()``,
    ``pause()`` and ``resume()`` do what they say, at the same port and with the same store.
``postgres_server``
    One server per test process (``fsync`` off): ``kill9()``, ``restart()``, ``pause()``, ``resume()``
    as above. Most tests want ``database_url`` instead.
``database_url``
    The address of a fresh, migrated database of this test (about 40 ms: cloned from a template).
``empty_database_url``
    The same without any migration.
``nats_url``
    ``nats_url("edge")`` is the address for that user, of ``nats_server`` or of ``TEST_NATS_URL``,
    without any stream. For tests that kill nothing.

With ``TEST_DATABASE_URL`` (a role that may create databases) no PostgreSQL is started for
``database_url``, and with ``TEST_NATS_URL`` no nats-server for ``nats_url``.
"""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from cli.embedded.nats import NATS_USERS, EmbeddedNats
from cli.embedded.postgres import DATABASE_NAME, EmbeddedPostgres
from cli.embedded.privileges import server_account
from cli.ports import PortReservations
from cli.processes import Launch, popen_options, process_name

START_S: Final = 20.0
STOP_S: Final = 10.0
T = TypeVar("T")

_PORTS_START: Final = 20_000
_POLL_S: Final = 0.01
_MEMORY_BYTES_MIN: Final = 2 * 1024**3


class ServerProcess:
    """One real server that a test may kill and start again, at the same address and with the same data."""

    def __init__(self, launch: Launch, is_ready: Callable[[int], bool], log: Path) -> None:
        self._launch = launch
        self._is_ready = is_ready
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything that the server has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start the server when it does not run, and wait until it is ready."""
        deadline = time.monotonic() + START_S
        while not self._became_ready(deadline):
            # PostgreSQL ends at once while processes of the killed one still hold its memory.
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Ask the server to end, and wait for it."""
        if self._process is None:
            return
        self._process.send_signal(self._launch.stop_signal)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill9(self) -> None:
        """Kill the server in the middle of whatever it does, and wait until it is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def restart(self, *, kill: bool = False) -> None:
        """Stop (or kill) the server and start it again."""
        if kill:
            self.kill9()
        else:
            self.stop()
        self.start()

    def pause(self) -> None:
        """Let the server hang: its connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        # The signal is only sent by now; on a busy machine a thread may still answer for some milliseconds.
        deadline = time.monotonic() + STOP_S
        while not _is_stopped(self.pid) and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def resume(self) -> None:
        """Let a paused server go on."""
        os.kill(self.pid, signal.SIGCONT)

    def _became_ready(self, deadline: float) -> bool:
        if self._process is None or self._process.poll() is not None:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._launch.argv, **popen_options(self._launch, log)
                )
        while not self._is_ready(self._process.pid):
            assert time.monotonic() < deadline, f"not ready in {START_S} s:\n{self.log}"
            if self._process.poll() is not None:
                return False
            time.sleep(_POLL_S)
        return True


def _is_stopped(pid: int) -> bool:
    states = [
        (task / "stat").read_text().rpartition(")")[2].split()[0]
        for task in Path(f"/proc/{pid}/task").iterdir()
    ]
    return all(state in "Tt" for state in states)


class NatsServer(ServerProcess):
    """A nats-server with the repository's configuration: one user per service."""

    def __init__(self, directory: Path, ports: PortReservations) -> None:
        self._server = EmbeddedNats(
            directory=directory,
            port=ports.search(_search_start()),
            http_port=ports.search(_search_start()),
            passwords={user: secrets.token_urlsafe(12) for user in NATS_USERS},
            account=server_account(os.geteuid()),
        )
        self._server.prepare()
        log = directory.with_suffix(".log")
        super().__init__(self._server.launch(), lambda _pid: self._server.is_ready(), log)

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return self._server.port

    @property
    def monitoring_url(self) -> str:
        """The server's own HTTP address: ``/varz``, ``/jsz``, ``/connz``."""
        return f"http://127.0.0.1:{self._server.http_port}"

    def url(self, user: str) -> str:
        """Return the address for ``user``: edge, persister, api, analytics, provision or platform."""
        return self._server.url(user)


class PostgresServer(ServerProcess):
    """A PostgreSQL whose files are not flushed: fast, and gone with the test run."""

    def __init__(self, directory: Path, ports: PortReservations) -> None:
        self._server = EmbeddedPostgres(
            directory=directory,
            port=ports.search(_search_start()),
            password=secrets.token_urlsafe(12),
            superuser_password=secrets.token_urlsafe(12),
            account=server_account(os.geteuid()),
            settings={
                "fsync": "off",
                "synchronous_commit": "off",
                "full_page_writes": "off",
                "shared_buffers": "32MB",
                "autovacuum": "off",
            },
        )
        self._server.prepare()
        super().__init__(
            self._server.launch(), self._server.is_ready, directory.with_suffix(".log")
        )

    def dsn(self, database: str = DATABASE_NAME) -> str:
        """Return the address of ``database`` for its owner."""
        return self._server.dsn(database)

    def superuser_dsn(self, database: str = "postgres") -> str:
        """Return the address of ``database`` for the role that may do everything."""
        return self._server.superuser_dsn(database)


class Databases:
    """Databases of one server, cloned from a template that holds every migration."""

    def __init__(self, admin_url: str, owner_url: str) -> None:
        self._admin_url = admin_url
        self._owner_url = owner_url
        self._owner = urlsplit(owner_url).username
        self._template = ""

    @contextmanager
    def database(self, template: str) -> Iterator[str]:
        """Make a database like ``template``, and drop it at the end whoever is connected."""
        name = f"test_{secrets.token_hex(6)}"
        in_own_loop(
            self._execute(f'CREATE DATABASE {name} OWNER "{self._owner}" TEMPLATE {template}')
        )
        try:
            yield self._url(name)
        finally:
            in_own_loop(self._execute(f"DROP DATABASE {name} WITH (FORCE)"))

    def template(self) -> str:
        """Return the name of a database that holds every migration, made at the first call."""
        if not self._template:
            from migrations.runner import (
                upgrade,
            )  # alembic takes 0.3 s, and most tests need none of it.

            name = f"template_{secrets.token_hex(6)}"
            in_own_loop(self._execute(f'CREATE DATABASE {name} OWNER "{self._owner}"'))
            upgrade(self._url(name))
            self._template = name
        return self._template

    def drop_template(self) -> None:
        """Leave nothing behind on a server that is not ours."""
        if self._template:
            in_own_loop(self._execute(f"DROP DATABASE {self._template} WITH (FORCE)"))

    def _url(self, database: str) -> str:
        return urlunsplit(urlsplit(self._owner_url)._replace(path=f"/{database}"))

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self._admin_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


def in_own_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` in a thread of its own: a fixture's event loop may be around and must not notice."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result(timeout=START_S)


async def delete_streams(url: str) -> None:
    """Delete every stream of the server at ``url``."""
    from shared.bus import Bus
    from shared.subjects import inbox_prefix

    bus = await Bus.connect(
        url,
        name="tests",
        on_closed=lambda _reason: None,
        inbox_prefix=inbox_prefix("provision", "tests"),
    )
    try:
        names = await bus.api("STREAM.NAMES")
        for stream in names.get("streams") or ():
            await bus.api(f"STREAM.DELETE.{stream}")
    finally:
        await bus.close()


def _data_parent() -> Path:
    """Return memory where there is enough of it: tests flush thousands of times, and none cuts the power.

    A container has 64 MiB by default, which is less than one database cluster.
    """
    memory = Path("/dev/shm")  # noqa: S108 - only as the parent of a directory with a random name
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _MEMORY_BYTES_MIN
    return memory if roomy else Path(tempfile.gettempdir())


def _search_start() -> int:
    # Spread out, so that test processes that start together do not walk over each other's ports.
    return _PORTS_START + secrets.randbelow(8_000)


@pytest.fixture(scope="session")
def port_reservations() -> Iterator[PortReservations]:
    """Ports that no other test process uses."""
    reservations = PortReservations()
    yield reservations
    reservations.release()


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """A short path for server data, open to the account that servers run as under root."""
    parent = _data_parent()
    for left in parent.glob("lilith-test-*"):  # Of a killed run; in memory it would never go away.
        if process_name(int(left.name.split("-")[2])) is None:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"lilith-test-{os.getpid()}-", dir=parent) as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def nats_server(
    server_directory: Path, port_reservations: PortReservations
) -> Iterator[NatsServer]:
    """A nats-server of this test alone, with an empty store and no stream."""
    directory = server_directory / f"nats-{secrets.token_hex(4)}"
    server = NatsServer(directory, port_reservations)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory)


@pytest.fixture
def nats_url(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """The address of an empty NATS server by user name."""
    external = os.environ.get("TEST_NATS_URL")
    if external is not None:
        in_own_loop(delete_streams(external))
        return lambda _user: external
    server: NatsServer = request.getfixturevalue("nats_server")
    return server.url


@pytest.fixture(scope="session")
def postgres_server(
    server_directory: Path, port_reservations: PortReservations
) -> Iterator[PostgresServer]:
    """The PostgreSQL of this test process. A test that kills it starts it again."""
    server = PostgresServer(server_directory / "postgres", port_reservations)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    """Makes databases; the migrated template is made once per test process."""
    external = os.environ.get("TEST_DATABASE_URL")
    if external is None:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        made = Databases(server.superuser_dsn(), server.dsn())
    else:
        made = Databases(external, external)
    try:
        yield made
    finally:
        made.drop_template()


@pytest.fixture
def empty_database_url(databases: Databases) -> Iterator[str]:
    """The address of a fresh database of this test, without any migration."""
    with databases.database("template0") as url:
        yield url


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """The address of a fresh, migrated database of this test."""
    with databases.database(databases.template()) as url:
        yield url
