"""A supervisor over stand-ins for the real services: tiny processes, started as real ones are.

Usage: ``python standin_platform.py DATA_DIRECTORY [NAME=SCRIPT ...]``; prints its pids as JSON when all are ready. A
script is Python; it makes the file ``$READY`` when it is ready.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cli.child import ChildSpec
from cli.console import Console
from cli.data_directory import DataDirectory
from cli.processes import Launch
from cli.supervisor import Stage, Supervisor, stop_leftovers
from shared.errors import LilithError

SERVES: Final = """
import os, pathlib, time
pathlib.Path(os.environ["READY"]).touch()
print("serving", flush=True)
time.sleep(60)
"""


def child(directory: Path, name: str, script: str) -> ChildSpec:
    """Return a stand-in that is ready when it made its file, and whose file goes with it."""
    ready = directory / f"{name}.ready"
    return ChildSpec(
        name=name,
        launch=Launch(
            argv=[sys.executable, "-c", script],
            env={**os.environ, "READY": f"{ready}"},
            cwd=directory,
        ),
        is_ready=lambda _pid: ready.exists(),
        stop_s=1.0,
        prepare=lambda: ready.unlink(missing_ok=True),
    )


async def announce(pids: Mapping[str, int]) -> None:
    """Print the pids: now everything is ready."""
    sys.stdout.write(json.dumps(pids) + "\n")
    sys.stdout.flush()


def main(path: str, *children: str) -> None:
    """Run ``children``, each a stage of its own, until a signal."""
    directory = DataDirectory(Path(path))
    console = Console(sys.stderr, os.environ)
    named = [argument.split("=", 1) for argument in children] or [
        ["first", SERVES],
        ["second", SERVES],
    ]
    with directory.lock():
        stop_leftovers(directory, console)
        stages = [Stage([child(directory.path, name, script)]) for name, script in named]
        asyncio.run(Supervisor(directory, console, show_logs=True).run(stages, announce))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except LilithError as error:
        sys.exit(str(error))
