"""What administrators do over REST: ban a user, and lift a ban. Everything they do is in the audit log."""

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Caller, Parts, json_answer, parts_of, read_bytes
from api.limits import counted
from api.openapi import Ban, accepted, described, problems
from api.problems import ProblemError, invalid, not_found
from api.queries import standing as queries
from api.standing import record
from api.thread_changes import settle
from shared.errors import InvalidIdError
from shared.events import timestamp
from shared.identity import UserId, user_id
from shared.protocol import ErrorCode, parse_object
from shared.standing import FOREVER

ADMIN_ROLE: Final = "admin"
REASON_CHARS_MAX: Final = 500
_FOREVER: Final = datetime.fromisoformat(FOREVER)

router = APIRouter(tags=["admin"])


class SetBan(msgspec.Struct, frozen=True):
    """A ban: until when (null: for ever), and why. The reason is for administrators; the user is not told."""

    until: str | None = None
    reason: Annotated[str, msgspec.Meta(max_length=REASON_CHARS_MAX)] | None = None

    def end(self, now: datetime) -> datetime:
        """Return when the ban ends.

        Raises:
            ProblemError: ``invalid``: no time with its zone, or one that is over.
        """
        if self.until is None:
            return _FOREVER
        try:
            until: datetime = msgspec.convert(
                self.until, Annotated[datetime, msgspec.Meta(tz=True)]
            )
        except msgspec.ValidationError as error:
            raise invalid("/until", "must be a time in RFC 3339, with its zone") from error
        if until <= now:
            raise invalid("/until", "must be in the future; DELETE lifts a ban")
        return min(until.astimezone(UTC), _FOREVER)


async def administrator(identity: Caller) -> None:
    """Let administrators pass.

    Raises:
        ProblemError: ``forbidden``.
    """
    if identity.role != ADMIN_ROLE:
        raise ProblemError(ErrorCode.FORBIDDEN)


_CHECKS: Final = [Depends(administrator)]
_COUNTED: Final = [Depends(administrator), Depends(counted)]


@router.put(
    "/admin/bans/{user_id}",
    operation_id="bans_set",
    summary="Ban a user: every open socket is closed, nothing is accepted any more",
    responses={
        200: described(Ban, "The ban as it is now."),
        **problems(
            ErrorCode.FORBIDDEN, ErrorCode.NOT_FOUND, ErrorCode.BAD_FRAME, ErrorCode.UNSUPPORTED
        ),
    },
    openapi_extra=accepted(SetBan, required=False),
    dependencies=_COUNTED,
)  # fmt: skip
async def set_ban(request: Request, identity: Caller, user_id: str) -> Response:
    """Ban, or replace a ban; answered when it is in force."""
    parts, target = parts_of(request), user_of(user_id)
    wanted = parse_object(await read_bytes(request) or b"{}", SetBan)
    until = wanted.end(datetime.now(UTC))
    parts.require_fabric()
    async with parts.connection() as connection, connection.transaction():
        await connection.execute(queries.BAN, target, until, wanted.reason, identity.user_id)
        await record(
            connection,
            target,
            actor_id=identity.user_id,
            action="user.ban",
            details={"until": _until(until), "reason": wanted.reason},
        )
    await settle(parts, target)
    return json_answer(await _ban(parts, target))


@router.get(
    "/admin/bans/{user_id}",
    operation_id="bans_get",
    summary="The ban of a user",
    responses={200: described(Ban, "The ban."), **problems(ErrorCode.FORBIDDEN, ErrorCode.NOT_FOUND)},
    dependencies=_CHECKS,
)  # fmt: skip
async def get_ban(request: Request, user_id: str) -> Response:
    """Return the ban; a user without one is ``not_found``."""
    return json_answer(await _ban(parts_of(request), user_of(user_id)))


@router.delete(
    "/admin/bans/{user_id}",
    operation_id="bans_lift",
    summary="Lift the ban of a user",
    status_code=204,
    responses={204: {"description": "The user is not banned."}, **problems(ErrorCode.FORBIDDEN, ErrorCode.NOT_FOUND)},
    dependencies=_COUNTED,
)  # fmt: skip
async def lift_ban(request: Request, identity: Caller, user_id: str) -> Response:
    """Lift the ban; without one nothing changes."""
    parts, target = parts_of(request), user_of(user_id)
    parts.require_fabric()
    async with parts.connection() as connection, connection.transaction():
        if await connection.fetchval(queries.UNBAN, target) is not None:
            await record(
                connection, target, actor_id=identity.user_id, action="user.unban", details={}
            )
    await settle(parts, target)
    return Response(status_code=204)


def user_of(text: str) -> UserId:
    """Return a user id of a path.

    Raises:
        ProblemError: ``not_found``: nobody can have this id.
    """
    try:
        return user_id(text)
    except InvalidIdError as error:
        raise not_found() from error


async def _ban(parts: Parts, target: UserId) -> bytes:
    async with parts.connection() as connection:
        row = await connection.fetchrow(queries.ACTIVE_BAN, target)
    if row is None:
        raise not_found()
    ban = Ban(
        user_id=target,
        until=_until(row["banned_until"]),
        reason=row["reason"],
        banned_at=timestamp(row["banned_at"]),
        banned_by=row["banned_by"],
    )
    return msgspec.json.encode(ban)


def _until(moment: datetime) -> str | None:
    return None if moment == _FOREVER else timestamp(moment)
