"""nats-py's client with another hot path: own parser, own table of subscriptions, one write per loop tick.

What stays nats-py's: TCP and TLS, CONNECT and authentication, server pool, reconnect, PING interval. The private
names touched here are pinned by a contract test (``tests/shared/bus/test_contract.py``).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit

from nats.aio.client import Client as NatsClient
from nats.aio.client import Srv
from nats.aio.transport import TcpTransport
from nats.errors import Error as NatsError
from nats.errors import ProtocolError, UnexpectedEOF
from typing_extensions import override

from shared.bus.errors import (
    MESSAGE_TOO_LARGE,
    BusDisconnectedError,
    BusUnauthorizedError,
    PublishRefusedError,
    RequestTimeoutError,
)
from shared.bus.messages import Callback, Headers, interest_bytes, subject_bytes
from shared.bus.parser import Parser
from shared.bus.writing import PENDING_BYTES_MAX, TickWriter

RECONNECT_WAIT_S: Final = 0.25
CONNECT_TIMEOUT_S: Final = 2
PING_INTERVAL_S: Final = 10
PINGS_OUTSTANDING_MAX: Final = 2
CLOSE_TIMEOUT_S: Final = 2.0
READ_BYTES: Final = 1 << 16
_TRANSIENT_ERRORS: Final = (
    "stale connection",
    "slow consumer",
    "server shutdown",
    "maximum connections exceeded",
)
"""nats-py closes for ever on most of these; all of them pass, so the connection is made anew."""

_PING: Final = b"PING\r\n"
_log = logging.getLogger(__name__)


class Subscription:
    """Interest in a subject, replayed after every reconnect until it is closed."""

    __slots__ = ("_client", "callback", "failed", "queue", "sid", "subject")

    def __init__(
        self, client: "Client", sid: bytes, subject: bytes, queue: bytes, callback: Callback
    ) -> None:
        self._client = client
        self.sid = sid
        self.subject = subject
        self.queue = queue
        self.callback = callback
        self.failed = False

    def close(self) -> None:
        """Take the interest back. Messages already read from the socket are dropped. Closing twice does nothing."""
        self._client.unsubscribe(self)


class Client(NatsClient):
    """The connection. ``ready`` is true only while subscriptions are replayed and a publish would be sent."""

    def __init__(
        self, on_closed: Callable[[str], None], *, pending_bytes_max: int = PENDING_BYTES_MAX
    ) -> None:
        super().__init__()
        self._ps = cast("Any", Parser(self))
        self.subscriptions: dict[bytes, Subscription] = {}
        self.on_ready: list[Callable[[], None]] = []
        self.on_lost: list[Callable[[], None]] = []
        self.callback_errors = 0
        self.lost_at = time.monotonic()
        self.last_connected_at = 0.0
        self.writer = TickWriter(pending_bytes_max=pending_bytes_max)
        self._on_closed: Callable[[str], None] | None = on_closed
        self._connecting: asyncio.Future[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether a publish would be sent: connected, and the subscriptions are replayed."""
        return self.writer.open

    # ------------------------------------------------------------------ connection

    async def start(self, url: str, *, name: str, inbox_prefix: str, timeout_s: float) -> Self:
        """Connect for the first time.

        Raises:
            BusUnauthorizedError: The server refused the user.
            BusDisconnectedError: No server answered in time.
        """
        self._connecting = asyncio.get_running_loop().create_future()
        servers = [server.strip() for server in url.split(",")]
        # Nodes that the cluster names by itself come without a login; they get the one that all of them know.
        login = urlsplit(servers[0])
        dialing = asyncio.ensure_future(
            self.connect(
                servers,
                user=login.username,
                password=login.password,
                name=name,
                error_cb=self._note_error,
                reconnected_cb=self._note_reconnected,
                closed_cb=self._note_closed,
                max_reconnect_attempts=-1,
                reconnect_time_wait=cast("int", RECONNECT_WAIT_S),
                connect_timeout=CONNECT_TIMEOUT_S,
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=PINGS_OUTSTANDING_MAX,
                inbox_prefix=inbox_prefix,
            )
        )
        refused = self._connecting
        try:
            await _first_of(dialing, refused, timeout_s=timeout_s)
        except BaseException as error:
            dialing.cancel()
            await self.stop()
            if isinstance(error, NatsError):
                raise BusDisconnectedError(str(error)) from error
            raise
        finally:
            self._connecting = None
            refused.cancel()
        self._become_ready()
        return self

    async def stop(self) -> None:
        """Close for ever, without ``on_closed``. What was published before is handed to the kernel first."""
        self._on_closed = None
        self.writer.flush()
        closing = asyncio.ensure_future(self.close())
        if not (await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT_S))[0]:
            self._abort_wire()  # The server reads nothing any more, and closing waits for the write buffer.
            await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT_S)

    def _become_ready(self) -> None:
        self.writer.open = True
        self.last_connected_at = time.time()
        for hook in list(self.on_ready):
            self.guard(hook)

    def _lose(self) -> None:
        """Note at once, synchronously, that the connection is gone: nothing may be written for a later one."""
        was_ready = self.ready
        self.writer.detach()
        if not was_ready:
            return
        self.lost_at = time.monotonic()
        self.last_connected_at = time.time()
        pongs, self._pongs = self._pongs, []
        for pong in pongs:
            if not pong.done():
                pong.set_exception(BusDisconnectedError("the connection broke"))
                pong.exception()  # Marks it as seen: nats-py's own pings are awaited by nobody.
        for hook in list(self.on_lost):
            self.guard(hook)

    def _close_for_ever(self, reason: str) -> None:
        on_closed, self._on_closed = self._on_closed, None
        if on_closed is not None:
            _log.error("NATS: %s", reason)
            self.guard(on_closed, reason)

    # ------------------------------------------------------------------ nats-py's callbacks

    async def _note_error(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        lowered = text.lower()
        if "authorization violation" in lowered or "authentication" in lowered:
            if self._connecting is not None:
                if not self._connecting.done():
                    self._connecting.set_exception(BusUnauthorizedError(text))
                    self._connecting.exception()
            else:
                self._close_for_ever(text)
        else:
            _log.warning("NATS: %s", text)

    async def _note_reconnected(self) -> None:
        _log.info("NATS: connected again")
        self._become_ready()

    async def _note_closed(self) -> None:
        self._lose()
        self._close_for_ever(f"closed for ever: {self._err or 'by the server'}")

    # ------------------------------------------------------------------ nats-py's private methods, made safe

    @override
    async def _connect_to_server(self, s: Srv) -> None:
        # An attempt that failed half-way leaves its socket and its reading task behind; both would live on.
        self._abort_wire()
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        await super()._connect_to_server(s)

    @override
    async def _process_connect_init(self) -> None:
        await super()._process_connect_init()
        transport = self._transport
        if not isinstance(transport, TcpTransport) or transport._io_writer is None:
            raise BusDisconnectedError("only nats:// and tls:// are supported")
        wire = cast("asyncio.Transport", transport._io_writer.transport)
        self.writer.attach(wire)
        # Before nats-py's own replay and the PING behind it, so that "ready" means: the server knows them.
        wire.write(b"".join(map(_subscribe_line, self.subscriptions.values())))

    @override
    async def _process_op_err(self, e: Exception) -> None:
        self._lose()
        self._abort_wire()
        await super()._process_op_err(e)

    @override
    async def force_reconnect(self) -> None:
        """Give the connection up and make another one."""
        self._lose()
        self._abort_wire()
        await super().force_reconnect()

    @override
    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self._lose()
        await super()._close(status, do_cbs)

    def _abort_wire(self) -> None:
        # close() would first wait for the write buffer to empty: for ever, when the server hangs.
        if isinstance(self._transport, TcpTransport) and self._transport._io_writer is not None:
            self._transport._io_writer.transport.abort()

    @override
    async def _process_err(self, err_msg: str) -> None:
        lowered = err_msg.lower()
        if "permissions violation" in lowered:
            self._close_for_ever(err_msg)
        elif any(text in lowered for text in _TRANSIENT_ERRORS):
            await self._process_op_err(ConnectionError(err_msg))
        else:
            await super()._process_err(lowered)

    @override
    async def _process_pong(self) -> None:
        # nats-py's own fails on a PING whose waiter has timed out, and that ends its read loop.
        if self._pongs:
            pong = self._pongs.pop(0)
            self._pongs_received += 1
            self._pings_outstanding = 0
            if not pong.done():
                pong.set_result(True)

    @override
    async def _read_loop(self) -> None:
        """Read until the connection ends. Unlike nats-py's it never ends while the client counts as connected."""
        transport = self._transport
        assert transport is not None, "the read loop starts after the connection"  # noqa: S101
        error: Exception = UnexpectedEOF()
        try:
            while not (self.is_closed or self.is_reconnecting):
                data = await transport.read(READ_BYTES)
                if not data:
                    break
                await self._ps.parse(data)
        except (OSError, ProtocolError) as failure:
            error = failure
        except Exception as failure:
            _log.exception("NATS: the read loop failed; connecting anew")
            error = failure
        await self._process_op_err(error)

    # ------------------------------------------------------------------ hot path

    def publish_now(
        self, subject: bytes, payload: bytes, *, reply: bytes = b"", headers: Headers = b""
    ) -> None:
        """Queue a core message for the write at the end of this loop tick; the subject is checked already.

        Raises:
            BusDisconnectedError: Not connected; nothing is kept for later.
            BusOverloadedError: Too many bytes wait for the server to read them.
            PublishRefusedError: Larger than the server takes; sending it would end the connection.
        """
        size = len(headers) + len(payload)
        self.check_size(size)
        if headers:
            line = b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
                subject,
                reply,
                len(headers),
                size,
                headers,
                payload,
            )
        else:
            line = b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, size, payload)
        self.writer.write(line)

    def check_size(self, size: int) -> None:
        """Raise ``PublishRefusedError`` for what the server would answer by closing the connection."""
        if size > self._max_payload:
            raise PublishRefusedError(
                400, MESSAGE_TOO_LARGE, f"{size} bytes, the server takes {self._max_payload}"
            )

    def listen(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Add interest; sent at once or, while disconnected, with the next connection.

        Raises:
            InvalidSubjectError: The server would close the connection on it.
        """
        self._sid += 1
        queue_bytes = subject_bytes(queue) if queue else b""
        subscription = Subscription(
            self, b"%d" % self._sid, interest_bytes(subject), queue_bytes, callback
        )
        self.subscriptions[subscription.sid] = subscription
        if self.ready:
            self.writer.write_control(_subscribe_line(subscription))
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget the interest; see ``Subscription.close``."""
        if self.subscriptions.pop(subscription.sid, None) is not None and self.ready:
            self.writer.write_control(b"UNSUB %b\r\n" % subscription.sid)

    async def round_trip(self, *, timeout_s: float) -> float:
        """Return the seconds a PING takes; everything sent before is then processed by the server.

        Raises:
            BusDisconnectedError: Not connected, or the connection broke meanwhile.
            RequestTimeoutError: No PONG in time.
        """
        started = time.monotonic()
        if not self.ready:
            raise BusDisconnectedError("no PING")
        self.writer.write_control(_PING)
        # Written at once: PONGs are told apart by their order alone, and nats-py writes its PINGs at once.
        self.writer.flush()
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        try:
            async with asyncio.timeout(timeout_s):
                await pong
        except TimeoutError as error:
            raise RequestTimeoutError("PING", waited_s=timeout_s) from error
        self.last_connected_at = time.time()
        return time.monotonic() - started

    # ------------------------------------------------------------------ failures of callbacks

    def callback_failed(self, sid: bytes, error: Exception) -> None:
        """Count a callback that raised; log it once per subscription, or a flood would hide all else."""
        self.callback_errors += 1
        subscription = self.subscriptions.get(sid)
        if subscription is None or not subscription.failed:
            _log.error(
                "NATS: a callback failed: %s", subscription and subscription.subject, exc_info=error
            )
        if subscription is not None:
            subscription.failed = True

    def guard(self, function: Callable[..., None], *arguments: object) -> None:
        """Call a function of somebody else; what it raises is logged and counted, and stops nobody."""
        try:
            function(*arguments)
        except Exception:
            self.callback_errors += 1
            _log.exception("NATS: a callback failed")


def _subscribe_line(subscription: Subscription) -> bytes:
    return b"SUB %b %b %b\r\n" % (subscription.subject, subscription.queue, subscription.sid)


async def _first_of(
    dialing: "asyncio.Future[None]", refused: "asyncio.Future[None]", *, timeout_s: float
) -> None:
    await asyncio.wait({dialing, refused}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    if refused.done():
        refused.result()
    if not dialing.done():
        raise BusDisconnectedError(f"no server answered within {timeout_s:.0f} s")
    dialing.result()
