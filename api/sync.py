"""``GET /api/sync``: which of a user's threads changed since they were last here, after minutes or after months.

The cursor names a transaction, not a time: rows carry the id of the transaction that changed them last, a read returns
those of the cursor's or a later one, and hands out the oldest transaction that was still running when it began. What
commits late is then told next time: repeats are possible, holes are not. It also names the database's generation; a
cursor of another one says nothing here, and is ``gone``: load everything anew.
"""

import re
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Caller, json_answer, parts_of
from api.openapi import SyncItem, SyncList, described, problems
from api.paging import Paging
from api.positions import Position, wait_for_position
from api.problems import ProblemError, invalid
from api.queries import sync as queries
from shared.cursors import encode_cursor
from shared.errors import InvalidCursorError
from shared.identity import ThreadId
from shared.protocol import UNREAD_MAX, ErrorCode

if TYPE_CHECKING:
    from api.dependencies import Connection

router = APIRouter(tags=["me"])

_CURSOR: Final = re.compile(r"([0-9a-f]{8})-([0-9a-f]{1,16})")
_PAGE_CURSOR: Final = re.compile(
    r"([0-9a-f]{8}-[0-9a-f]{1,16})\.(0|[0-9a-f]{1,16})\.([0-9a-f]{32})"
)
_BEFORE_ALL: Final = "0" * 32


class SyncPosition(NamedTuple):
    """Where a reader is: at a transaction of one generation of the database."""

    generation: str
    transaction: int

    @classmethod
    def decode(cls, cursor: str) -> "SyncPosition":
        """Return the position in a cursor.

        Raises:
            InvalidCursorError: It is none.
        """
        match = _CURSOR.fullmatch(cursor)
        if match is None:
            raise InvalidCursorError(cursor)
        return cls(match[1], int(match[2], 16))

    def encode(self) -> str:
        """Return the cursor, opaque to clients."""
        return f"{self.generation}-{self.transaction:x}"


class _Asked(NamedTuple):
    """What one page begins with. ``since`` 0: everything."""

    cursor: SyncPosition
    since: int
    after_thread: str


@router.get(
    "/sync",
    operation_id="me_sync",
    summary="The threads that changed since a sync cursor",
    responses={
        200: described(
            SyncList,
            "One page, by thread. Keep `cursor` once `next_cursor` is null; every page of one listing has the same.",
        ),
        **problems(ErrorCode.GONE),
    },
)
async def get_sync(
    request: Request,
    identity: Caller,
    page: Paging,
    after: Annotated[
        str | None,
        Query(
            max_length=64,
            description="The last `cursor` or `sync_cursor`; without it all threads. `gone`: load everything anew.",
        ),
    ] = None,
    position: Position = None,
) -> Response:
    """Return which threads moved, were joined, were read elsewhere, or are the caller's no longer."""
    parts = parts_of(request)
    await wait_for_position(parts, identity.user_id, position)
    async with parts.connection() as connection:
        # Before the rows: what commits between the two statements is told again, not forgotten.
        here, newest = await _here(connection)
        asked = _asked(page.cursor, after, here, newest)
        rows = await connection.fetch(
            queries.CHANGED_THREADS,
            identity.user_id,
            str(asked.since) if asked.since else None,
            asked.after_thread,
            UNREAD_MAX,
            page.limit + 1,
        )
    items = [
        SyncItem(
            thread_id=row["thread_id"],
            cursor=encode_cursor(ThreadId(row["thread_id"]), row["last_seq"]),
            unread=row["unread"],
            removed=row["removed"],
        )
        for row in rows[: page.limit]
    ]
    next_cursor = None
    if len(rows) > page.limit:
        next_cursor = f"{asked.cursor.encode()}.{asked.since:x}.{items[-1].thread_id}"
    answer = SyncList(items, next_cursor, asked.cursor.encode())
    return json_answer(msgspec.json.encode(answer))


async def sync_position(connection: "Connection") -> SyncPosition:
    """Return where a reader is who reads everything after this moment."""
    here, _newest = await _here(connection)
    return here


async def _here(connection: "Connection") -> tuple[SyncPosition, int]:
    """Return the present position, and the first transaction id that is not in use yet."""
    row = await connection.fetchrow(queries.POSITION)
    assert row is not None  # noqa: S101 - the statement always returns a row
    return SyncPosition(row["generation"], int(row["xmin"])), int(row["xmax"])


def _asked(page_cursor: str | None, after: str | None, here: SyncPosition, newest: int) -> _Asked:
    if page_cursor is None:
        if after is None:
            return _Asked(here, 0, _BEFORE_ALL)
        return _Asked(here, _transaction(after, "/after", here, newest), _BEFORE_ALL)
    match = _PAGE_CURSOR.fullmatch(page_cursor)
    if match is None:
        raise invalid("/cursor", "is not the next_cursor of a page of this list")
    # The first page's position, for all of its listing: a thread that was shown there may have changed since.
    first = _transaction(match[1], "/cursor", here, newest)
    return _Asked(SyncPosition(here.generation, first), int(match[2], 16), match[3])


def _transaction(cursor: str, path: str, here: SyncPosition, newest: int) -> int:
    """Return the transaction of a cursor of this generation.

    Raises:
        ProblemError: ``invalid``: no sync cursor; ``gone``: of another generation, or of transactions that were lost.
    """
    try:
        there = SyncPosition.decode(cursor)
    except InvalidCursorError as error:
        raise invalid(path, "is no sync cursor") from error
    if there.generation != here.generation or there.transaction > newest:
        detail = "This cursor is of another generation of the database: load all threads."
        raise ProblemError(ErrorCode.GONE, detail)
    return there.transaction
