"""Replay: what a client missed, read from the log, folded, and sent as fast as the client reads.

A stretch of at most 2,000 events or 2 MiB is read whole, because a deletion at its end empties a message at its start;
it is sent while the session's outbound queue is less than half full. Live events of the thread are not kept meanwhile:
the feed's newest seq says how far the log has to be read before the subscription is live.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from edge.background import Spawn
from edge.fanout import Event, Subscription
from edge.fold import Stored, fold
from edge.log import PAGE_EVENTS, ThreadLog
from edge.turns import Turns
from shared.bus import BusError, BusOverloadedError
from shared.events import message_id_in
from shared.identity import ThreadId
from shared.metrics import EdgeMetrics
from shared.protocol import ResetReason

EVENTS_MAX: Final = 2_000
BYTES_MAX: Final = 2 * 1024 * 1024
REPLAY_S: Final = 30.0
"""How long a replay may take; reading 70 KB a second is enough. Whoever is slower would keep others waiting."""

LAG_S: Final = 3.0
"""How long a replica may lag behind a tail that another one told."""

RETRY_S: Final = 0.05
_log = logging.getLogger(__name__)


class Replay:
    """What one subscription is owed before it is live."""

    __slots__ = ("caught_up", "has_turn", "is_over", "known", "past", "reached", "waits_for_log")

    def __init__(self, *, reached: int) -> None:
        """Nothing is owed but what comes after ``reached``, a position in the log."""
        self.reached = reached
        self.past: deque[Stored] = deque()
        self.caught_up: bytes | None = None
        self.is_over = False
        self.known: frozenset[bytes] = frozenset()
        self.has_turn = False
        self.waits_for_log = False

    @property
    def ends_at(self) -> int:
        """The seq of the event with which the user's reading ended, 0 if it goes on."""
        return self.past[-1].seq if self.is_over else 0


class Replays:
    """The replays of this node."""

    def __init__(self, log: ThreadLog, *, spawn: Spawn, metrics: EdgeMetrics) -> None:
        self._thread_log = log
        self._spawn = spawn
        self._turns = Turns()
        self._outcomes = metrics.replays
        self._frames = metrics.frames_out.of("replayed event")
        self._held_frames = metrics.frames_out.of("held event")
        metrics.replaying.set_function(lambda: self.under_way)
        self.on_failed: Callable[[Subscription, ResetReason], None] = _ignore
        """Called with a subscription that cannot become live, and why."""

    @property
    def under_way(self) -> int:
        """How many places for replays are taken."""
        return len(self._turns)

    # ------------------------------------------------------------------ before the answer

    async def open(
        self, subscription: Subscription, *, after: int, newest: int, visible_from: int
    ) -> Replay | None:
        """Read everything after a position up to the ``newest`` event; None: the log does not give it within limits.

        What is returned must be handed to ``start`` or ``abandon``.

        Raises:
            BusError: Not at the moment, or too many replays at once.
        """
        thread_id, session = subscription.feed.thread_id, subscription.session
        start = max(after, visible_from - 1)
        try:
            await self._turns.take(session)
        except BusOverloadedError:
            self._outcomes.of("busy").value += 1
            raise
        replay = Replay(reached=newest)
        try:
            past = await self._everything(thread_id, start, newest)
            if past is None:
                return None
            folded = fold(past, session.user_id)
            replay.past.extend(folded.shown)
            replay.is_over, replay.known = folded.is_over, folded.message_ids
            replay.has_turn = True
            self._outcomes.of("recovered").value += 1
        finally:
            if not replay.has_turn:
                self._turns.give_back(session)
        return replay

    def abandon(self, subscription: Subscription, replay: Replay | None) -> None:
        """Give up a replay that was opened and not started."""
        if replay is not None and replay.has_turn:
            replay.has_turn = False
            self._turns.give_back(subscription.session)

    async def _everything(
        self, thread_id: ThreadId, start: int, newest: int
    ) -> list[Stored] | None:
        stream = self._thread_log.stream_of(thread_id)
        if not (await self._thread_log.bounds(stream)).hold_everything_after(start, thread_id):
            self._outcomes.of("too old").value += 1
            return None
        if start >= newest:
            return []
        past = await self._read(thread_id, start, newest)
        if past is None:
            self._outcomes.of("too long").value += 1
            return None
        # Asked again: what the log forgot while it was read is missing in what was read.
        if not (await self._thread_log.bounds(stream)).hold_everything_after(start, thread_id):
            self._outcomes.of("too old").value += 1
            return None
        return past

    async def _read(self, thread_id: ThreadId, start: int, newest: int) -> list[Stored] | None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + LAG_S
        past: list[Stored] = []
        size, reached = 0, start
        while reached < newest:
            most = min(PAGE_EVENTS, EVENTS_MAX + 1 - len(past))
            page = await self._thread_log.page(thread_id, from_seq=reached + 1, events_max=most)
            for message in page.messages:
                reached = message.seq
                if reached <= newest:
                    past.append(Stored(reached, message.payload))
                    size += len(message.payload)
            if len(past) > EVENTS_MAX or size > BYTES_MAX:
                return None
            if not page.messages:
                if loop.time() > give_up_at:
                    return None
                await asyncio.sleep(RETRY_S)
        return past

    # ------------------------------------------------------------------ after the answer

    def start(self, subscription: Subscription, replay: Replay) -> None:
        """Send the replay of a subscription that has just been answered, then what came since; then it is live."""
        if not subscription.is_current:
            self.abandon(subscription, replay)  # The session could not even take the answer.
        elif self._send_past(subscription, replay) and not subscription.overflowed:
            self._go_live(subscription)
            self.abandon(subscription, replay)
        else:
            subscription.held.clear()  # The log has it.
            self._spawn(self._run(subscription, replay))

    def catch_up(self, subscription: Subscription) -> None:
        """Have a live subscription that has missed events read the log from its position; then it is live again."""
        subscription.is_live = False
        self._spawn(self._run(subscription, Replay(reached=subscription.position)))

    async def _run(self, subscription: Subscription, replay: Replay) -> None:
        try:
            async with asyncio.timeout(REPLAY_S):
                while not self._advance(subscription, replay):
                    await self._wait(subscription, replay)
        except TimeoutError:
            self._outcomes.of("failed").value += 1
            self.on_failed(subscription, "gap" if replay.waits_for_log else "slow")
        finally:
            self.abandon(subscription, replay)

    def _advance(self, subscription: Subscription, replay: Replay) -> bool:
        """Send what there is room for; True when the subscription is live, or over."""
        if not subscription.is_current:
            return not subscription.is_suspended
        if not self._send_past(subscription, replay):
            return False
        if subscription.is_current and replay.reached >= subscription.feed.last:
            self._go_live(subscription)
        return subscription.is_live or not subscription.is_current

    async def _wait(self, subscription: Subscription, replay: Replay) -> None:
        """Wait for room, for the log, or for the fate of the subscription that is to replace this one."""
        replay.waits_for_log = False
        if subscription.is_suspended:
            await asyncio.sleep(RETRY_S)
        elif replay.past:
            await subscription.session.room()
        else:
            replay.waits_for_log = True
            await self._read_on(subscription, replay)

    async def _read_on(self, subscription: Subscription, replay: Replay) -> None:
        try:
            page = await self._thread_log.page(
                subscription.feed.thread_id, from_seq=replay.reached + 1
            )
        except BusError as error:
            _log.warning("a replay cannot be read yet: %s", error)
            await asyncio.sleep(RETRY_S)
            return
        for message in page.messages:
            replay.reached = message.seq
            if message_id_in(message.payload) not in replay.known:
                replay.past.append(Stored(message.seq, message.payload))
        if not page.messages:
            await asyncio.sleep(RETRY_S)

    def _send_past(self, subscription: Subscription, replay: Replay) -> bool:
        """Send as much as there is room for; True when that was all, ``thread.caught_up`` included."""
        session, past = subscription.session, replay.past
        is_folded = replay.caught_up is not None
        count = 0
        while past and subscription.is_current:
            if not session.has_room:
                break
            event = past.popleft()
            if is_folded:
                subscription.show(event.seq, event.payload)
            else:
                subscription.take(Event(event.seq, 0, event.payload))
            count += 1
        self._frames.value += count
        if past or not subscription.is_current:
            return False
        if replay.is_over:
            subscription.end()
        elif replay.caught_up is not None:
            caught_up, replay.caught_up = replay.caught_up, None
            session.push(caught_up)
        return True

    def _go_live(self, subscription: Subscription) -> None:
        self._held_frames.value += subscription.begin()


def _ignore(subscription: Subscription, reason: ResetReason) -> None:
    del subscription, reason
