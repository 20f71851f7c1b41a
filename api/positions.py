"""How far PostgreSQL is behind the log, and waiting for it: at most two seconds, then ``unavailable``, never old data.

``Messaging-Cursor``: who has just seen an event and asks for history names its cursor, and the read waits until the
persister has passed it. A command that changes a message waits for everything that the log holds of the thread: what
it decides must not contradict what was acknowledged before.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import Header

from api.dependencies import Parts
from api.problems import invalid, unavailable
from api.queries import messages as message_queries
from api.queries import threads as thread_queries
from shared.bus import Bus, JetStreamApiError
from shared.bus.errors import MESSAGE_NOT_FOUND
from shared.cursors import BEGINNING, decode_cursor
from shared.errors import InvalidCursorError
from shared.identity import ThreadId, UserId
from shared.subjects import PERSISTER_DURABLE, msg_subject, stream_names, stream_of

HEADER: Final = "Messaging-Cursor"
WAIT_S: Final = 2.0
_FIRST_POLL_S: Final = 0.01
_LONGEST_POLL_S: Final = 0.1
_LOG_TIMEOUT_S: Final = 2.0

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
    await wait_for_seq(parts, candidates, seq)


async def wait_for_seq(parts: Parts, threads: Sequence[ThreadId], seq: int) -> None:
    """Return when everything up to ``seq`` can be read, in the one of these threads that has it.

    Raises:
        ProblemError: ``unavailable``: not within two seconds.
    """
    streams = [stream_of(thread, parts.settings.messaging_streams) for thread in threads]
    waiting = _Waiting()
    while await _reached(parts, threads, streams) < seq:
        await waiting.pause()


async def wait_for_log(parts: Parts, thread_id: ThreadId) -> None:
    """Return when PostgreSQL has everything that the log holds of a thread at this moment.

    Raises:
        ProblemError: ``unavailable``: not within two seconds.
        BusError: The log cannot be asked.
    """
    await wait_for_seq(parts, [thread_id], await log_tail(parts, thread_id))


async def wait_for_every_log(parts: Parts) -> None:
    """Return when PostgreSQL has everything that all streams hold at this moment: what it lacks then is nowhere.

    Raises:
        ProblemError: ``unavailable``: not within two seconds.
        BusError: A stream cannot be asked.
    """
    streams = stream_names(parts.settings.messaging_streams)
    tails = await asyncio.gather(*(stream_tail(parts.bus, stream) for stream in streams))
    waiting = _Waiting()
    while True:
        async with parts.connection() as connection:
            behind = await connection.fetchval(
                message_queries.BEHIND, list(streams), list(tails), PERSISTER_DURABLE
            )
        if not behind:
            return
        await waiting.pause()


async def log_tail(parts: Parts, thread_id: ThreadId) -> int:
    """Return the seq of the last event that the log holds of a thread, 0 for none.

    Asked of the stream's leader: a replica might not have what was acknowledged a moment ago.

    Raises:
        BusError: There is no answer.
    """
    stream = stream_of(thread_id, parts.settings.messaging_streams)
    question = {"last_by_subj": msg_subject(thread_id)}
    try:
        answer = await parts.bus.api(f"STREAM.MSG.GET.{stream}", question, timeout_s=_LOG_TIMEOUT_S)
    except JetStreamApiError as error:
        if error.err_code == MESSAGE_NOT_FOUND:
            return 0
        raise
    return int(answer["message"]["seq"])


async def stream_tail(bus: Bus, stream: str) -> int:
    """Return the seq of the last message in a stream, 0 while it is empty.

    Raises:
        BusError: There is no answer.
    """
    state = await _stream_state(bus, stream)
    # An empty stream has a last seq too (its generation's first one less 1), which no persister ever passes.
    return int(state["last_seq"]) if state["messages"] else 0


async def next_seq(bus: Bus, stream: str) -> int:
    """Return a seq that nothing stored by now has reached: whatever is stored from now on has it, or a higher one.

    Raises:
        BusError: There is no answer.
    """
    return int((await _stream_state(bus, stream))["last_seq"]) + 1


async def _stream_state(bus: Bus, stream: str) -> dict[str, Any]:
    info = await bus.api(f"STREAM.INFO.{stream}", timeout_s=_LOG_TIMEOUT_S)
    state: dict[str, Any] = info["state"]
    return state


class _Waiting:
    """Pauses that grow, until the two seconds are over."""

    def __init__(self) -> None:
        self._deadline = asyncio.get_running_loop().time() + WAIT_S
        self._pause_s = _FIRST_POLL_S

    async def pause(self) -> None:
        if asyncio.get_running_loop().time() + self._pause_s > self._deadline:
            raise unavailable("History has not reached this position yet.")
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, _LONGEST_POLL_S)


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


async def _reached(parts: Parts, threads: Sequence[ThreadId], streams: Sequence[str]) -> int:
    async with parts.connection() as connection:
        reached = await connection.fetchval(
            message_queries.REACHED, list(threads), list(streams), PERSISTER_DURABLE
        )
    return int(reached)
