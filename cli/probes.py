"""Is it there, is it ready: questions to a process of this machine, each answered within a second."""

import socket
from typing import Final

_LOOPBACK: Final = "127.0.0.1"
_STATUS_LINE_BYTES: Final = 64


def http_status(port: int, path: str, *, timeout_s: float = 1.0) -> int | None:
    """Return the status of ``GET http://127.0.0.1:<port><path>``, None when nobody answers HTTP."""
    request = f"GET {path} HTTP/1.1\r\nHost: {_LOOPBACK}:{port}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection((_LOOPBACK, port), timeout=timeout_s) as connection:
            connection.sendall(request.encode("ascii"))
            head = connection.recv(_STATUS_LINE_BYTES)
    except OSError:
        return None
    match head.split(b" ", 2):
        case [protocol, status, *_] if protocol.startswith(b"HTTP/") and status[:3].isdigit():
            return int(status[:3])
        case _:
            return None
