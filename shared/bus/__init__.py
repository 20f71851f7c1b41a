"""The bus: the only package that speaks NATS.

It keeps connect, authentication and reconnect of nats-py and replaces its hot path: a find-and-split parser with
synchronous callbacks, one write per loop tick, one inbox for all acknowledgements, raw headers, an AckAll puller.

Three rules hold everywhere:

* Nothing is queued for later. Without a connection a call fails at once; nats-py's own buffer, which stored
  messages after their sender had been told "timed out", is never used.
* Every wait has a deadline, every queue a bound; beyond it the caller is told.
* A callback that raises never stops the read loop. It is logged once per subscription and counted.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Self

from shared.bus.client import Client, Subscription
from shared.bus.direct import DirectReader
from shared.bus.errors import (
    BusDisconnectedError,
    BusError,
    BusOverloadedError,
    BusUnauthorizedError,
    ConsumerMissingError,
    InvalidSubjectError,
    JetStreamApiError,
    KvConflictError,
    NoRespondersError,
    PublishRefusedError,
    PublishTimeoutError,
    RequestTimeoutError,
    ServiceFailedError,
)
from shared.bus.keyvalue import KeyValue
from shared.bus.messages import (
    NO_HEADERS,
    Callback,
    ConsumerInfo,
    Delivery,
    Headers,
    KvEntry,
    OutgoingMessage,
    Page,
    PubAck,
    StoredMessage,
    header_block,
    header_number,
    header_value,
    subject_bytes,
)
from shared.bus.publishing import Publisher
from shared.bus.pull import Puller
from shared.bus.requests import Requests, consumer_info
from shared.bus.serving import Service

WATCH_INTERVAL_S: Final = 5.0
WATCH_MISSES_MAX: Final = 2
DRAIN_POLL_S: Final = 0.01

__all__ = [
    "NO_HEADERS",
    "Bus",
    "BusDisconnectedError",
    "BusError",
    "BusOverloadedError",
    "BusUnauthorizedError",
    "Callback",
    "ConsumerInfo",
    "ConsumerMissingError",
    "Delivery",
    "Headers",
    "InvalidSubjectError",
    "JetStreamApiError",
    "KvConflictError",
    "KvEntry",
    "NoRespondersError",
    "OutgoingMessage",
    "Page",
    "PubAck",
    "PublishRefusedError",
    "PublishTimeoutError",
    "Puller",
    "RequestTimeoutError",
    "ServiceFailedError",
    "StoredMessage",
    "Subscription",
    "header_block",
    "header_number",
    "header_value",
]

_log = logging.getLogger(__name__)


class Bus:
    """One connection to NATS. See the package for its rules."""

    def __init__(self, client: Client, inbox: str) -> None:
        """Use ``connect``."""
        self._client = client
        self._inbox = inbox
        self._publisher = Publisher(client, inbox)
        self._requests = Requests(client, inbox)
        self._reader = DirectReader(self._requests)
        self._key_value = KeyValue(self._reader, self._publisher)
        self._services: list[Service] = []
        self._pullers: list[Puller] = []
        self._watching: asyncio.Task[None] | None = None
        self.on_reconnect: list[Callable[[], None]] = []
        """Called after every reconnect, when the subscriptions are effective on the server again."""

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        name: str,
        on_closed: Callable[[str], None],
        inbox_prefix: str,
        connect_timeout_s: float = 30.0,
    ) -> Self:
        """Connect and return the bus.

        Args:
            url: ``nats://user:password@host:port``; several servers separated by commas.
            name: Shown by the server's monitoring.
            on_closed: Called exactly once with a reason, when the connection is closed for ever or the server
                reported a permissions violation: the process should end. Not called after ``close``.
            inbox_prefix: The only prefix under which this user may subscribe to answers, ``_INBOX.edge.ab12``.
            connect_timeout_s: How long to try before giving up.

        Raises:
            BusUnauthorizedError: The server refused the user.
            BusDisconnectedError: No server answered in time.
        """
        client = Client(on_closed)
        bus = cls(client, f"{inbox_prefix}.{secrets.token_hex(8)}")
        await client.start(url, name=name, inbox_prefix=inbox_prefix, timeout_s=connect_timeout_s)
        client.on_ready.append(bus._reconnected)
        bus._watching = asyncio.create_task(bus._watch(), name="bus-watch")
        return bus

    @property
    def connected(self) -> bool:
        """Whether a publish would be sent now. False until subscriptions are replayed after a reconnect."""
        return self._client.ready

    @property
    def last_connected_at(self) -> float:
        """``time.time()`` of the last moment known to be connected."""
        return time.time() if self._client.ready else self._client.last_connected_at

    @property
    def outstanding(self) -> int:
        """How many stored publishes wait for their acknowledgement."""
        return self._publisher.outstanding

    @property
    def callback_errors(self) -> int:
        """How many callbacks and handlers raised since the start; each is a bug."""
        return self._client.callback_errors

    def disconnected_for_s(self) -> float:
        """Seconds without a connection; 0.0 while connected."""
        return 0.0 if self._client.ready else time.monotonic() - self._client.lost_at

    def publish(
        self, subject: str | bytes, payload: bytes, *, reply: bytes = b"", headers: Headers = b""
    ) -> None:
        """Send a core message: at most once, no acknowledgement. One write per loop tick.

        Raises:
            BusDisconnectedError: Not connected; nothing is kept for later.
            BusOverloadedError: The server reads too slowly; too many bytes wait.
            PublishRefusedError: Larger than the server takes.
        """
        self._client.publish_now(subject_bytes(subject), payload, reply=reply, headers=headers)

    def publish_stored(
        self,
        subject: str | bytes,
        payload: bytes,
        done: Callable[[PubAck | BusError], None],
        *,
        message_id: str | None,
        timeout_s: float,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        """Send a message to be stored; ``done`` is called exactly once, never before this returns.

        ``done`` gets a ``PubAck`` or one of: ``BusDisconnectedError``, ``BusOverloadedError`` (not sent);
        ``PublishRefusedError`` (not stored); ``NoRespondersError`` (not stored: no stream, or no leader now);
        ``PublishTimeoutError`` (unknown: deadline passed, or the connection broke; send the same id again).
        Raises only ``InvalidSubjectError``, which is our bug.
        """
        self._publisher.publish(
            subject, payload, done, message_id=message_id, timeout_s=timeout_s, headers=headers
        )

    async def store(
        self,
        subject: str | bytes,
        payload: bytes,
        *,
        message_id: str | None = None,
        timeout_s: float = 5.0,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> PubAck:
        """``publish_stored`` to await: returns the acknowledgement or raises what ``done`` would get."""
        return await self._publisher.store(
            subject, payload, message_id=message_id, timeout_s=timeout_s, headers=headers
        )

    async def store_batch(self, messages: Sequence[OutgoingMessage], *, timeout_s: float) -> PubAck:
        """Store 1 to 1,000 messages of one stream in one atomic step, in order; the ack is the last one's.

        Raises what ``store`` raises; ``PublishRefusedError`` 10201 when one is a duplicate. Nothing is stored then.
        """
        return await self._publisher.store_batch(messages, timeout_s=timeout_s)

    def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Call ``callback`` for every message. May be called while disconnected: sent on reconnect.

        Effective on the server after ``flush``.
        """
        return self._client.listen(subject, callback, queue=queue)

    async def flush(self, *, timeout_s: float = 5.0) -> None:
        """Return when the server has processed everything sent so far (PING, PONG)."""
        await self._client.round_trip(timeout_s=timeout_s)

    async def request(
        self, subject: str | bytes, payload: bytes, *, timeout_s: float, headers: Headers = b""
    ) -> bytes:
        """Ask and return the answer.

        Raises:
            NoRespondersError: Nobody serves the subject.
            RequestTimeoutError: No answer in time.
            ServiceFailedError: The handler behind ``serve`` failed or its queue is full.
            BusDisconnectedError: Not connected, or the connection broke meanwhile.
        """
        return await self._requests.service(subject, payload, timeout_s=timeout_s, headers=headers)

    def serve(
        self,
        subject: str,
        queue: str,
        handler: Callable[[bytes], Awaitable[bytes]],
        *,
        concurrency: int,
    ) -> Subscription:
        """Answer requests, shared with every member of ``queue``; at most ``concurrency`` at a time.

        Further ones wait in a bounded queue; beyond it they are answered with ``ServiceFailedError`` 503 at once.
        """
        service = Service(self._client, handler, concurrency=concurrency)
        self._services.append(service)
        return service.start(subject, queue)

    async def api(
        self, subject_suffix: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 5.0
    ) -> dict[str, Any]:
        """Call ``$JS.API.<subject_suffix>``.

        Raises:
            JetStreamApiError: The API said no.
        """
        return await self._requests.api(subject_suffix, body, timeout_s=timeout_s)

    async def consumer_info(self, stream: str, durable: str) -> ConsumerInfo:
        """Return where a durable consumer stands.

        Raises:
            JetStreamApiError: 10014, it does not exist.
        """
        return consumer_info(await self.api(f"CONSUMER.INFO.{stream}.{durable}"))

    async def get_last(self, stream: str, subject: str) -> StoredMessage | None:
        """Return the last message of a subject (direct get: a replica may lag by some milliseconds)."""
        return await self._reader.last(stream, subject)

    async def get_seq(self, stream: str, seq: int) -> StoredMessage | None:
        """Return the message at ``seq``; ``None`` only when the stream's leader says so."""
        return await self._reader.by_seq(stream, seq)

    async def get_last_many(self, stream: str, subjects: Sequence[str]) -> list[StoredMessage]:
        """Return the last message of each subject that has one, ascending by seq. Wildcards allowed."""
        return await self._reader.last_many(stream, subjects)

    async def get_range(
        self, stream: str, subject: str, *, from_seq: int, max_messages: int, max_bytes: int
    ) -> Page:
        """Return consecutive messages of a subject from ``from_seq`` on."""
        return await self._reader.page(
            stream, subject, from_seq=from_seq, max_messages=max_messages, max_bytes=max_bytes
        )

    async def kv_get(self, bucket: str, key: str) -> KvEntry | None:
        """Return an entry, ``None`` when absent or deleted (direct get: may lag)."""
        return await self._key_value.get(bucket, key)

    async def kv_put(self, bucket: str, key: str, value: bytes, *, expected: int | None) -> int:
        """Write an entry and return its revision. ``expected``: its revision, 0 = must not exist, None = any.

        Raises:
            KvConflictError: Another revision is stored.
        """
        return await self._key_value.put(bucket, key, value, expected=expected)

    def puller(self, stream: str, durable: str, *, batch_max: int, bytes_max: int) -> Puller:
        """Return a puller of a durable AckAll consumer."""
        puller = Puller(
            self._client,
            self._requests,
            f"{self._inbox}.{len(self._pullers)}",
            source=(stream, durable),
            batch_max=batch_max,
            bytes_max=bytes_max,
        )
        self._pullers.append(puller)
        return puller

    async def close(self) -> None:
        """Close at once. Outstanding calls fail."""
        if self._watching is not None:
            self._watching.cancel()
        for puller in self._pullers:
            puller.close()
        for service in self._services:
            await service.stop(timeout_s=0)
        await self._client.stop()

    async def drain(self, *, timeout_s: float = 10.0) -> None:
        """Stop serving, let handlers and outstanding publishes end, then close."""
        give_up_at = time.monotonic() + timeout_s
        for service in self._services:
            await service.stop(timeout_s=max(0.0, give_up_at - time.monotonic()))
        # Polled: an event would be paid for by every publish, and only draining needs it.
        while self._publisher.outstanding and time.monotonic() < give_up_at:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL_S)
        await self.close()

    def _reconnected(self) -> None:
        for hook in list(self.on_reconnect):
            self._client.guard(hook)

    async def _watch(self) -> None:
        """A hung server is noticed after two silent round trips; TCP alone would not tell for many minutes."""
        misses = 0
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            try:
                await self._client.round_trip(timeout_s=WATCH_INTERVAL_S)
                misses = 0
            except RequestTimeoutError:
                misses += 1
            except BusDisconnectedError:
                misses = 0
            if misses >= WATCH_MISSES_MAX:
                misses = 0
                _log.warning("NATS: no answer to %d pings; connecting anew", WATCH_MISSES_MAX)
                await self._client.force_reconnect()
