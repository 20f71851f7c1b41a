"""``up``, ``demo`` and ``ps``: the whole platform on this machine, and what runs of it."""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from cli.console import stderr_console
from cli.data_directory import DataDirectory
from cli.embedded.privileges import server_account
from cli.ports import PortReservations
from cli.stack import External, Stack, choose_ports
from cli.supervisor import Supervisor, stop_leftovers
from cli.version import platform_version
from shared.settings import Settings, load_settings, unknown_names

EDGES: Final = 2
DATA_DIRECTORY: Final = Path(".data")
_NATS_URL_PREFIX: Final = "NATS_URL_"

Announce = Callable[["Running"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What ``up`` was asked for. ``port`` None: where it was last time, else the first free from 8080."""

    data_dir: Path = DATA_DIRECTORY
    port: int | None = None
    edges: int = EDGES
    only_servers: bool = False
    show_logs: bool = True


@dataclass(frozen=True, slots=True)
class Running:
    """A platform that is ready."""

    stack: Stack
    directory: DataDirectory
    pids: Mapping[str, int]
    ready_s: float

    def description(self) -> dict[str, Any]:
        """Return the one line of ``up --json`` (protocol, section 6)."""
        return {
            "ready": True,
            "api": self.stack.api_url,
            "ws": self.stack.edge_urls[0],
            "edges": self.stack.edge_urls,
            "nats": self.stack.nats_url("platform"),
            "database": self.stack.database_url,
            "metrics": self.stack.metrics_urls(),
            "data_dir": f"{self.directory.path}",
            "version": platform_version(),
            "pids": dict(self.pids),
        }


def run_platform(options: UpOptions, announce: Announce) -> None:
    """Run the platform until SIGINT or SIGTERM; ``announce`` is called once when it is ready.

    Raises:
        LilithError: It cannot start; the text says why. Nothing is left running.
    """
    began = time.monotonic()
    console = stderr_console()
    settings = load_settings()
    for sentence in unknown_names(os.environ):
        console.note(sentence)
    directory = DataDirectory(options.data_dir)
    with directory.lock():
        stop_leftovers(directory, console)
        reservations = PortReservations()  # Held as long as this name lives.
        stack = _plan(options, settings, directory, reservations)
        supervisor = Supervisor(directory, console, show_logs=options.show_logs)
        stages = stack.stages()[: 1 if options.only_servers else None]
        asyncio.run(supervisor.run(stages, partial(_announce, announce, stack, directory, began)))


async def announce_json(running: Running) -> None:
    """Print exactly one line on stdout."""
    print(json.dumps(running.description()), flush=True)


async def announce_text(running: Running) -> None:
    """Print where everything is."""
    stack, option = running.stack, data_dir_option(running.directory)
    lines = [f"ready in {running.ready_s:.1f} s     data {running.directory.path}     stop Ctrl+C"]
    if "api" in running.pids:
        lines += [
            f"REST         {stack.api_url}/api     docs {stack.api_url}/docs",
            f"WebSocket    {'   '.join(stack.edge_urls)}",
            f"token        ./run token --user ava{option}",
        ]
    else:
        lines += [
            f"PostgreSQL   {stack.database_url}",
            f"NATS         {stack.nats_url('platform')}",
        ]
    print("\n" + "\n".join(f"  {line}" for line in lines) + "\n", flush=True)


def processes(data_dir: Path) -> dict[str, Any]:
    """Return ``{"ready": bool, "pids": {name: pid or null}}`` of the platform in ``data_dir``."""
    directory = DataDirectory(data_dir)
    children = directory.recorded()
    ready = directory.supervisor_is_running() and bool(children)
    return {
        "ready": ready and all(child.ready for child in children.values()),
        "pids": {name: child.process and child.process.pid for name, child in children.items()},
    }


async def _announce(
    announce: Announce,
    stack: Stack,
    directory: DataDirectory,
    began: float,
    pids: Mapping[str, int],
) -> None:
    await announce(Running(stack, directory, pids, time.monotonic() - began))


def _plan(
    options: UpOptions, settings: Settings, directory: DataDirectory, reservations: PortReservations
) -> Stack:
    secrets = directory.secrets()
    if settings.jwt_secret:
        secrets = secrets._replace(jwt_secret=settings.jwt_secret)
    state = directory.state()
    ports = choose_ports(
        options.edges,
        state.get("ports", {}),
        reservations,
        start=options.port,
    )
    state["ports"] = {**state.get("ports", {}), **ports}
    known_home = Path(state.get("servers_home", directory.path))
    account = server_account(os.geteuid(), known_home / "postgres")
    servers_home = directory.servers_home(state, account)
    directory.save_state(state)
    return Stack(
        edges=options.edges,
        external=External(
            database_url=settings.database_url or None,
            nats_url=settings.nats_url or None,
            nats_urls={
                name.removeprefix(_NATS_URL_PREFIX).lower(): value
                for name, value in os.environ.items()
                if name.startswith(_NATS_URL_PREFIX)
            },
        ),
        ports=ports,
        secrets=secrets,
        servers_home=servers_home,
        account=account,
    )


def data_dir_option(directory: DataDirectory) -> str:
    """Return what must be added to a command so that it finds this folder; nothing for the default."""
    return "" if directory.path == DATA_DIRECTORY.absolute() else f" --data-dir {directory.path}"
