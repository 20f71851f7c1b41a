"""``/livez``, ``/readyz`` and ``/metrics``: a small ASGI app, and uvicorn inside the service's own event loop.

Edge, persister and analytics serve it on their operations port; the api puts ``health_app`` before its own routes and
is served by ``serve_app`` too. Alive: this process answers. Ready: every check is true, so new work may come here; a
draining process is alive and not ready.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from typing import Any, Final

import msgspec
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from typing_extensions import override

PATHS: Final = ("/livez", "/readyz", "/metrics")
CLOSE_S: Final = 2
"""Requests in flight may take this long to finish when the server stops."""
_BACKLOG: Final = 2048
_JSON: Final = "application/json"

Checks = Callable[[], Mapping[str, bool]]
"""Returns what this process needs, by name, and whether it has it now. Called per request: must not block."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class HealthServer:
    """The operations port of one process. ``port`` 0 takes a free one; ``bound_port`` then names it."""

    def __init__(self, port: int, host: str, checks: Checks, registry: CollectorRegistry) -> None:
        self._server = AppServer(health_app(checks, registry), host=host, port=port)

    @property
    def bound_port(self) -> int:
        """The port in use, once started."""
        return self._server.bound_port

    async def start(self) -> None:
        """Listen. Raises ``OSError`` when the address is taken."""
        await self._server.start()

    async def run(self, stop: asyncio.Event) -> None:
        """Listen until ``stop`` is set. For a task group whose other tasks drain meanwhile."""
        await self.start()
        try:
            await stop.wait()
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop listening."""
        await self._server.close()


class AppServer:
    """An ASGI app on uvicorn in the running event loop, without uvicorn's own signal handlers and loop."""

    def __init__(self, app: AsgiApp, *, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._server = _Server(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=CLOSE_S,
            )
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def bound_port(self) -> int:
        """The port in use, once started."""
        return self._port

    async def start(self) -> None:
        """Listen, and return when requests are answered.

        Raises:
            OSError: The address cannot be used.
        """
        # Bound here, because uvicorn ends the whole process when it cannot bind.
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.create_server((self._host, self._port), family=family, backlog=_BACKLOG)
        self._port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve([listener]), name="http")
        await self._server.listening.wait()

    async def close(self) -> None:
        """Accept nothing more, let requests in flight finish, return when all is closed."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task
            self._task = None


def health_app(
    checks: Checks, registry: CollectorRegistry, otherwise: AsgiApp | None = None
) -> AsgiApp:
    """Return an ASGI app that answers ``PATHS`` and hands every other request to ``otherwise`` (404 without)."""

    async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (path := scope["path"]) in PATHS:
            status, media_type, body = _answer(path, checks, registry)
        elif otherwise is not None:
            await otherwise(scope, receive, send)
            return
        else:
            status, media_type, body = 404, _JSON, b'{"status":"not_found"}'
        await _respond(send, status, media_type, body)

    return app


def _answer(path: str, checks: Checks, registry: CollectorRegistry) -> tuple[int, str, bytes]:
    if path == "/livez":
        return 200, _JSON, b'{"status":"alive"}'
    if path == "/metrics":
        return 200, CONTENT_TYPE_LATEST, generate_latest(registry)
    results = dict(checks())
    ready = all(results.values())
    body = msgspec.json.encode({"status": "ready" if ready else "not_ready", "checks": results})
    return 200 if ready else 503, _JSON, body


async def _respond(send: Send, status: int, media_type: str, body: bytes) -> None:
    headers = [
        (b"content-type", media_type.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: ``shared.lifecycle`` owns the signals of the process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
