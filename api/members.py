"""Members of a thread over REST: pages of them, adding, changing a role, removing, leaving."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import (
    Caller,
    json_answer,
    json_list,
    parts_of,
    prefix_of,
    read_bytes,
    thread_id_of,
)
from api.idempotency import KeyHeader, Replay, claim
from api.limits import counted
from api.member_changes import lock_members, put_member, remove_member
from api.openapi import ParticipantList, accepted, described, problems
from api.paging import Paging, decode_key, encode_key
from api.positions import Position, wait_for_position
from api.problems import not_found
from api.queries import members as queries
from api.queries import threads as thread_queries
from api.thread_bodies import AddMember
from api.thread_changes import settle
from shared.errors import InvalidIdError
from shared.identity import UserId, user_id
from shared.protocol import ErrorCode, Participant, parse_object

router = APIRouter(tags=["threads"])


@router.get(
    "/threads/{thread_id}/members",
    operation_id="threads_members",
    summary="The members of a thread, by the time they joined",
    responses={200: described(ParticipantList, "One page."), **problems(ErrorCode.NOT_FOUND)},
)
async def list_members(
    request: Request, identity: Caller, page: Paging, thread_id: str, position: Position = None
) -> Response:
    """Return one page of a thread's members, for a member."""
    parts = parts_of(request)
    asked = thread_id_of(thread_id)
    joined_at, name = (None, None) if page.cursor is None else decode_key(page.cursor)
    await wait_for_position(parts, identity.user_id, position, asked)
    async with parts.connection() as connection:
        rows = await connection.fetch(
            queries.MEMBERS, asked, identity.user_id, joined_at, name, page.limit + 1
        )
        # Past the last member there is an empty page; for a stranger there is nothing at all.
        if not rows and not await connection.fetchrow(
            thread_queries.MEMBERSHIP, asked, identity.user_id
        ):
            raise not_found()
    items = ",".join(row["object"] for row in rows[: page.limit])
    next_cursor = None
    if len(rows) > page.limit:
        last = rows[page.limit - 1]
        next_cursor = encode_key(last["joined_at"], last["user_id"])
    return json_answer(json_list(items, next_cursor))


@router.post(
    "/threads/{thread_id}/members",
    operation_id="members_add",
    summary="Add a member, give one another role, or hand the thread over",
    status_code=201,
    responses={
        201: described(Participant, "They joined."),
        200: described(Participant, "They were a member already, and have this role now."),
        **problems(
            ErrorCode.BAD_FRAME,
            ErrorCode.FORBIDDEN,
            ErrorCode.NOT_FOUND,
            ErrorCode.CONFLICT,
            ErrorCode.UNSUPPORTED,
            ErrorCode.LIMIT_REACHED,
        ),
    },
    openapi_extra=accepted(AddMember),
    dependencies=[Depends(counted)],
)
async def add_member(
    request: Request, identity: Caller, thread_id: str, idempotency_key: KeyHeader = None
) -> Response:
    """Make somebody a member: owner and admins may, and only the owner makes admins or hands the thread over."""
    parts = parts_of(request)
    body = await read_bytes(request)
    wanted = parse_object(body, AddMember)
    whom = wanted.checked()
    asked = thread_id_of(thread_id)
    parts.require_fabric()
    route = f"members_add {asked}"
    claimed = await claim(parts, identity.user_id, route, idempotency_key, body)
    if isinstance(claimed, Replay):
        await settle(parts, asked)
        return claimed.answer()
    location = f"{prefix_of(request)}/threads/{asked}/members/{whom}"
    try:
        async with parts.connection() as connection, connection.transaction():
            locked = await lock_members(connection, asked, identity.user_id)
            joined = await put_member(parts, connection, locked, whom, wanted.role)
            participant = await connection.fetchval(queries.PARTICIPANT, asked, whom)
            status = 201 if joined else 200
            if claimed is not None:
                await claimed.record(connection, status, location, participant.encode())
        await settle(parts, asked)
    except BaseException:
        if claimed is not None:
            await claimed.release(parts)
        raise
    return json_answer(participant, status, {"Location": location})


@router.delete(
    "/threads/{thread_id}/members/{user_id}",
    operation_id="members_remove",
    summary="Remove a member, or leave",
    status_code=204,
    responses={
        204: {"description": "They are no member any more."},
        **problems(ErrorCode.FORBIDDEN, ErrorCode.NOT_FOUND, ErrorCode.CONFLICT),
    },
    dependencies=[Depends(counted)],
)
async def delete_member(
    request: Request,
    identity: Caller,
    thread_id: str,
    member: Annotated[str, Path(alias="user_id", description="Who; oneself: leave.")],
) -> Response:
    """End a membership. The owner leaves only after handing the thread over: `conflict`."""
    parts = parts_of(request)
    asked = thread_id_of(thread_id)
    parts.require_fabric()
    async with parts.connection() as connection, connection.transaction():
        locked = await lock_members(connection, asked, identity.user_id)
        await remove_member(connection, locked, _user(member))
    await settle(parts, asked)
    return Response(status_code=204)


def _user(text: str) -> UserId:
    try:
        return user_id(text)
    except InvalidIdError as error:
        raise not_found() from error
