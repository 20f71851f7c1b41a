"""What an edge reads of the log: tails, pages of one thread, and how far back a stream goes. Direct gets, no consumer.

A direct get is answered by any replica, which may lag some milliseconds behind the leader. Whoever knows that an event
exists reads again until it is there.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from shared.bus import Bus, BusDisconnectedError, BusError, JetStreamApiError, Page
from shared.bus.errors import MESSAGE_NOT_FOUND
from shared.identity import ThreadId
from shared.provision.streams import GENERATION_BITS, first_seq_of
from shared.subjects import msg_subject, stream_of, thread_of

PAGE_EVENTS: Final = 500
PAGE_BYTES: Final = 512 * 1024
CLOCKS_S: Final = 2.0
"""How far the clocks of the api, which makes thread ids, and of NATS may be apart."""


class Bounds(NamedTuple):
    """What a stream holds. ``first_at`` is the Unix time of its oldest message, None while it is empty."""

    first_seq: int
    last_seq: int
    first_at: float | None

    @property
    def generation(self) -> int:
        """In which of its lives the stream is."""
        return generation_of(self.first_seq)

    def hold_everything_after(self, position: int, thread_id: ThreadId) -> bool:
        """Return whether nothing that was ever stored of the thread after ``position`` has left the stream."""
        if position >= self.first_seq - 1 or self.first_seq <= first_seq_of(1):
            return True
        return self.first_at is not None and _made_at(thread_id) >= self.first_at + CLOCKS_S


class ThreadLog:
    """The message streams, as far as an edge reads them."""

    def __init__(self, bus: Bus, *, streams: int) -> None:
        self._bus = bus
        self._streams = streams
        self._asked: dict[str, asyncio.Future[Bounds]] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def stream_of(self, thread_id: ThreadId) -> str:
        """Return the stream that holds the thread."""
        return stream_of(thread_id, self._streams)

    async def tail(self, thread_id: ThreadId) -> int:
        """Return the seq of the thread's newest event, 0 when the log has none.

        Raises:
            BusError: Not at the moment.
        """
        message = await self._bus.get_last(self.stream_of(thread_id), msg_subject(thread_id))
        return 0 if message is None else message.seq

    async def tail_of_leader(self, thread_id: ThreadId) -> int:
        """Do the same, asking the stream's leader, which never lags.

        Raises:
            BusError: Not at the moment.
        """
        query = {"last_by_subj": msg_subject(thread_id)}
        try:
            answer = await self._bus.api(f"STREAM.MSG.GET.{self.stream_of(thread_id)}", query)
        except JetStreamApiError as error:
            if error.err_code == MESSAGE_NOT_FOUND:
                return 0
            raise
        return int(answer["message"]["seq"])

    async def tails(self, stream: str, thread_ids: Sequence[ThreadId]) -> dict[ThreadId, int]:
        """Return the newest seq of those threads of one stream that have an event in the log.

        Raises:
            BusError: Not at the moment.
        """
        messages = await self._bus.get_last_many(stream, list(map(msg_subject, thread_ids)))
        return {thread_of(message.subject): message.seq for message in messages}

    async def holds(self, thread_id: ThreadId, seq: int) -> bool:
        """Return whether there is an event of the thread at ``seq``; the stream's leader decides.

        Raises:
            BusError: Not at the moment.
        """
        message = await self._bus.get_seq(self.stream_of(thread_id), seq)
        return message is not None and message.subject == msg_subject(thread_id)

    async def page(
        self, thread_id: ThreadId, *, from_seq: int, events_max: int = PAGE_EVENTS
    ) -> Page:
        """Return the next events of the thread, as many as a page takes.

        Raises:
            BusError: Not at the moment.
        """
        return await self._bus.get_range(
            self.stream_of(thread_id),
            msg_subject(thread_id),
            from_seq=from_seq,
            max_messages=events_max,
            max_bytes=PAGE_BYTES,
        )

    async def bounds(self, stream: str) -> Bounds:
        """Return what the stream holds, as its leader says after this call. Concurrent calls share one request.

        Raises:
            BusError: Not at the moment.
        """
        waiting = self._asked.get(stream)
        if waiting is not None:
            return await asyncio.shield(waiting)
        answer: asyncio.Future[Bounds] = asyncio.get_running_loop().create_future()
        self._asked[stream] = answer
        try:
            # An answer that is under way may be older than this question: the next request is for whoever came since.
            async with self._turns[stream]:
                del self._asked[stream]
                bounds = _bounds(await self._bus.api(f"STREAM.INFO.{stream}"))
        except BusError as error:
            answer.set_exception(error)
            answer.exception()  # Marks it as seen: often nobody else waits.
            raise
        except BaseException:
            if self._asked.get(stream) is answer:
                del self._asked[stream]
            answer.set_exception(BusDisconnectedError("the question was given up"))
            answer.exception()
            raise
        answer.set_result(bounds)
        return bounds


def generation_of(seq: int) -> int:
    """Return the life of the stream in which ``seq`` was given out."""
    return seq >> GENERATION_BITS


def _made_at(thread_id: ThreadId) -> float:
    """Return the Unix time inside a thread's id."""
    return int(thread_id[:12], 16) / 1000


def _bounds(info: dict[str, Any]) -> Bounds:
    state = info["state"]
    first_at = datetime.fromisoformat(state["first_ts"]).timestamp() if state["messages"] else None
    return Bounds(state["first_seq"], state["last_seq"], first_at)
