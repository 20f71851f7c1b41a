"""The opening handshake: who is let in, and the problem document for everybody else. No sockets here.

``websockets`` checks the HTTP and WebSocket rules (request line, header sizes, key, version, Origin list); this module
adds the platform's own and turns every refusal, the library's too, into ``application/problem+json``.
"""

import email.utils
import http
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from typing_extensions import override
from websockets.datastructures import Headers, MultipleValuesError
from websockets.exceptions import NegotiationError
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import LoggerLike, Origin, StatusLike, Subprotocol

from edge.standing import Standing
from shared.auth import Identity, Verifier
from shared.errors import TokenError
from shared.identity import new_id
from shared.protocol import FRAME_BYTES_MAX, MEANING, PATH, SUBPROTOCOL, CloseCode, ErrorCode

_TOKEN_BYTES_MAX: Final = 4096
_NO_HEADERS: Final[Mapping[str, str]] = {}
_CODES: Final = {
    http.HTTPStatus.FORBIDDEN: ErrorCode.FORBIDDEN,
    http.HTTPStatus.METHOD_NOT_ALLOWED: ErrorCode.METHOD_NOT_ALLOWED,
    http.HTTPStatus.REQUEST_URI_TOO_LONG: ErrorCode.TOO_LARGE,
    http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: ErrorCode.TOO_LARGE,
    http.HTTPStatus.INTERNAL_SERVER_ERROR: ErrorCode.INTERNAL,
}
"""Error codes of the library's refusals; what is not named here is ``unsupported``."""


class Refusal(NamedTuple):
    """Why a handshake is not accepted."""

    status: int
    code: ErrorCode
    detail: str
    headers: Mapping[str, str] = _NO_HEADERS


class Problem(msgspec.Struct, frozen=True):
    """An RFC 9457 problem document, in the shape that REST answers with."""

    type: str
    title: str
    status: int
    detail: str
    code: ErrorCode
    errors: list[str]
    trace_id: str


class HandshakeProtocol(ServerProtocol):
    """The library's protocol object, answering refusals with problem documents."""

    @override
    def reject(self, status: StatusLike, text: str) -> Response:
        """Return the problem document for a refusal of the library."""
        code = _CODES.get(http.HTTPStatus(status), ErrorCode.UNSUPPORTED)
        return problem(Refusal(int(status), code, text.strip().splitlines()[0]))


class Rules:
    """What every handshake of this node is checked against."""

    def __init__(self, origins: Sequence[str], *, compression: bool, logger: LoggerLike) -> None:
        # A page in a sandbox or a local file sends "null": nobody can vouch for it, so no setting lets it in.
        self._origins: list[Origin | None] = [Origin(text) for text in origins if text != "null"]
        self._origins.append(None)
        # Without context takeover every message stands alone: frames may be dropped from a queue.
        self._extensions = (
            [ServerPerMessageDeflateFactory(server_no_context_takeover=True)] if compression else []
        )
        self._logger = logger

    def protocol(self) -> HandshakeProtocol:
        """Return the protocol object of a new socket."""
        return HandshakeProtocol(
            origins=self._origins,
            extensions=self._extensions,
            select_subprotocol=_select_subprotocol,
            max_size=FRAME_BYTES_MAX,
            logger=self._logger,
        )


def problem(refusal: Refusal) -> Response:
    """Return the HTTP response that says why."""
    status = http.HTTPStatus(refusal.status)
    body = msgspec.json.encode(
        Problem(
            type=f"/problems/{refusal.code}",
            title=MEANING[refusal.code],
            status=refusal.status,
            detail=refusal.detail,
            code=refusal.code,
            errors=[],
            trace_id=new_id(),
        )
    )
    headers = Headers(
        {
            "Date": email.utils.formatdate(usegmt=True),
            "Connection": "close",
            "Content-Length": str(len(body)),
            "Content-Type": "application/problem+json",
            **refusal.headers,
        }
    )
    return Response(refusal.status, status.phrase, headers, body)


def check_request(request: Request) -> Refusal | None:
    """Return why this request is no handshake of ours, judged by its path and method; None when it may be one."""
    if request.path.partition("?")[0] != PATH:
        return Refusal(404, ErrorCode.NOT_FOUND, f"There is nothing here but {PATH}.")
    if request.method != "GET":
        detail = "A WebSocket handshake is a GET."
        return Refusal(405, ErrorCode.METHOD_NOT_ALLOWED, detail, {"Allow": "GET"})
    if "upgrade" not in request.headers:
        detail = "This address speaks WebSocket only."
        return Refusal(426, ErrorCode.UNSUPPORTED, detail, {"Upgrade": "websocket"})
    return None


def check_token(request: Request, verifier: Verifier) -> Identity | Refusal | None:
    """Return who the ``Authorization`` header names, None without one (a first frame follows), or the refusal."""
    try:
        authorization = request.headers.get("Authorization")
    except MultipleValuesError:
        return _unauthorized("There is more than one Authorization header.")
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or len(token) > _TOKEN_BYTES_MAX:
        return _unauthorized("Give a token as 'Bearer <jwt>', of at most 4 KiB.")
    try:
        return verifier.verify(token.strip())
    except TokenError as error:
        return _unauthorized("The token is expired." if error.expired else "The token is refused.")


def check_standing(identity: Identity, standing: Standing) -> Identity | Refusal:
    """Return the identity, or why its holder may not come in although the token is a good one."""
    code = standing.why_closed(identity)
    if code is None:
        return identity
    if code is CloseCode.BANNED:
        return Refusal(403, ErrorCode.BANNED, MEANING[ErrorCode.BANNED])
    return _unauthorized("The token was revoked.")


def _unauthorized(detail: str) -> Refusal:
    return Refusal(401, ErrorCode.UNAUTHORIZED, detail, {"WWW-Authenticate": "Bearer"})


def _select_subprotocol(
    protocol: ServerProtocol, offered: Sequence[Subprotocol]
) -> Subprotocol | None:
    del protocol
    if not offered:
        return None
    if SUBPROTOCOL not in offered:
        raise NegotiationError(f"this server speaks {SUBPROTOCOL} only")
    return Subprotocol(SUBPROTOCOL)
