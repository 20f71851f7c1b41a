"""The threads of this node: listened to while somebody is subscribed, attached without a hole, reset where one opens.

Attaching: listen to the live subject, wait until the server knows it, read the tail of the log, then hand on what
came meanwhile. Whatever was stored before the tail was read is history; whatever came after it was heard.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import msgspec

from edge.background import Spawn
from edge.fanout import Event, Receiver, Subscription, ThreadFeed, Verdict
from edge.log import ThreadLog, generation_of
from edge.outbound import text_frame
from edge.repair import Repairs
from edge.replay import Replays
from shared.access import AccessEntry
from shared.bus import Bus, BusDisconnectedError, BusError, header_number
from shared.events import message_id_in
from shared.identity import ThreadId, UserId
from shared.metrics import EdgeMetrics
from shared.protocol import ResetReason, ThreadReset
from shared.subjects import eph_subject, live_subject

LEAVING_S: Final = 10.0
"""How long somebody whose entry is gone goes on reading when the event of their leaving does not come."""

_log = logging.getLogger(__name__)


class _Ephemeral(msgspec.Struct, frozen=True):
    type: str
    user_id: UserId


_ENCODER: Final = msgspec.json.Encoder()
_EPHEMERAL: Final = msgspec.json.Decoder(_Ephemeral)
_FORWARDED: Final = frozenset({"typing.active", "message.read"})


class Tail(NamedTuple):
    """Where a thread ends: its ``newest`` event in the log, 0 for none, and the ``position`` behind all its events."""

    newest: int
    position: int


class Threads:
    """Every thread with a subscribed session on this node."""

    def __init__(
        self, log: ThreadLog, live: Bus, replays: Replays, *, spawn: Spawn, metrics: EdgeMetrics
    ) -> None:
        self._thread_log = log
        self._live = live
        self._replays = replays
        self._spawn = spawn
        self._feeds: dict[ThreadId, ThreadFeed] = {}
        self._attaching: dict[ThreadId, asyncio.Future[None]] = {}
        self._repairs = Repairs(log, spawn=spawn, metrics=metrics, on_failed=self._reset_all)
        self._metrics = metrics
        self._leaving: set[tuple[Receiver, ThreadId]] = set()
        self._reconnects = 0
        self._frames = metrics.frames_out.of("held event")
        self._messages = metrics.frames_out.of("message.new")
        self._live_events = metrics.events_in.of("live")
        self._ephemeral_events = metrics.events_in.of("eph")
        self.on_attached: list[Callable[[ThreadId], None]] = []
        """Called when a thread has been attached: a replica that answered may have lagged."""
        self.on_behind: list[Callable[[ThreadId], None]] = []
        """Called when the log is known to hold more of a thread than was handed on."""
        self.on_left: list[Callable[[ThreadId, UserId], None]] = []
        """Called when somebody's reading ended with the event of their leaving."""
        live.on_reconnect.append(self._note_reconnect)
        replays.on_failed = self.reset

    def __len__(self) -> int:
        return len(self._feeds)

    def attached(self) -> tuple[ThreadId, ...]:
        """Return the threads that somebody here is subscribed to."""
        return tuple(self._feeds)

    def recent(self, thread_id: ThreadId) -> ThreadFeed | None:
        """Return what this node knows of a thread's newest messages; None when nobody here is subscribed to it."""
        return self._feeds.get(thread_id)

    # ------------------------------------------------------------------ subscriptions

    def prepare(self, session: Receiver, thread_id: ThreadId) -> Subscription:
        """Hold the thread's events for the session from now on; an older subscription of it is suspended."""
        feed = self._feeds.get(thread_id)
        if feed is None:
            feed = self._feeds[thread_id] = self._listen(thread_id)
        subscription = Subscription(feed, session, feed.subscriptions.get(session))
        feed.subscriptions[session] = subscription
        session.subscriptions[thread_id] = subscription
        return subscription

    async def end(self, subscription: Subscription, *, at_least: int = 0) -> Tail:
        """Return ``tail`` and the position behind it, also of a thread whose events have all left the log.

        Raises:
            BusError: Not at the moment. The caller gives the subscription up.
        """
        thread_id = subscription.feed.thread_id
        newest = await self.tail(subscription, at_least=at_least)
        if newest:
            return Tail(newest, newest)
        bounds = await self._thread_log.bounds(self._thread_log.stream_of(thread_id))
        if bounds.hold_everything_after(0, thread_id):
            return Tail(0, 0)
        # It had events. Where they ended only PostgreSQL knows, but it was before the present end of the stream.
        newest = await self._thread_log.tail_of_leader(thread_id)
        if newest:
            self.note(thread_id, newest)
        return Tail(newest, newest or bounds.last_seq)

    async def tail(self, subscription: Subscription, *, at_least: int = 0) -> int:
        """Return the newest seq of the thread; every later event is held for the subscription or comes live.

        Args:
            subscription: A prepared one.
            at_least: A seq that its client says it has seen; the log is asked whether that can be.

        Raises:
            BusError: Not at the moment. The caller gives the subscription up.
        """
        feed = subscription.feed
        running = self._attaching.get(feed.thread_id)
        tail = 0
        if running is None and feed.held is not None and feed not in self._repairs:
            await self._attach(feed)
        else:
            if running is not None:
                await asyncio.shield(running)
            tail = await self._thread_log.tail(feed.thread_id)
        tail = max(subscription.floor, tail)
        if at_least > tail and await self._thread_log.holds(feed.thread_id, at_least):
            tail = at_least  # The replica that answered lags.
        self.note(feed.thread_id, tail)
        return tail

    def give_up(self, subscription: Subscription) -> None:
        """The subscription failed: the one that it was to replace goes on as if nothing had been asked."""
        feed, session, former = subscription.feed, subscription.session, subscription.replaced
        if not subscription.is_current:
            return  # The session ended meanwhile.
        if former is None:
            subscription.end()
            return
        feed.subscriptions[session] = former
        session.subscriptions[feed.thread_id] = former
        if not former.is_live:
            return  # It reads the log, and goes on by itself.
        if subscription.overflowed:
            self._replays.catch_up(former)
            return
        for event in subscription.held:
            self._frames.value += former.take(event)

    def leave(self, session: Receiver, thread_id: ThreadId) -> None:
        """End a subscription; a thread without any is listened to no more. Twice does nothing."""
        subscription = session.subscriptions.get(thread_id)
        if subscription is not None:
            subscription.end()

    def reset(self, subscription: Subscription, reason: ResetReason) -> None:
        """End a subscription that could go on only over a hole; its session is told to load the thread anew."""
        if not subscription.is_current and not subscription.is_suspended:
            return
        # Where another one is to replace it, both end: the session is told once, and its command fails.
        session, thread_id = subscription.session, subscription.feed.thread_id
        self.leave(session, thread_id)
        if subscription.is_known:
            self._metrics.resets.of(reason).value += 1
            session.push(text_frame(_ENCODER.encode(ThreadReset(thread_id, reason))))

    def _reset_all(self, feed: ThreadFeed, reason: ResetReason) -> None:
        _log.warning("a thread cannot go on (%s): its sessions have to load it anew", reason)
        for subscription in tuple(feed.subscriptions.values()):
            self.reset(subscription, reason)

    def revoke(self, entry: AccessEntry) -> None:
        """End the reading of everybody who is no member any more: with the event that says so, or soon."""
        feed = self._feeds.get(ThreadId(entry.thread_id))
        if feed is None:
            return
        for session, subscription in tuple(feed.subscriptions.items()):
            if entry.sees(session.user_id):
                self._leaving.discard((session, feed.thread_id))
            elif not subscription.is_known:
                subscription.end()
            elif (session, feed.thread_id) not in self._leaving:
                self._leaving.add((session, feed.thread_id))
                self._spawn(self._see_off(session, feed.thread_id))

    async def _see_off(self, session: Receiver, thread_id: ThreadId) -> None:
        # The entry is written before the event. It is on its way, unless the api died in between.
        await asyncio.sleep(LEAVING_S)
        if (session, thread_id) in self._leaving:
            self._leaving.discard((session, thread_id))
            self.leave(session, thread_id)

    # ------------------------------------------------------------------ what the log is known to hold

    def positions(self) -> dict[ThreadId, int]:
        """Return every thread that is attached, with the newest seq that was handed on."""
        return {
            thread_id: feed.last
            for thread_id, feed in self._feeds.items()
            if thread_id not in self._attaching
        }

    def note(self, thread_id: ThreadId, seq: int) -> None:
        """Note that the log holds an event at ``seq``. If it does not come by itself, it has to be read."""
        feed = self._feeds.get(thread_id)
        if feed is not None and seq > max(feed.last, feed.known):
            feed.known = seq
            for listener in self.on_behind:
                listener(thread_id)

    def repair(self, thread_id: ThreadId) -> bool:
        """Have the log read if it is known to hold more than was handed on; return whether it is."""
        feed = self._feeds.get(thread_id)
        if feed is None or feed.known <= feed.last or thread_id in self._attaching:
            return False
        self._repairs.start(feed)
        return True

    def note_generation(self, thread_id: ThreadId, generation: int) -> None:
        """Note in which of its lives the thread's stream is: what an earlier one held back is lost."""
        feed = self._feeds.get(thread_id)
        if feed is not None and feed.last and generation_of(feed.last) < generation:
            self._reset_all(feed, "generation")

    # ------------------------------------------------------------------ live subjects

    def _listen(self, thread_id: ThreadId) -> ThreadFeed:
        feed = ThreadFeed(
            thread_id, on_empty=self._drop, on_left=partial(self._note_left, thread_id)
        )
        feed.interests = [
            self._live.subscribe(live_subject(thread_id), partial(self._receive, feed)),
            self._live.subscribe(eph_subject(thread_id), partial(self._forward, feed)),
        ]
        return feed

    def _drop(self, feed: ThreadFeed) -> None:
        for interest in feed.interests:
            interest.close()
        if self._feeds.get(feed.thread_id) is feed:
            del self._feeds[feed.thread_id]

    def _note_left(self, thread_id: ThreadId, user_id: UserId) -> None:
        for listener in self.on_left:
            listener(thread_id, user_id)

    def _receive(
        self, feed: ThreadFeed, subject: bytes, reply: bytes, headers: bytes, payload: bytes
    ) -> None:
        del subject, reply
        self._live_events.value += 1
        event = Event(
            header_number(headers, b"Nats-Sequence"),
            header_number(headers, b"Nats-Last-Sequence"),
            payload,
        )
        count = feed.receive(event)
        if isinstance(count, Verdict):
            self._see_to(feed, count)
        elif message_id_in(payload) is not None:
            self._messages.value += count
        else:
            self._metrics.frames_out.of(_type_of(payload)).value += count

    def _see_to(self, feed: ThreadFeed, verdict: Verdict) -> None:
        if verdict is Verdict.GAP:
            self._repairs.start(feed)
        else:
            self._reset_all(feed, "generation")

    def _forward(
        self, feed: ThreadFeed, subject: bytes, reply: bytes, headers: bytes, payload: bytes
    ) -> None:
        del subject, reply, headers
        self._ephemeral_events.value += 1
        try:
            event = _EPHEMERAL.decode(payload)
        except msgspec.DecodeError:
            self._metrics.events_dropped.of("unreadable").value += 1
            return
        if event.type in _FORWARDED:
            count = feed.forward(text_frame(payload), but=event.user_id)
            self._metrics.frames_out.of(event.type).value += count

    # ------------------------------------------------------------------ attaching

    async def _attach(self, feed: ThreadFeed) -> None:
        attached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._attaching[feed.thread_id] = attached
        reconnects = self._reconnects
        try:
            if not self._live.connected:
                raise BusDisconnectedError("a thread cannot be attached")
            await self._live.flush()
            tail = await self._thread_log.tail(feed.thread_id)
        except BusError as error:
            # Whoever waits too gives up too, and the last one drops the feed.
            attached.set_exception(error)
            attached.exception()
            raise
        except asyncio.CancelledError:
            attached.cancel()
            raise
        else:
            feed.begin(tail)
            if reconnects != self._reconnects:
                self._repairs.start(feed)  # What came between the two connections was not heard.
            else:
                self._release(feed)
            attached.set_result(None)
            for listener in self.on_attached:
                listener(feed.thread_id)
        finally:
            del self._attaching[feed.thread_id]

    def _release(self, feed: ThreadFeed) -> None:
        count, is_live = feed.release()
        self._frames.value += count
        if not is_live:
            self._repairs.start(feed)

    def _note_reconnect(self) -> None:
        self._reconnects += 1


def _type_of(payload: bytes) -> str:
    """Return the type of a stored event; our encoder writes it first."""
    return payload[len(b'{"type":"') : payload.find(b'"', len(b'{"type":"'))].decode()
