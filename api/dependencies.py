"""What routes share: the parts of this process, the caller, the body, and the rules for parameters.

Nothing here is global: ``api.door`` puts the ``Parts`` that the composition root made into every request.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, TypeVar, cast

from fastapi import Depends
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from api.problems import ProblemError, invalid, unavailable
from shared.auth import Identity, Verifier
from shared.bus import Bus
from shared.errors import InvalidIdError, TokenError
from shared.identity import ThreadId, canonical_id
from shared.metrics import ApiMetrics
from shared.outbox import Outbox
from shared.protocol import ErrorCode, parse_object
from shared.rate import Rate
from shared.sending import Sender
from shared.settings import Settings
from shared.standing import Verdict

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolAcquireContext, PoolConnectionProxy

    from api.limits import ReadLimit
    from api.standing import Standing
    from api.users import SeenUsers

    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = PoolConnectionProxy[asyncpg.Record]

BODY_BYTES_MAX: Final = 1024 * 1024
"""1 MiB: the largest request body of the JSON interface."""

POOL_WAIT_S: Final = 3.0
"""With every connection busy for this long, a request is better answered with ``unavailable``."""

OPEN_TO_BANNED: Final = frozenset({"me_get"})
"""Operations that a banned user may ask for."""

_JSON_TYPES: Final = frozenset({"", "application/json", "application/merge-patch+json"})
_Body = TypeVar("_Body")


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that a request may use. Made once, by the composition root."""

    settings: Settings
    pool: "Pool"
    bus: Bus
    sender: Sender
    rate: Rate
    reads: "ReadLimit"
    outbox: Outbox
    verifier: Verifier
    metrics: ApiMetrics
    seen: "SeenUsers"
    standing: "Standing"

    def connection(self) -> "PoolAcquireContext[asyncpg.Record]":
        """Return a connection of the pool, to be used in ``async with``; waiting for one is bounded."""
        return self.pool.acquire(timeout=POOL_WAIT_S)

    def require_fabric(self) -> None:
        """Refuse a change while nothing could be told to anybody.

        Without this, an outage of NATS would fill the outbox with changes whose authors were told "unavailable".

        Raises:
            ProblemError: ``unavailable``.
        """
        if not self.bus.connected:
            raise unavailable()


def parts_of(request: Request) -> Parts:
    """Return the parts of the process that serves this request."""
    return cast("Parts", request.scope["state"]["parts"])


async def caller(request: Request) -> Identity:
    """Return who asks.

    Raises:
        ProblemError: ``unauthorized``: no bearer token, or one that is refused.
    """
    values = request.headers.getlist("authorization")
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token:
        raise ProblemError(ErrorCode.UNAUTHORIZED)
    parts = parts_of(request)
    try:
        identity = parts.verifier.verify(token.strip())
    except TokenError as error:
        challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise ProblemError(ErrorCode.UNAUTHORIZED, headers=challenge) from error
    verdict = await parts.standing.verdict(identity)
    if verdict is Verdict.REVOKED:
        challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise ProblemError(ErrorCode.UNAUTHORIZED, "The token was revoked.", headers=challenge)
    request.scope["state"]["verdict"] = verdict
    await parts.seen.note(identity)
    return identity


Caller = Annotated[Identity, Depends(caller)]
"""What a route takes that needs to know who asks: all of them do."""


async def welcome(request: Request, identity: Caller) -> None:
    """Refuse whoever is banned or deactivated, everywhere but at ``GET /api/me``, which tells them so.

    Raises:
        ProblemError: ``banned``.
    """
    del identity  # Asked for because ``caller`` finds the verdict.
    route = cast("APIRoute", request.scope["route"])
    if verdict_of(request) is not None and route.operation_id not in OPEN_TO_BANNED:
        raise ProblemError(ErrorCode.BANNED)


def verdict_of(request: Request) -> Verdict | None:
    """Return why the caller may not use the interface, None for most; known once ``caller`` has let them pass."""
    return cast("Verdict | None", request.scope["state"]["verdict"])


async def known_parameters(request: Request) -> None:
    """Refuse query parameters that the route does not have, repeated ones, and text that cannot be stored.

    Raises:
        ProblemError: ``invalid``, with the parameter's name.
    """
    given = request.query_params.multi_items()
    if not given:
        return
    known = frozenset(_names(cast("APIRoute", request.scope["route"]).dependant))
    seen: set[str] = set()
    for name, value in given:
        if name not in known:
            raise invalid(f"/{name[:64]}".replace("\0", "�"), "is no parameter of this resource")
        if name in seen:
            raise invalid(f"/{name}", "is given more than once")
        if "\0" in value:
            raise invalid(f"/{name}", "contains NUL")
        seen.add(name)


async def read_body(request: Request, shape: type[_Body]) -> _Body:
    """Return the JSON body as a struct.

    Raises:
        ProblemError: ``too_large``, ``unsupported``.
        FrameError: ``bad_frame`` or ``invalid``.
    """
    return parse_object(await read_bytes(request), shape)


async def read_bytes(request: Request) -> bytes:
    """Return the bytes of a JSON body.

    Raises:
        ProblemError: ``too_large``: over 1 MiB, however it is sent; ``unsupported``: another media type.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in _JSON_TYPES:
        raise ProblemError(ErrorCode.UNSUPPORTED, "Send application/json.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise ProblemError(ErrorCode.TOO_LARGE, headers={"Connection": "close"})
    return bytes(body)


def thread_id_of(text: object) -> ThreadId:
    """Return a thread id in its canonical form.

    Raises:
        ProblemError: ``not_found``: a malformed id is answered like one of a thread that the caller may not see.
    """
    return ThreadId(object_id_of(text))


def object_id_of(text: object) -> str:
    """Return any 32-digit id in its canonical form. Raises like ``thread_id_of``."""
    try:
        return canonical_id(text)
    except InvalidIdError as error:
        raise ProblemError(ErrorCode.NOT_FOUND) from error


def prefix_of(request: Request) -> str:
    """Return the prefix under which the caller reached this resource: ``/api`` or its alias ``/api/v1``."""
    return "/api/v1" if request.url.path.startswith("/api/v1/") else "/api"


def _names(dependant: Dependant) -> Iterator[str]:
    for field in dependant.query_params:
        yield field.alias
    for below in dependant.dependencies:
        yield from _names(below)


def add_header(request: Request, name: str, value: str) -> None:
    """Add a header to the answer to this request, whatever becomes of it; ``api.door`` sends it."""
    request.scope["state"]["headers"].append((name, value))


def json_list(items: str, next_cursor: str | None) -> str:
    """Return the body of a list from items that are JSON text already."""
    cursor = "null" if next_cursor is None else f'"{next_cursor}"'
    return f'{{"items":[{items}],"next_cursor":{cursor}}}'


def json_answer(
    body: str | bytes, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return an answer from JSON text."""
    return Response(body, status, headers, "application/json")
