"""``Idempotency-Key``: a POST that is sent again gets the answer of the first one, and nothing happens twice.

The answer is recorded in the transaction of the change itself, so a crash leaves both or neither. A key belongs to one
user and one route and is kept for a day. Messages need none: their id follows from what the client sends.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

from fastapi import Header
from starlette.responses import Response

from api.dependencies import Parts, json_answer
from api.problems import RETRY_AFTER_S, ProblemError, invalid
from api.queries import idempotency as queries
from shared.identity import UserId
from shared.protocol import ErrorCode

if TYPE_CHECKING:
    from api.dependencies import Connection

HEADER: Final = "Idempotency-Key"
REPLAYED_HEADER: Final = "Idempotency-Replayed"
KEPT_S: Final = 86_400.0
ABANDONED_S: Final = 60.0
"""A first request that has not answered for this long belongs to a process that died; nothing of it was committed."""

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")

KeyHeader = Annotated[
    str | None,
    Header(
        alias=HEADER,
        description="Any text of 1 to 255 visible characters. The same key gets the same answer for 24 hours.",
    ),
]


class Replay(NamedTuple):
    """The recorded answer of an earlier request with the same key."""

    status: int
    location: str
    body: bytes

    def answer(self) -> Response:
        """Return it again, and say so."""
        headers = {"Location": self.location, REPLAYED_HEADER: "true"}
        return json_answer(self.body, self.status, headers)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to answer the first request of a key. Ends with ``record`` or ``release``."""

    user_id: UserId
    route: str
    key: str

    async def record(
        self, connection: "Connection", status: int, location: str, body: bytes
    ) -> None:
        """Record the answer, in the transaction of the change."""
        await connection.execute(
            queries.RECORD, self.user_id, self.route, self.key, status, location, body
        )

    async def release(self, parts: Parts) -> None:
        """Give the key back unless an answer was recorded: the request failed and may be sent again."""
        async with parts.connection() as connection:
            await connection.execute(queries.RELEASE, self.user_id, self.route, self.key)


async def claim(
    parts: Parts, user_id: UserId, route: str, key: str | None, body: bytes
) -> Claim | Replay | None:
    """Return the right to run a request, the answer it had before, or ``None`` for a request without key.

    Raises:
        ProblemError: ``invalid``: no possible key; ``conflict`` 422: used with another body; ``conflict`` 409: the
            first request is still running.
    """
    if key is None:
        return None
    if _KEY.fullmatch(key) is None:
        raise invalid(f"/{HEADER}", "must be 1 to 255 visible ASCII characters")
    digest = hashlib.sha256(body).digest()
    async with parts.connection() as connection:
        claimed = await connection.fetchval(
            queries.CLAIM, user_id, route, key, digest, KEPT_S, ABANDONED_S
        )
        if claimed:
            return Claim(user_id, route, key)
        row = await connection.fetchrow(queries.READ, user_id, route, key)
    if row is not None and row["body_digest"] != digest:
        detail = f"This {HEADER} was used before with another body."
        raise ProblemError(ErrorCode.CONFLICT, detail, status=422)
    if row is None or row["status"] is None:
        # No row any more: the first request has just failed. Both are over in a moment.
        detail = f"The first request with this {HEADER} is still running."
        raise ProblemError(ErrorCode.CONFLICT, detail, headers={"Retry-After": str(RETRY_AFTER_S)})
    return Replay(row["status"], row["location"], row["response"])
