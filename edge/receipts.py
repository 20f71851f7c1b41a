"""Read markers on their way to ``RCPT``: at most one write a second per member and thread, whatever their devices say.

The first mark is written at once. Those that come within the next second wait and become one write of the furthest of
them; each is answered when that write is stored. What a stopped node has not written is not acknowledged either, and
clients state their position again.
"""

import asyncio
import logging
from functools import partial
from typing import Final

import msgspec

from edge.background import Spawn
from shared.bus import Bus, BusError
from shared.events import timestamp
from shared.identity import ThreadId, UserId
from shared.metrics import EdgeMetrics
from shared.protocol import MessageRead
from shared.receipts import Moved, Receipt, move_receipt
from shared.subjects import eph_subject

INTERVAL_S: Final = 1.0
LANES_MAX: Final = 50_000
"""Members and threads written within the last second; beyond it a mark is refused as ``unavailable``."""

MEMBERS_MAX: Final = 100
"""Larger threads are not told who has read: its cost grows with the square of their size. REST has it."""

_ENCODER: Final = msgspec.json.Encoder()
_log = logging.getLogger(__name__)


class MarksOverloadedError(BusError):
    """Too many markers are moving on this node."""

    def __init__(self) -> None:
        super().__init__(f"{LANES_MAX} read markers are moving on this node already")


class _Write:
    """The next write of one lane: the furthest mark, and who waits for it."""

    __slots__ = ("done", "is_told", "seq")

    def __init__(self) -> None:
        self.seq = 0
        self.is_told = False
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()


class Marks:
    """The lanes of this node: one per member and thread whose marker moved within the last second."""

    def __init__(self, bus: Bus, *, spawn: Spawn, metrics: EdgeMetrics) -> None:
        self._bus = bus
        self._spawn = spawn
        self._written = metrics.receipts.of("written")
        self._coalesced = metrics.receipts.of("coalesced")
        # None: nothing waits for the end of the second.
        self._lanes: dict[tuple[ThreadId, UserId], _Write | None] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    async def mark(self, thread_id: ThreadId, user_id: UserId, seq: int, *, is_told: bool) -> int:
        """Mark everything up to ``seq`` as read; returned means stored.

        Args:
            thread_id: The thread; that the user may see it was checked.
            user_id: The member.
            seq: The position, not beyond the end of the thread.
            is_told: Whether the other members' sessions are told.

        Returns:
            Where the marker is now: it may have been further already.

        Raises:
            BusError: Not stored, or nobody knows.
        """
        key = (thread_id, user_id)
        is_new = key not in self._lanes
        if is_new and len(self._lanes) >= LANES_MAX:
            raise MarksOverloadedError
        write = self._lanes.get(key)
        if write is None:
            write = self._lanes[key] = _Write()
        else:
            self._coalesced.value += 1
        write.seq = max(write.seq, seq)
        write.is_told = write.is_told or is_told
        if is_new:
            self._spawn(self._run(key))
        # Shielded: a session that goes takes nobody else's answer with it.
        return await asyncio.shield(write.done)

    async def _run(self, key: tuple[ThreadId, UserId]) -> None:
        try:
            while (write := self._lanes[key]) is not None:
                self._lanes[key] = None
                await self._store(key, write)
                await asyncio.sleep(INTERVAL_S)
        finally:
            waiting = self._lanes.pop(key)
            if waiting is not None:
                waiting.done.cancel()

    async def _store(self, key: tuple[ThreadId, UserId], write: _Write) -> None:
        thread_id, user_id = key
        change = partial(_read_up_to, seq=write.seq, at=timestamp())
        try:
            moved = await move_receipt(self._bus, thread_id, user_id, change)
        except BusError as error:
            write.done.set_exception(error)
            write.done.exception()  # Marks it as seen: everybody who asked may have gone.
            return
        except BaseException:
            write.done.cancel()
            raise
        write.done.set_result(moved.after.read)
        if moved.after != moved.before:
            self._written.value += 1
        if write.is_told:
            self._tell(thread_id, user_id, moved)

    def _tell(self, thread_id: ThreadId, user_id: UserId, moved: Moved) -> None:
        shown = moved.after
        if shown.shown <= moved.before.shown:
            return
        frame = MessageRead(thread_id=thread_id, user_id=user_id, seq=shown.shown, at=shown.at)
        try:
            self._bus.publish(eph_subject(thread_id), _ENCODER.encode(frame))
        except BusError as error:
            # It is stored: whoever subscribes later sees it, and the next mark tells the others.
            _log.info("a read marker was not told: %s", error)


def _read_up_to(receipt: Receipt, *, seq: int, at: str) -> Receipt:
    return receipt.read_up_to(seq, at)
