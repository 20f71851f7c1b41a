"""What a person sees while the platform runs: progress and prefixed logs on stderr, results on stdout.

Plain lines without colours when stderr is no terminal, with ``NO_COLOR`` or in CI.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TextIO

_COLOURS: Final = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)
_NAME_WIDTH: Final = 10
_POLL_S: Final = 0.05
_CHUNK_BYTES: Final = 256 * 1024
_LOG_BYTES_MAX: Final = 64 * 1024 * 1024
_LOG_GENERATIONS: Final = 3


class Console:
    """Writes whole lines to ``stream``, each with the name of who speaks."""

    def __init__(self, stream: TextIO, environment: Mapping[str, str]) -> None:
        self._stream = stream
        plain = bool(environment.get("NO_COLOR") or environment.get("CI"))
        self._coloured = stream.isatty() and not plain
        self._colour_of: dict[str, int] = {}

    def note(self, text: str, *, name: str = "lilith") -> None:
        """Print one line of ``name``."""
        colour = self._colour_of.setdefault(name, _COLOURS[len(self._colour_of) % len(_COLOURS)])
        label = f"{name:<{_NAME_WIDTH}} |"
        if self._coloured:
            label = f"\x1b[{colour}m{label}\x1b[0m"
        print(f"{label} {text}", file=self._stream, flush=True)


def stderr_console() -> Console:
    """Return the console of this process."""
    return Console(sys.stderr, os.environ)


def rotate_log(path: Path) -> None:
    """Keep the logs of the last runs as ``<name>.log.1`` (the newest) to ``.3``."""
    for generation in range(_LOG_GENERATIONS, 0, -1):
        older = path.with_name(f"{path.name}.{generation}")
        newer = path if generation == 1 else path.with_name(f"{path.name}.{generation - 1}")
        if newer.exists():
            newer.replace(older)


def last_lines(path: Path, *, lines_max: int) -> list[str]:
    """Return the last lines of a log: what a child said before it ended."""
    try:
        size = path.stat().st_size
        with path.open("rb") as log:
            log.seek(max(0, size - _CHUNK_BYTES))
            text = log.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()[-lines_max:]


class LogFollower:
    """Shows what is appended to a log, and keeps the file bounded.

    The children write their files themselves, so that neither a slow terminal nor our end holds
    them up. A file over 64 MiB is copied to ``.1`` and cut.
    """

    def __init__(self, path: Path, name: str, console: Console | None) -> None:
        self._path = path
        self._name = name
        self._console = console
        self._offset = 0
        self._rest = b""

    async def follow(self) -> None:
        """Go on until cancelled; what was written until then is shown."""
        try:
            while True:
                self.show()
                if self._path.exists() and self._path.stat().st_size > _LOG_BYTES_MAX:
                    copy = self._path.with_name(f"{self._path.name}.1")
                    await asyncio.to_thread(shutil.copyfile, self._path, copy)
                    # Children append (O_APPEND), so their next line goes to the new beginning.
                    os.truncate(self._path, 0)
                    self._offset = 0
                await asyncio.sleep(_POLL_S)
        finally:
            self.show()

    def show(self) -> None:
        """Print the whole lines that are new."""
        if self._console is None or not self._path.exists():
            return
        with self._path.open("rb") as log:
            log.seek(self._offset)
            chunk = log.read(_CHUNK_BYTES)
        self._offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._console.note(line.decode("utf-8", errors="replace"), name=self._name)
