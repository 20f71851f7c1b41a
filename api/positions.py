"""``Messaging-Cursor``: a reader who knows of a position never gets older data than that.

The log is ahead of PostgreSQL by the persister's lag. Who has just seen an event and asks for history names its cursor;
the read waits until the persister has passed it, at most two seconds, and then is ``unavailable`` rather than old.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import Header

from api.dependencies import Parts
from api.problems import invalid, unavailable
from api.queries import messages as message_queries
from api.queries import threads as thread_queries
from shared.cursors import BEGINNING, decode_cursor
from shared.errors import InvalidCursorError
from shared.identity import ThreadId, UserId

HEADER: Final = "Messaging-Cursor"
WAIT_S: Final = 2.0
_FIRST_POLL_S: Final = 0.01
_LONGEST_POLL_S: Final = 0.1

Position = Annotated[
    str | None,
    Header(
        alias=HEADER,
        max_length=64,
        description="A cursor of the thread: wait (≤ 2 s) until this position can be read, else 503.",
    ),
]


async def wait_for_position(
    parts: Parts, user_id: UserId, position: str | None, thread_id: ThreadId | None = None
) -> None:
    """Return when the position can be read.

    Args:
        parts: Of this process.
        user_id: Who asks: only their own threads are looked at.
        position: The header's value; nothing to wait for without one.
        thread_id: The thread that is read, when the route names one.

    Raises:
        ProblemError: ``invalid``: no cursor of this thread, or of none of the user's; ``unavailable``: not in time.
    """
    if position is None or position == BEGINNING:
        return
    async with parts.connection() as connection:
        mine = [
            ThreadId(row["thread_id"].hex)
            for row in await connection.fetch(thread_queries.THREADS_OF, user_id)
        ]
    # A stranger's thread is none to wait for; the read itself then says not_found.
    if thread_id is not None and thread_id not in mine:
        return
    seq, candidates = _meant(position, [thread_id] if thread_id is not None else mine)
    deadline = asyncio.get_running_loop().time() + WAIT_S
    pause_s = _FIRST_POLL_S
    while await _reached(parts, candidates) < seq:
        if asyncio.get_running_loop().time() + pause_s > deadline:
            raise unavailable("History has not reached this position yet.")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_POLL_S)


def _meant(position: str, threads: Sequence[ThreadId]) -> tuple[int, list[ThreadId]]:
    """Return the seq in the cursor, and the threads whose hash it carries (hardly ever more than one)."""
    seq, meant = 0, []
    for thread_id in threads:
        try:
            seq = decode_cursor(thread_id, position)
        except InvalidCursorError:
            continue
        meant.append(thread_id)
    if not meant:
        raise invalid(f"/{HEADER}", "is no cursor of a thread that is read here")
    return seq, meant


async def _reached(parts: Parts, threads: Sequence[ThreadId]) -> int:
    async with parts.connection() as connection:
        return int(await connection.fetchval(message_queries.TAILS, list(threads)))
