"""The threads of this node: listened to while somebody is subscribed, attached without a hole, repaired from the log.

Attaching: listen to the live subject, wait until the server knows it, read the tail of the log, then hand on what
came meanwhile. Whatever was stored before the tail was read is history; whatever came after it was heard.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import msgspec

from edge.fanout import Event, Receiver, Subscription, ThreadFeed
from edge.outbound import text_frame
from shared.access import AccessEntry
from shared.bus import Bus, BusDisconnectedError, BusError, StoredMessage, header_number
from shared.identity import ThreadId, UserId
from shared.metrics import EdgeMetrics
from shared.protocol import CloseCode
from shared.subjects import eph_subject, live_subject, msg_subject, stream_of

REPAIR_PAGE_EVENTS: Final = 200
REPAIR_PAGE_BYTES: Final = 512 * 1024
REPAIR_S: Final = 5.0
"""A replica may lag and a leader be elected; after this long the position of the thread is given up."""

REPAIR_RETRY_S: Final = 0.05
REPAIR_AT_ONCE_MAX: Final = 32
COMPARE_TRIES: Final = 20
COMPARE_RETRY_S: Final = 0.5
_NEW_MESSAGE: Final = b'{"type":"message.new"'

Spawn = Callable[[Coroutine[Any, Any, None]], None]
"""Runs a coroutine in the background; the node's task group owns it."""

_log = logging.getLogger(__name__)


class _Ephemeral(msgspec.Struct, frozen=True):
    type: str
    user_id: UserId


_EPHEMERAL: Final = msgspec.json.Decoder(_Ephemeral)
_FORWARDED: Final = frozenset({"typing.active"})


class Threads:
    """Every thread with a subscribed session on this node."""

    def __init__(
        self, fabric: Bus, live: Bus, *, streams: int, spawn: Spawn, metrics: EdgeMetrics
    ) -> None:
        self._fabric = fabric
        self._live = live
        self._streams = streams
        self._spawn = spawn
        self._feeds: dict[ThreadId, ThreadFeed] = {}
        self._attaching: dict[ThreadId, asyncio.Future[None]] = {}
        self._repairs = asyncio.Semaphore(REPAIR_AT_ONCE_MAX)
        self._repairing: set[ThreadFeed] = set()
        self._metrics = metrics
        self._reconnects = 0
        self._frames = metrics.frames_out.of("held event")
        self._messages = metrics.frames_out.of("message.new")
        self._typing_frames = metrics.frames_out.of("typing.active")
        self._live_events = metrics.events_in.of("live")
        self._ephemeral_events = metrics.events_in.of("eph")
        live.on_reconnect.append(self._note_reconnect)

    def __len__(self) -> int:
        return len(self._feeds)

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

    async def tail(self, subscription: Subscription) -> int:
        """Return the newest seq of the thread; every later event is held for the subscription or comes live.

        Raises:
            BusError: Not at the moment. The caller gives the subscription up.
        """
        feed = subscription.feed
        running = self._attaching.get(feed.thread_id)
        if running is not None:
            await asyncio.shield(running)
        elif feed.held is not None and feed not in self._repairing:
            await self._attach(feed)
            return subscription.floor
        message = await self._fabric.get_last(
            stream_of(feed.thread_id, self._streams), msg_subject(feed.thread_id)
        )
        return max(subscription.floor, 0 if message is None else message.seq)

    def begin(self, subscription: Subscription, position: int) -> None:
        """The subscription is answered: hand on what was held, newer than ``position``; the rest comes live."""
        self._frames.value += subscription.begin(position)

    def give_up(self, subscription: Subscription) -> None:
        """The subscription failed: the one that it was to replace goes on as if nothing had been asked."""
        feed, session, former = subscription.feed, subscription.session, subscription.replaced
        if feed.subscriptions.get(session) is not subscription:
            return  # The session ended meanwhile.
        if former is None:
            self.leave(session, feed.thread_id)
            return
        feed.subscriptions[session] = former
        session.subscriptions[feed.thread_id] = former
        for event in subscription.held or ():
            self._frames.value += former.take(event)

    def leave(self, session: Receiver, thread_id: ThreadId) -> None:
        """End a subscription; a thread without any is listened to no more. Twice does nothing."""
        subscription = session.subscriptions.pop(thread_id, None)
        if subscription is None:
            return
        feed = subscription.feed
        feed.subscriptions.pop(session, None)
        if not feed.subscriptions:
            self._drop(feed)

    def revoke(self, entry: AccessEntry) -> None:
        """End the subscriptions of everybody who is no member any more."""
        feed = self._feeds.get(ThreadId(entry.thread_id))
        if feed is not None:
            for session in tuple(feed.subscriptions):
                if not entry.sees(session.user_id):
                    self.leave(session, feed.thread_id)

    # ------------------------------------------------------------------ live subjects

    def _listen(self, thread_id: ThreadId) -> ThreadFeed:
        feed = ThreadFeed(thread_id)
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
        if count is None:
            self._start_repair(feed)
        elif payload.startswith(_NEW_MESSAGE):
            self._messages.value += count
        else:
            self._metrics.frames_out.of(_type_of(payload)).value += count

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
            self._typing_frames.value += feed.forward(text_frame(payload), but=event.user_id)

    # ------------------------------------------------------------------ attaching and repairing

    async def _attach(self, feed: ThreadFeed) -> None:
        attached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._attaching[feed.thread_id] = attached
        reconnects = self._reconnects
        try:
            if not self._live.connected:
                raise BusDisconnectedError("a thread cannot be attached")
            await self._live.flush()
            message = await self._fabric.get_last(
                stream_of(feed.thread_id, self._streams), msg_subject(feed.thread_id)
            )
        except BusError as error:
            # Whoever waits too gives up too, and the last one drops the feed.
            attached.set_exception(error)
            attached.exception()
            raise
        except asyncio.CancelledError:
            attached.cancel()
            raise
        else:
            feed.begin(0 if message is None else message.seq)
            if reconnects != self._reconnects:
                self._start_repair(feed)  # What came between the two connections was not heard.
            else:
                self._release(feed)
            attached.set_result(None)
        finally:
            del self._attaching[feed.thread_id]

    def _release(self, feed: ThreadFeed) -> None:
        count, is_live = feed.release()
        self._frames.value += count
        if not is_live:
            self._start_repair(feed)

    def _start_repair(self, feed: ThreadFeed) -> None:
        if feed not in self._repairing:
            self._repairing.add(feed)
            self._metrics.repairs.value += 1
            feed.suspend()
            self._spawn(self._repair(feed))

    async def _repair(self, feed: ThreadFeed) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + REPAIR_S
        is_live = False
        try:
            async with self._repairs:
                while feed.subscriptions and not is_live and loop.time() < give_up_at:
                    if await self._read_missing(feed):
                        count, is_live = feed.release()
                        self._frames.value += count
                    else:
                        await asyncio.sleep(REPAIR_RETRY_S)
        finally:
            self._repairing.discard(feed)
        if not is_live and feed.subscriptions:
            _log.error("events of a thread are missing in the log; its sessions are closed")
            for session in tuple(feed.subscriptions):
                self.leave(session, feed.thread_id)
                session.close(CloseCode.POSITION_LOST)

    async def _read_missing(self, feed: ThreadFeed) -> bool:
        """Hand on what the log holds after ``last``; False when it does not hold enough yet."""
        stream, subject = stream_of(feed.thread_id, self._streams), msg_subject(feed.thread_id)
        try:
            more = True
            while more:
                page = await self._fabric.get_range(
                    stream,
                    subject,
                    from_seq=feed.last + 1,
                    max_messages=REPAIR_PAGE_EVENTS,
                    max_bytes=REPAIR_PAGE_BYTES,
                )
                for message in page.messages:
                    event = Event(message.seq, feed.last, message.payload)
                    self._frames.value += feed.deliver(event)
                more = page.more and bool(page.messages)
        except BusError as error:
            _log.warning("a thread cannot be repaired yet: %s", error)
            return False
        return feed.last >= feed.missing_up_to()

    def _note_reconnect(self) -> None:
        self._reconnects += 1
        self._spawn(self._compare_tails())

    async def _compare_tails(self) -> None:
        """After a reconnect: have every thread repaired whose log holds more than was handed on."""
        by_stream: dict[str, dict[str, ThreadFeed]] = {}
        for feed in self._feeds.values():
            if feed.thread_id not in self._attaching:
                group = by_stream.setdefault(stream_of(feed.thread_id, self._streams), {})
                group[msg_subject(feed.thread_id)] = feed
        for stream, feeds in by_stream.items():
            for message in await self._tails(stream, list(feeds)):
                feed = feeds[message.subject]
                if message.seq <= feed.last:
                    continue
                if feed in self._repairing:
                    feed.overflowed = True  # It may have read the log before this event was stored.
                else:
                    self._start_repair(feed)

    async def _tails(self, stream: str, subjects: list[str]) -> list[StoredMessage]:
        for _ in range(COMPARE_TRIES):
            try:
                return await self._fabric.get_last_many(stream, subjects)
            except BusError as error:
                _log.warning("tails cannot be compared yet: %s", error)
                await asyncio.sleep(COMPARE_RETRY_S)
        # The next event of each thread shows its gap; until then nothing newer is known to be missing.
        return []


def _type_of(payload: bytes) -> str:
    """Return the type of a stored event; our encoder writes it first."""
    return payload[len(b'{"type":"') : payload.find(b'"', len(b'{"type":"'))].decode()
