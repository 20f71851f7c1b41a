"""One socket: bytes in and out, driven by callbacks; no task, future or timer of its own.

``websockets``' sans-I/O object does the handshake, control frames, fragmentation and close. Outgoing texts do not pass
through it: they come encoded, once for all sessions, and go to the outbound queue.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, cast

from typing_extensions import override
from websockets.extensions import Extension
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import SEND_EOF, State

from edge.handshake import (
    HandshakeProtocol,
    Refusal,
    check_request,
    check_standing,
    check_token,
    problem,
)
from edge.node import Node
from edge.outbound import PING_FRAME, OutboundQueue, payload_of
from edge.session import HEARTBEAT_S, Execute, Session
from shared.auth import Identity
from shared.protocol import CLOSE_REASONS, CloseCode, ErrorCode

HANDSHAKE_S: Final = 5.0
WRITE_S: Final = 5.0
"""A socket that takes nothing for this long is cut: the close frame would wait behind what it does not read."""

CLOSE_S: Final = 2.0
"""How long the peer may take to answer our close frame."""

WRITE_BUFFER_BYTES: Final = 32 * 1024
FRAGMENTS_MAX: Final = 1_024


class Door(Protocol):
    """The gateway, as far as its sockets know it."""

    def entered(self, connection: "Connection") -> bool:
        """Note a new socket; False when even a refusal would be one socket too many."""

    def left(self, connection: "Connection") -> None:
        """Note that a socket is gone."""

    def why_closed(self, connection: "Connection") -> Refusal | None:
        """Return why this socket may not come in, None when it may."""


class Connection(asyncio.Protocol):
    """A socket, from accept to close. Its session exists from the accepted handshake on."""

    def __init__(
        self, node: Node, door: Door, protocol: HandshakeProtocol, execute: Execute
    ) -> None:
        self.address = ""
        self.session: Session | None = None
        self._node = node
        self._door = door
        self._execute = execute
        self._protocol = protocol
        self._transport: asyncio.Transport
        self._queue: OutboundQueue
        self._extensions: list[Extension] = []
        self._opened_at = node.clock()
        self._closing_at: float | None = None
        self._close_code: int | None = None
        self._parts: list[bytes] = []
        self._inbox: deque[Frame] = deque()
        self._is_reading = True
        self._heard = True
        self._pinged_at = self._opened_at

    # ------------------------------------------------------------------ the transport's callbacks

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket in; its first bytes are a handshake."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._queue = OutboundQueue(self._transport.write, self._node.flusher)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        if not self._door.entered(self):
            self._transport.abort()

    @override
    def data_received(self, data: bytes) -> None:
        """Take bytes: a handshake first, frames after it."""
        self._heard = True
        protocol = self._protocol
        protocol.receive_data(data)
        for event in protocol.events_received():
            if self._closing_at is not None:
                break
            if isinstance(event, Request):
                self._shake_hands(event)
            elif isinstance(event, Frame):
                self._take_or_keep(event)
        self._write_protocol()

    @override
    def eof_received(self) -> None:
        """The peer sends nothing any more: the transport closes itself."""
        self._protocol.receive_eof()

    @override
    def pause_writing(self) -> None:
        """The peer does not read what it was sent."""
        self._queue.pause(self._node.clock())

    @override
    def resume_writing(self) -> None:
        """The peer reads again."""
        self._queue.resume()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone; nothing is sent any more."""
        del exc
        self._queue.abandon()
        self._inbox.clear()
        if self.session is not None:
            self.session.end()
            self._count_close()
        self._door.left(self)

    # ------------------------------------------------------------------ what the session asks for

    def send(self, frame: bytes) -> bool:
        """Queue an encoded frame; False when there is no room for it."""
        if self._extensions:
            frame = self._compressed(frame)
        return self._queue.push(frame)

    def send_ephemeral(self, frame: bytes) -> None:
        """Queue an encoded frame that may be dropped."""
        if self._extensions:
            frame = self._compressed(frame)
        self._queue.push_ephemeral(frame)

    @property
    def has_room(self) -> bool:
        """Whether less than half of the outbound queue is taken."""
        return self._queue.has_room

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call back once, when the outbound queue has been written or given up."""
        self._queue.when_room(callback)

    def close(self, code: CloseCode) -> None:
        """Close with this code, after what is queued; a slow session loses its queue instead."""
        if self._closing_at is not None:
            return
        self._start_closing(code)
        if self._protocol.state is not State.OPEN:
            self._transport.abort()
            return
        self._protocol.send_close(code, CLOSE_REASONS[code])
        self._queue.finish(
            b"".join(self._protocol.data_to_send()), keep=code is not CloseCode.SLOW_CLIENT
        )

    def read_on(self) -> None:
        """Read again, once the caller is done, if reading was paused and may go on."""
        if not self._is_reading:
            asyncio.get_running_loop().call_soon(self._empty_inbox)

    # ------------------------------------------------------------------ what the gateway asks for

    def check(self, now: float) -> None:
        """Look at every deadline of the socket. Called about once a second with the monotonic time."""
        queue = self._queue
        if self._closing_at is not None:
            if now - self._closing_at >= CLOSE_S:
                self._transport.abort()
        elif self.session is None:
            if now - self._opened_at >= HANDSHAKE_S:
                self._node.metrics.handshakes.of("late").value += 1
                self._start_closing(None)
                self._transport.abort()
        elif queue.paused_at is not None and now - queue.paused_at >= WRITE_S:
            self._start_closing(CloseCode.SLOW_CLIENT)
            self._transport.abort()
        else:
            self.session.check(now)
            self._check_life(now)

    def abort(self) -> None:
        """Cut the socket without a word."""
        self._start_closing(self._close_code)
        self._transport.abort()

    def _check_life(self, now: float) -> None:
        if now - self._pinged_at < HEARTBEAT_S:
            return
        # While we do not read, silence says nothing about the peer.
        if not self._heard and self._is_reading:
            self._start_closing(None)
            self._transport.abort()
            return
        self._heard = False
        self._pinged_at = now
        self._queue.push(PING_FRAME)

    # ------------------------------------------------------------------ in

    def _shake_hands(self, request: Request) -> None:
        protocol, node = self._protocol, self._node
        identity = None
        refusal = check_request(request) or self._door.why_closed(self)
        response = problem(refusal) if refusal is not None else protocol.accept(request)
        if response.status_code == 101:
            found = check_token(request, node.verifier)
            if isinstance(found, Identity):
                found = check_standing(found, node.standing)
            if isinstance(found, Refusal):
                response = problem(found)
            else:
                identity = found
        protocol.send_response(response)
        result = "accepted" if response.status_code == 101 else str(response.status_code)
        node.metrics.handshakes.of(result).value += 1
        if response.status_code != 101:
            return
        self._queue.push(b"".join(protocol.data_to_send()))
        self._extensions = protocol.extensions
        self._pinged_at = node.clock()
        self.session = Session(node, self, self._execute)
        if identity is not None:
            self.session.begin(identity)

    def _take_or_keep(self, frame: Frame) -> None:
        session = self.session
        assert session is not None, "frames come after the handshake"  # noqa: S101
        if self._is_reading and not self._inbox and not session.is_saturated:
            self._take(frame)
            return
        self._inbox.append(frame)
        self._stop_reading()

    def _take(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.TEXT and frame.fin:
            self._take_text(bytes(frame.data))
        elif opcode is Opcode.TEXT:
            self._parts = [bytes(frame.data)]
        elif opcode is Opcode.CONT:
            self._parts.append(bytes(frame.data))
            if frame.fin:
                text, self._parts = b"".join(self._parts), []
                self._take_text(text)
            elif len(self._parts) > FRAGMENTS_MAX:
                self.close(CloseCode.TOO_BIG)
        elif opcode is Opcode.BINARY:
            self.close(CloseCode.UNSUPPORTED_DATA)

    def _take_text(self, text: bytes) -> None:
        session = self.session
        assert session is not None, "frames come after the handshake"  # noqa: S101
        if not text.isascii() and not _is_utf8(text):
            self.close(CloseCode.INVALID_DATA)
            return
        session.receive(text)
        if session.is_saturated:
            self._stop_reading()

    def _stop_reading(self) -> None:
        if self._is_reading and self._closing_at is None:
            self._is_reading = False
            self._transport.pause_reading()

    def _empty_inbox(self) -> None:
        session = self.session
        assert session is not None, "reading is paused by a session"  # noqa: S101
        while self._inbox and self._closing_at is None and not session.is_saturated:
            self._take(self._inbox.popleft())
        if not self._inbox and not session.is_saturated and self._closing_at is None:
            self._is_reading = True
            self._transport.resume_reading()

    # ------------------------------------------------------------------ out

    def _write_protocol(self) -> None:
        """Write what the library has to say: pongs, the answer to a close, a refused handshake."""
        protocol = self._protocol
        writes = protocol.data_to_send()
        if not writes:
            return
        if protocol.state is State.OPEN and self._closing_at is None:
            if not self._queue.push(b"".join(writes)):
                self.close(CloseCode.SLOW_CLIENT)
            return
        if self.session is None and writes == [SEND_EOF]:
            self._node.metrics.handshakes.of("400").value += 1
            detail = "This is no HTTP request of a WebSocket handshake."
            writes.insert(0, problem(Refusal(400, ErrorCode.UNSUPPORTED, detail)).serialize())
        self._start_closing(_sent_code(protocol))
        self._queue.finish(b"".join(writes), keep=True)
        if SEND_EOF in writes:
            self._transport.close()

    def _start_closing(self, code: int | None) -> None:
        if self._closing_at is None:
            self._closing_at = self._node.clock()
            self._close_code = code
            if self.session is not None:
                self.session.end()
            # The peer's answer to our close frame has to be read, whatever was paused.
            self._inbox.clear()
            if not self._is_reading:
                self._is_reading = True
                self._transport.resume_reading()

    def _compressed(self, frame: bytes) -> bytes:
        return Frame(Opcode.TEXT, payload_of(frame)).serialize(
            mask=False, extensions=self._extensions
        )

    def _count_close(self) -> None:
        code = self._close_code if self._close_code in _KNOWN_CODES else None
        self._node.metrics.closes.of("lost" if code is None else str(code)).value += 1
        self._node.metrics.events_dropped.of("ephemeral").value += self._queue.dropped


_KNOWN_CODES: Final = frozenset(int(code) for code in CloseCode)


def _sent_code(protocol: HandshakeProtocol) -> int | None:
    return None if protocol.close_sent is None else protocol.close_sent.code


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
