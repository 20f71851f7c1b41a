"""Repair: a thread whose events are missing is read from the log until what was held meanwhile can be released.

What the log has lost, or lost with an earlier life of its stream, cannot be repaired: nothing is shown over a hole.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from edge.background import Spawn
from edge.fanout import Event, ThreadFeed
from edge.log import ThreadLog
from shared.bus import BusError, StoredMessage
from shared.metrics import EdgeMetrics
from shared.protocol import ResetReason

REPAIR_S: Final = 5.0
"""How long a log that answers may lack an event that is known to be stored; then it is given up."""

REPAIR_MOST_S: Final = 15.0
"""How long the log may not answer at all: NATS restarts, a leader is elected."""

RETRY_S: Final = 0.05
AT_ONCE_MAX: Final = 32

_log = logging.getLogger(__name__)


class Repairs:
    """The repairs of this node."""

    def __init__(
        self,
        log: ThreadLog,
        *,
        spawn: Spawn,
        metrics: EdgeMetrics,
        on_failed: Callable[[ThreadFeed, ResetReason], None],
    ) -> None:
        self._thread_log = log
        self._spawn = spawn
        self._on_failed = on_failed
        self._places = asyncio.Semaphore(AT_ONCE_MAX)
        self._running: set[ThreadFeed] = set()
        self._started = metrics.repairs
        self._frames = metrics.frames_out.of("held event")

    def __contains__(self, feed: ThreadFeed) -> bool:
        return feed in self._running

    def start(self, feed: ThreadFeed) -> None:
        """Hold the thread's live events and have the log read; one that is under way does it."""
        if feed not in self._running:
            self._running.add(feed)
            self._started.value += 1
            feed.suspend()
            self._spawn(self._repair(feed))

    async def _repair(self, feed: ThreadFeed) -> None:
        reason: ResetReason | None = None
        try:
            async with self._places:
                reason = await self._read_until_live(feed)
        finally:
            self._running.discard(feed)
        if reason is not None:
            self._on_failed(feed, reason)

    async def _read_until_live(self, feed: ThreadFeed) -> ResetReason | None:
        """Return None when the thread is live again or nobody is subscribed, else why it cannot be."""
        now = asyncio.get_running_loop().time
        give_up_at, answered_s = now() + REPAIR_MOST_S, 0.0
        while feed.subscriptions and now() < give_up_at and answered_s < REPAIR_S:
            started = now()
            try:
                reason = await self._read_missing(feed)
            except BusError as error:
                _log.warning("a thread cannot be repaired yet: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            if reason is not None:
                return reason
            if feed.last >= feed.missing_up_to():
                count, is_live = feed.release()
                self._frames.value += count
                if is_live:
                    return None
            await asyncio.sleep(RETRY_S)
            answered_s += now() - started
        return "gap" if feed.subscriptions else None

    async def _read_missing(self, feed: ThreadFeed) -> ResetReason | None:
        """Hand on what the log holds after ``last``; return why that would leave a hole, if it would.

        Raises:
            BusError: The log cannot be read at the moment.
        """
        more = True
        while more and feed.subscriptions:
            missing = feed.missing_up_to()
            page = await self._thread_log.page(feed.thread_id, from_seq=feed.last + 1)
            reason = _why_not(page.messages, feed, missing)
            if reason is not None:
                return reason
            for message in page.messages:
                self._frames.value += feed.deliver(Event(message.seq, feed.last, message.payload))
            more = page.more and bool(page.messages)
        return None


def _why_not(
    messages: Sequence[StoredMessage], feed: ThreadFeed, missing: int
) -> ResetReason | None:
    """Return why a page of the log must not be handed on: something that belongs before or into it is lost."""
    if not messages:
        return None
    if feed.last and messages[-1].seq >= feed.generation_end:
        return "generation"
    if feed.last < missing < messages[-1].seq:
        # The log loses its oldest events first: whatever lies before a lost one is lost too.
        return None if any(message.seq == missing for message in messages) else "gap"
    return None
