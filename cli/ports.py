"""TCP ports of the embedded default: searched, held against other supervisors, the same next time.

Ports are searched upwards from a number below the kernel's ephemeral range, never asked for with
port 0: a server that restarts must find its port again, and an outgoing connection of anybody may
take an ephemeral one in between.
"""

import fcntl
import os
import socket
import tempfile
from pathlib import Path
from typing import IO, Final

from shared.errors import ConfigurationError

SEARCH_START: Final = 8080
_PORT_MAX: Final = 32_000
_LOOPBACK: Final = "127.0.0.1"


class PortReservations:
    """Ports held for as long as this object (or its process) lives.

    A file lock per port keeps two supervisors that start at once from choosing the same one: between
    the choice and the child's bind nothing else would.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or Path(tempfile.gettempdir()) / f"lilith-ports-{os.getuid()}"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._held: dict[int, IO[str]] = {}

    def reserve(self, port: int) -> bool:
        """Hold ``port``; False when a process listens on it or another supervisor holds it."""
        if port in self._held:
            return False
        lock = (self._directory / f"{port}").open("w", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        if not _is_free(port):
            lock.close()
            return False
        self._held[port] = lock
        return True

    def search(self, start: int = SEARCH_START) -> int:
        """Hold and return the first free port from ``start`` on.

        Raises:
            ConfigurationError: Nothing is free below the ephemeral range.
        """
        for port in range(start, max(_PORT_MAX, start + 200)):
            if self.reserve(port):
                return port
        raise ConfigurationError(f"no free TCP port from {start} on: give another one with --port")

    def release(self) -> None:
        """Give every port back."""
        for lock in self._held.values():
            lock.close()
        self._held.clear()


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        # As servers do: connections of the last run in TIME_WAIT do not make a port taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_LOOPBACK, port))
            listener.listen(1)
        except OSError:
            return False
    return True
