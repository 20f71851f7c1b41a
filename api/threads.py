"""Threads over REST: list, read, make, change, archive, and their members."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Final, NamedTuple

from fastapi import APIRouter, Depends, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import (
    Caller,
    Parts,
    json_answer,
    json_list,
    parts_of,
    prefix_of,
    read_body,
    read_bytes,
    thread_id_of,
)
from api.idempotency import Claim, KeyHeader, Replay, claim
from api.limits import counted
from api.openapi import ThreadList, ThreadWithMessages, accepted, described, problems
from api.paging import Paging, decode_key, encode_key
from api.positions import Position, wait_for_position
from api.problems import ProblemError, invalid
from api.queries import messages as message_queries
from api.queries import threads as queries
from api.sync import SyncPosition, sync_position
from api.thread_bodies import CreateThread, PatchThread, ReplaceThread, check_metadata
from api.thread_changes import (
    NewThread,
    ThreadState,
    ThreadText,
    change_thread,
    insert_thread,
    lock_thread,
    read_thread,
    reopen_direct,
    settle,
)
from shared.auth import Identity
from shared.cursors import cursor_suffix
from shared.errors import InvalidCursorError, InvalidIdError
from shared.identity import ThreadId, canonical_id, new_id
from shared.protocol import UNREAD_MAX, ErrorCode, Thread, parse_object

LATEST_MESSAGES: Final = 50
_QUERY_CHARS_MAX: Final = 200
CHANGE_PROBLEMS: Final = (
    ErrorCode.BAD_FRAME,
    ErrorCode.FORBIDDEN,
    ErrorCode.NOT_FOUND,
    ErrorCode.UNSUPPORTED,
)

router = APIRouter(tags=["threads"])

IfMatch = Annotated[
    str | None,
    Header(alias="If-Match", description="The ETag that was read: refuse (412) if it has changed."),
]


class Filters(NamedTuple):
    """Which threads a list shows."""

    archived: bool
    unread: bool | None
    participant: str | None
    text: str | None


class _PageStart(NamedTuple):
    """What a page begins behind, and the sync cursor of its listing."""

    at: datetime
    thread_id: str
    sync_cursor: str


def filters_of(
    *,
    archived: Annotated[bool, Query(description="Archived threads instead of the others.")] = False,
    unread: Annotated[
        bool | None, Query(description="Only threads with (or without) unread messages.")
    ] = None,
    participant: Annotated[str | None, Query(description="Only threads with this member.")] = None,
    q: Annotated[
        str | None,
        Query(
            max_length=_QUERY_CHARS_MAX,
            description="Only threads whose title, or a member's name or id, contains this.",
        ),
    ] = None,
) -> Filters:
    """Return the filters of the list of threads."""
    return Filters(archived, unread, participant, q.lower() if q else None)


@router.get(
    "/threads",
    operation_id="threads_list",
    summary="The caller's threads, by last activity",
    responses={
        200: described(ThreadList, "One page. `sync_cursor` is for `GET /api/sync`."),
        **problems(),
    },
)
async def list_threads(
    request: Request,
    identity: Caller,
    page: Paging,
    filters: Annotated[Filters, Depends(filters_of)],
    position: Position = None,
) -> Response:
    """Return one page of the threads that the caller is a member of."""
    parts = parts_of(request)
    await wait_for_position(parts, identity.user_id, position)
    before = None if page.cursor is None else _thread_key(page.cursor)
    async with parts.connection() as connection:
        # Before the rows, and of the first page for all: whatever changes meanwhile, the sync cursor is behind it.
        sync_cursor = before.sync_cursor if before else (await sync_position(connection)).encode()
        rows = await connection.fetch(
            queries.PAGE,
            identity.user_id,
            filters.archived,
            filters.participant,
            filters.text,
            filters.unread,
            before.at if before else None,
            before.thread_id if before else None,
            page.limit + 1,
        )
        shown = [ThreadId(row["thread_id"].hex) for row in rows[: page.limit]]
        objects = await connection.fetchval(
            queries.OBJECTS,
            identity.user_id,
            shown,
            [cursor_suffix(one) for one in shown],
            UNREAD_MAX,
        )
    next_cursor = None
    if len(rows) > page.limit:
        next_cursor = encode_key(rows[page.limit - 1]["active_at"], f"{shown[-1]}_{sync_cursor}")
    listed = json_list(objects or "", next_cursor)
    return json_answer(f'{listed[:-1]},"sync_cursor":"{sync_cursor}"}}')


@router.post(
    "/threads",
    operation_id="threads_create",
    summary="Make a thread, or return the direct thread of the pair",
    status_code=201,
    responses={
        201: described(Thread, "The new thread."),
        200: described(Thread, "The direct thread that the pair had already, un-archived."),
        **problems(
            ErrorCode.BAD_FRAME,
            ErrorCode.UNSUPPORTED,
            ErrorCode.CONFLICT,
            ErrorCode.LIMIT_REACHED,
        ),
    },
    openapi_extra=accepted(CreateThread),
    dependencies=[Depends(counted)],
)
async def create_thread(
    request: Request, identity: Caller, idempotency_key: KeyHeader = None
) -> Response:
    """Make a thread with the caller as its owner; answered when every edge knows it."""
    parts = parts_of(request)
    body = await read_bytes(request)
    new = parse_object(body, CreateThread).checked(identity.user_id)
    parts.require_fabric()
    claimed = await claim(parts, identity.user_id, "threads_create", idempotency_key, body)
    if isinstance(claimed, Replay):
        await settle(parts, ThreadId(claimed.location.rpartition("/")[2]))
        return claimed.answer()
    try:
        thread_id, status, thread = await _create(parts, new, claimed, prefix_of(request))
        await settle(parts, thread_id)
    except BaseException:
        if claimed is not None:
            await claimed.release(parts)
        raise
    return _thread_answer(thread, status, f"{prefix_of(request)}/threads/{thread_id}")


@router.get(
    "/threads/{thread_id}",
    operation_id="threads_get",
    summary="One thread and its latest messages",
    responses={
        200: described(ThreadWithMessages, "The thread."),
        **problems(ErrorCode.NOT_FOUND),
    },
)
async def get_thread(
    request: Request, identity: Caller, thread_id: str, position: Position = None
) -> Response:
    """Return the thread as the caller sees it, with its latest 50 messages, oldest first."""
    parts = parts_of(request)
    asked = thread_id_of(thread_id)
    await wait_for_position(parts, identity.user_id, position, asked)
    async with parts.connection() as connection:
        thread = await read_thread(connection, asked, identity.user_id)
        messages = await connection.fetchval(
            message_queries.LATEST,
            asked,
            identity.user_id,
            cursor_suffix(asked),
            LATEST_MESSAGES,
        )
    body = f'{thread.body[:-1]},"messages":[{messages}]}}'
    return json_answer(body, headers={"ETag": _etag(thread.revision)})


@router.put(
    "/threads/{thread_id}",
    operation_id="threads_replace",
    summary="Replace title, metadata and archived",
    responses={
        200: described(Thread, "The thread as it is now."),
        **problems(*CHANGE_PROBLEMS, has_tags=True),
    },
    openapi_extra=accepted(ReplaceThread),
    dependencies=[Depends(counted)],
)
async def replace_thread(
    request: Request, identity: Caller, thread_id: str, if_match: IfMatch = None
) -> Response:
    """Set everything that can be changed; what the body leaves out gets its default."""
    body = await read_body(request, ReplaceThread)
    thread = await _change(request, identity, thread_id, if_match, lambda _old: body.state())
    return _thread_answer(thread)


@router.patch(
    "/threads/{thread_id}",
    operation_id="threads_update",
    summary="Change title, metadata or archived",
    responses={
        200: described(Thread, "The thread as it is now."),
        **problems(*CHANGE_PROBLEMS, has_tags=True),
    },
    openapi_extra=accepted(PatchThread, "application/merge-patch+json"),
    dependencies=[Depends(counted)],
)
async def update_thread(
    request: Request, identity: Caller, thread_id: str, if_match: IfMatch = None
) -> Response:
    """Change what the body names, by JSON Merge Patch (RFC 7396): null gives a field its default."""
    patch = await read_body(request, PatchThread)

    thread = await _change(request, identity, thread_id, if_match, patch.applied_to)
    return _thread_answer(thread)


@router.delete(
    "/threads/{thread_id}",
    operation_id="threads_archive",
    summary="Archive the thread for all",
    status_code=204,
    responses={
        204: {"description": "It is archived."},
        **problems(*CHANGE_PROBLEMS, has_tags=True),
    },
    dependencies=[Depends(counted)],
)
async def archive_thread(
    request: Request, identity: Caller, thread_id: str, if_match: IfMatch = None
) -> Response:
    """Archive: nothing can be sent any more, history stays readable."""
    await _change(request, identity, thread_id, if_match, lambda old: old._replace(archived=True))
    return Response(status_code=204)


async def _create(
    parts: Parts, new: NewThread, claimed: Claim | None, prefix: str
) -> tuple[ThreadId, int, ThreadText]:
    thread_id, status = ThreadId(new_id()), 201
    async with parts.connection() as connection, connection.transaction():
        if not await insert_thread(connection, thread_id, new):
            thread_id, status = await reopen_direct(connection, new), 200
        thread = await read_thread(connection, thread_id, new.owner_id)
        if claimed is not None:
            location = f"{prefix}/threads/{thread_id}"
            await claimed.record(connection, status, location, thread.body.encode())
    return thread_id, status, thread


async def _change(
    request: Request,
    identity: Identity,
    thread_id: str,
    if_match: str | None,
    wanted: Callable[[ThreadState], ThreadState],
) -> ThreadText:
    parts = parts_of(request)
    asked = thread_id_of(thread_id)
    parts.require_fabric()
    async with parts.connection() as connection, connection.transaction():
        locked = await lock_thread(connection, asked, identity.user_id)
        _check_match(if_match, locked.revision)
        state = wanted(locked.state)
        check_metadata(state.metadata)
        await change_thread(connection, asked, locked, state, by=identity.user_id)
        thread = await read_thread(connection, asked, identity.user_id)
    await settle(parts, asked)
    return thread


def _check_match(if_match: str | None, revision: int) -> None:
    if if_match is None:
        return
    tags = [tag.strip() for tag in if_match.split(",")]
    # Compared strongly, as RFC 9110 wants it: a weak tag matches nothing.
    if "*" not in tags and _etag(revision) not in tags:
        raise ProblemError(
            ErrorCode.CONFLICT, "The thread has changed since it was read.", status=412
        )


def _etag(revision: int) -> str:
    return f'"{revision}"'


def _thread_key(cursor: str) -> _PageStart:
    at, name = decode_key(cursor)
    thread_id, _, sync_cursor = name.partition("_")
    try:
        return _PageStart(at, canonical_id(thread_id), SyncPosition.decode(sync_cursor).encode())
    except (InvalidIdError, InvalidCursorError) as error:
        raise invalid("/cursor", "is not the next_cursor of a page of this list") from error


def _thread_answer(thread: ThreadText, status: int = 200, location: str = "") -> Response:
    headers = {"ETag": _etag(thread.revision)}
    if location:
        headers["Location"] = location
    return json_answer(thread.body, status, headers)
