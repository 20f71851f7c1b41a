"""The door: what every request passes on its way in and every answer on its way out.

It names the request (``X-Request-ID``, ``traceparent`` or a new id), answers CORS preflights, refuses bodies that are
too large before anybody reads them, turns an unhandled exception into a problem without its stack, adds the security
headers and counts. Plain ASGI, one object per application.
"""

import logging
import re
import time
from typing import Any, Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dependencies import BODY_BYTES_MAX, Parts
from api.problems import ProblemError, problem_of, problem_response
from shared.database import TRANSIENT_ERRORS
from shared.identity import new_id
from shared.protocol import ErrorCode

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")
_PREFLIGHT_MAX_AGE_S: Final = "600"
_METHODS: Final = "GET, POST, PUT, PATCH, DELETE"
_REQUEST_HEADERS: Final = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, Messaging-Cursor, X-Request-ID,"
    " traceparent"
)
_EXPOSED_HEADERS: Final = (
    "ETag, Location, Idempotency-Replayed, Messaging-Cursor, RateLimit, RateLimit-Policy, Retry-After,"
    " X-Request-ID"
)
_SECURITY_HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
    # Pages bring their own, wider policy; an answer of the interface loads nothing at all.
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    # An answer belongs to its token. Static files say otherwise themselves.
    ("Cache-Control", "no-store"),
)
_HSTS: Final = "max-age=31536000; includeSubDomains"
_UNMATCHED: Final = "unmatched"

_log = logging.getLogger(__name__)


class Door:
    """Middleware around the whole application."""

    def __init__(self, app: ASGIApp, parts: Parts) -> None:
        self._app = app
        self._parts = parts
        self._origins = frozenset(parts.settings.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in and its answer out."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        trace_id = _trace_id(headers)
        added = self._headers_for(scope, headers, trace_id)
        scope["state"] = {"parts": self._parts, "trace_id": trace_id, "headers": added}
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(trace_id=trace_id)
        answer = _Answer(send, added)
        started_at = time.perf_counter()
        try:
            early = self._early_answer(scope, headers)
            await (early or self._app)(scope, receive, answer.send)
        except Exception as error:  # The last place where this request can be answered.
            if isinstance(error, TRANSIENT_ERRORS):
                _log.warning("a request met an outage: %r", error)
            else:
                _log.exception("a request failed unexpectedly")
            # Half an answer cannot be taken back: the connection breaks and the client knows.
            if answer.status:
                raise
            problem = problem_response(problem_of(error), trace_id)
            await problem(scope, receive, answer.send)
        finally:
            self._count(scope, answer.status, time.perf_counter() - started_at)

    def _early_answer(self, scope: Scope, headers: Headers) -> Response | None:
        trace_id = scope["state"]["trace_id"]
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            if headers.get("origin") in self._origins:
                return Response(status_code=204)
            refusal = ProblemError(ErrorCode.FORBIDDEN, "This origin may not call the interface.")
            return problem_response(refusal, trace_id)
        length = headers.get("content-length", "0")
        if not length.isdigit() or len(length) > 15 or int(length) > BODY_BYTES_MAX:
            # The body is not read, so the connection cannot be used again.
            refusal = ProblemError(ErrorCode.TOO_LARGE, headers={"Connection": "close"})
            return problem_response(refusal, trace_id)
        return None

    def _headers_for(self, scope: Scope, headers: Headers, trace_id: str) -> list[tuple[str, str]]:
        added = [("X-Request-ID", trace_id), *_SECURITY_HEADERS]
        if scope.get("scheme") == "https":
            added.append(("Strict-Transport-Security", _HSTS))
        if (origin := headers.get("origin")) is not None and origin in self._origins:
            added += [
                ("Access-Control-Allow-Origin", origin),
                ("Access-Control-Expose-Headers", _EXPOSED_HEADERS),
                ("Access-Control-Allow-Methods", _METHODS),
                ("Access-Control-Allow-Headers", _REQUEST_HEADERS),
                ("Access-Control-Max-Age", _PREFLIGHT_MAX_AGE_S),
            ]
        added.append(("Vary", "Origin"))
        return added

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        # The operation, never the path: labels are bounded.
        route: Any = scope.get("route")
        name = getattr(route, "operation_id", None) or _UNMATCHED
        method = scope["method"] if scope["method"] in _METHODS else "other"
        metrics = self._parts.metrics
        metrics.requests.labels(name, method, str(status)).inc()
        metrics.request_seconds.labels(name, method).observe(seconds)


class _Answer:
    """Adds the headers to one answer and remembers its status (0: none was sent yet)."""

    def __init__(self, send: Send, added: list[tuple[str, str]]) -> None:
        self._send = send
        self._added = added
        self.status = 0

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self._added:
                headers.setdefault(name, value)
        await self._send(message)


def _trace_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    if _REQUEST_ID.fullmatch(given):
        return given
    match = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return match[1] if match else new_id()
