"""Problems: the one shape of every error of the REST interface (RFC 9457), and the pages that explain them.

A handler raises ``ProblemError``; whatever else goes wrong (validation, unknown paths, a lost database, a bug) becomes
one here or in ``api.door``. The codes are the WebSocket's own.
"""

import http
import math
from typing import Any, Final, cast

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from shared.bus import BusError
from shared.database import TRANSIENT_ERRORS
from shared.errors import LilithError
from shared.protocol import HTTP_STATUS, MEANING, RETRYABLE, Detail, ErrorCode, FrameError

PROBLEM_JSON: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1
"""How long a client should wait before it tries again what was unavailable."""

_BODY_MEANING: Final = "The body is not a JSON object."


class ProblemBody(msgspec.Struct, frozen=True):
    """The body of every 4xx and 5xx answer, ``application/problem+json``."""

    type: str
    title: str
    status: int
    detail: str
    code: ErrorCode
    errors: list[Detail]
    trace_id: str


class ProblemError(LilithError):
    """The request is answered with an error. Raise it anywhere below a route."""

    def __init__(
        self,
        code: ErrorCode,
        detail: str = "",
        *,
        errors: list[Detail] | None = None,
        status: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail or MEANING[code])
        self.code = code
        self.detail = detail or MEANING[code]
        self.errors = errors or []
        self.status = HTTP_STATUS[code] if status is None else status
        self.headers = headers or {}


def not_found() -> ProblemError:
    """Return the one answer for whatever the caller may not see: malformed, unknown and foreign look the same."""
    return ProblemError(ErrorCode.NOT_FOUND)


def invalid(path: str, problem: str) -> ProblemError:
    """Return the problem of one field or parameter; ``path`` is a JSON Pointer."""
    return ProblemError(ErrorCode.INVALID, errors=[Detail(path, problem)])


def unavailable(detail: str = "") -> ProblemError:
    """Return the problem of something that will work again soon."""
    return ProblemError(ErrorCode.UNAVAILABLE, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def rate_limited(retry_after_ms: int) -> ProblemError:
    """Return the problem of a caller who has to wait."""
    seconds = max(1, math.ceil(retry_after_ms / 1000))
    return ProblemError(ErrorCode.RATE_LIMITED, headers={"Retry-After": str(seconds)})


def refused(error: FrameError) -> ProblemError:
    """Return the problem of a body that ``shared.protocol`` refused."""
    detail = _BODY_MEANING if error.code is ErrorCode.BAD_FRAME else ""
    return ProblemError(error.code, detail, errors=error.details)


def problem_of(error: Exception) -> ProblemError:
    """Return the problem that an exception means to the client. What nobody foresaw is ``internal``."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, FrameError):
        return refused(error)
    if isinstance(error, RequestValidationError):
        return _of_parameters(error)
    if isinstance(error, HTTPException):
        return _of_routing(error)
    # A statement that PostgreSQL refuses is our bug; one that it could not run will run again.
    if isinstance(error, BusError) or _is_outage(error):
        return unavailable()
    return ProblemError(ErrorCode.INTERNAL)


def problem_response(problem: ProblemError, trace_id: str) -> Response:
    """Return the answer for a problem."""
    headers = dict(problem.headers)
    if problem.status == http.HTTPStatus.UNAUTHORIZED:
        headers.setdefault("WWW-Authenticate", "Bearer")
    if problem.code in RETRYABLE and problem.code is not ErrorCode.INTERNAL:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    body = ProblemBody(
        type=f"/problems/{problem.code}",
        title=title_of(problem.code),
        status=problem.status,
        detail=problem.detail,
        code=problem.code,
        errors=problem.errors,
        trace_id=trace_id,
    )
    return Response(msgspec.json.encode(body), problem.status, headers, PROBLEM_JSON)


def title_of(code: ErrorCode) -> str:
    """Return the code in words."""
    return str(code).replace("_", " ").capitalize()


async def answer_problem(request: Request, error: Exception) -> Response:
    """Answer an expected exception: the handler that the application registers for each kind of them."""
    return problem_response(problem_of(error), trace_id_of(request))


def trace_id_of(request: Request) -> str:
    """Return the id under which the logs know this request; ``api.door`` chose it."""
    return cast("str", request.scope["state"]["trace_id"])


def _of_parameters(error: RequestValidationError) -> ProblemError:
    return ProblemError(ErrorCode.INVALID, errors=[_detail(item) for item in error.errors()])


def _detail(item: dict[str, Any]) -> Detail:
    # The first part says where the parameter stood (query, path, header); its name is enough for a pointer.
    name = "/".join(str(part) for part in item["loc"][1:])
    return Detail(f"/{name}", str(item["msg"]))


def _of_routing(error: HTTPException) -> ProblemError:
    headers = dict(error.headers or {})
    if error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED:
        return ProblemError(ErrorCode.METHOD_NOT_ALLOWED, headers=headers)
    if error.status_code == http.HTTPStatus.NOT_FOUND:
        return not_found()
    return ProblemError(ErrorCode.INTERNAL if error.status_code >= 500 else ErrorCode.INVALID)


def _is_outage(error: Exception) -> bool:
    # asyncpg's base class covers both; a statement that is wrong has a class of its own (42: syntax, access rule).
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        return state[:2] in {"08", "53", "57", "58", "40", "55"} or state in {"25P03", "25P04"}
    return isinstance(error, TRANSIENT_ERRORS)
