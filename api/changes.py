"""``GET /api/threads/{id}/changes``: everything that changed in a thread since a position, as it is now.

For who was away longer than the log remembers, or missed more than a subscription replays. Present state, not history:
a message edited five times is one frame, a deleted one keeps its place and says so.
"""

from typing import Annotated, Final

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Caller, Parts, json_answer, parts_of, thread_id_of
from api.openapi import ChangeList, described, problems
from api.paging import Paging
from api.positions import Position, log_tail, wait_for_position, wait_for_seq
from api.problems import ProblemError, invalid, not_found
from api.queries import changes as queries
from api.queries import threads as thread_queries
from shared.cursors import BEGINNING, cursor_suffix, decode_cursor
from shared.errors import InvalidCursorError
from shared.identity import ThreadId
from shared.protocol import ErrorCode

router = APIRouter(tags=["threads"])

_CURSOR_CHARS_MAX: Final = 64


@router.get(
    "/threads/{thread_id}/changes",
    operation_id="threads_changes",
    summary="What changed in a thread since a position",
    responses={
        200: described(
            ChangeList,
            "One page of frames in the order of the log, as they are now; merge them by `message_id`. "
            "`cursor` is where the thread ends: subscribe with it once `next_cursor` is null.",
        ),
        **problems(ErrorCode.NOT_FOUND),
    },
)
async def get_changes(
    request: Request,
    identity: Caller,
    page: Paging,
    *,
    thread_id: str,
    after: Annotated[
        str,
        Query(
            max_length=_CURSOR_CHARS_MAX,
            description='A cursor of the thread: only what changed after it. `"0"`: everything.',
        ),
    ] = BEGINNING,
    position: Position = None,
) -> Response:
    """Return what is different for the caller, who never gets a part: what the log has is waited for."""
    parts = parts_of(request)
    asked = thread_id_of(thread_id)
    async with parts.connection() as connection:
        if not await connection.fetchrow(thread_queries.MEMBERSHIP, asked, identity.user_id):
            raise not_found()
    # A page begins at the position of the last frame of the one before: what changed again meanwhile moved behind it.
    path, cursor = ("/after", after) if page.cursor is None else ("/cursor", page.cursor)
    since = _seq_of(asked, path, cursor)
    await wait_for_position(parts, identity.user_id, position, asked)
    await _wait_until_there(parts, asked, path, since)
    async with parts.connection() as connection:
        body = await connection.fetchval(
            queries.CHANGES, asked, identity.user_id, cursor_suffix(asked), since, page.limit
        )
    if body is None:
        raise not_found()
    return json_answer(body)


def _seq_of(thread_id: ThreadId, path: str, cursor: str) -> int:
    try:
        return decode_cursor(thread_id, cursor)
    except InvalidCursorError as error:
        raise invalid(path, "is no cursor of this thread") from error


async def _wait_until_there(parts: Parts, thread_id: ThreadId, path: str, seq: int) -> None:
    """Return when PostgreSQL has reached a position that the caller knows of.

    Raises:
        ProblemError: ``unavailable``: not in time; ``invalid``: the log has not reached it either.
    """
    try:
        await wait_for_seq(parts, [thread_id], seq)
    except ProblemError as error:
        if await log_tail(parts, thread_id) < seq:
            raise invalid(path, "is beyond the end of this thread") from error
        raise
