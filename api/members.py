"""Members of a thread over REST."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Caller, json_answer, json_list, parts_of, thread_id_of
from api.openapi import ParticipantList, described, problems
from api.paging import Paging, decode_key, encode_key
from api.problems import not_found
from api.queries import threads as queries
from shared.protocol import ErrorCode

router = APIRouter(tags=["threads"])


@router.get(
    "/threads/{thread_id}/members",
    operation_id="threads_members",
    summary="The members of a thread, by the time they joined",
    responses={200: described(ParticipantList, "One page."), **problems(ErrorCode.NOT_FOUND)},
)
async def list_members(
    request: Request, identity: Caller, page: Paging, thread_id: str
) -> Response:
    """Return one page of a thread's members, for a member."""
    asked = thread_id_of(thread_id)
    joined_at, name = (None, None) if page.cursor is None else decode_key(page.cursor)
    async with parts_of(request).connection() as connection:
        rows = await connection.fetch(
            queries.MEMBERS, asked, identity.user_id, joined_at, name, page.limit + 1
        )
        # Past the last member there is an empty page; for a stranger there is nothing at all.
        if not rows and not await connection.fetchrow(queries.MEMBERSHIP, asked, identity.user_id):
            raise not_found()
    items = ",".join(row["object"] for row in rows[: page.limit])
    next_cursor = None
    if len(rows) > page.limit:
        last = rows[page.limit - 1]
        next_cursor = encode_key(last["joined_at"], last["user_id"])
    return json_answer(json_list(items, next_cursor))
