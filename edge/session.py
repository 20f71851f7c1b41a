"""One authenticated connection: its state, its lane of commands, its answers. The socket is ``edge.connection``'s.

Commands take effect in the order in which they came. Most do so at once; one that has to wait for NATS (an access
entry that is not cached, attaching a thread) keeps its successors in the lane. What waits for an acknowledgement of
the log does not: the sender keeps the order of one thread by itself.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import msgspec

from edge.fanout import Subscription
from edge.limits import (
    BAD_FRAMES_MAX,
    LIMIT_ERRORS_MAX,
    SUBSCRIPTIONS_MAX,
    UNANSWERED_MAX,
    CommandRate,
    ErrorCount,
)
from edge.node import Node
from edge.outbound import text_frame
from shared.auth import Identity
from shared.errors import TokenError
from shared.events import timestamp
from shared.identity import ThreadId, UserId, new_id
from shared.protocol import (
    ATTACHMENTS_MAX,
    BODY_CHARS_MAX,
    FRAME_BYTES_MAX,
    MEANING,
    RETRYABLE,
    SUBPROTOCOL,
    Ack,
    AnyCommand,
    AnyFrame,
    Auth,
    CloseCode,
    Detail,
    Error,
    ErrorCode,
    Features,
    FrameError,
    Hello,
    Limits,
    Ping,
    Quota,
    RateLimit,
    SendMessage,
    parse_command,
)

AUTH_S: Final = 5.0
HEARTBEAT_S: Final = 20.0
_BAD_FRAMES: Final = frozenset({ErrorCode.BAD_FRAME, ErrorCode.UNKNOWN_TYPE, ErrorCode.INVALID})
_LATEST: Final = datetime.max.replace(tzinfo=UTC).timestamp() - 1
_ENCODER: Final = msgspec.json.Encoder()
_log = logging.getLogger(__name__)


class Wire(Protocol):
    """The socket of a session."""

    def send(self, frame: bytes) -> bool:
        """Queue an encoded frame; False when there is no room for it."""

    def send_ephemeral(self, frame: bytes) -> None:
        """Queue an encoded frame that may be dropped."""

    @property
    def has_room(self) -> bool:
        """Whether less than half of the outbound queue is taken."""
        ...

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call back once, when the outbound queue has been written or given up."""

    def close(self, code: CloseCode) -> None:
        """Close with this code, after what is queued; ends the session."""

    def read_on(self) -> None:
        """Read again, if reading was paused because too many commands were unanswered."""


Execute = Callable[["Session", AnyCommand], Coroutine[Any, Any, None] | None]
"""Runs a command of a session: at once, or by the coroutine that it returns. It is answered exactly once."""


class Session:
    """One WebSocket connection of a user, from the handshake to the close."""

    __slots__ = (
        "_bad_frames",
        "_busy",
        "_execute",
        "_lane",
        "_limit_errors",
        "_rate",
        "_wire",
        "ended",
        "identity",
        "node",
        "opened_at",
        "session_id",
        "subscriptions",
        "unanswered",
        "user_id",
    )

    def __init__(self, node: Node, wire: Wire, execute: Execute) -> None:
        self.node = node
        self._execute = execute
        self.session_id = new_id()
        self.opened_at = node.clock()
        self.identity: Identity | None = None
        self.user_id = UserId("")
        self.subscriptions: dict[ThreadId, Subscription] = {}
        self.unanswered = 0
        self.ended = False
        self._wire = wire
        self._rate = CommandRate(self.opened_at)
        self._bad_frames = ErrorCount(BAD_FRAMES_MAX)
        self._limit_errors = ErrorCount(LIMIT_ERRORS_MAX)
        self._lane: deque[AnyCommand] = deque()
        self._busy = False

    # ------------------------------------------------------------------ life

    def begin(self, identity: Identity) -> None:
        """Start as this user: ``hello`` is the first frame, and the user's feed is followed from now on."""
        self.identity = identity
        self.user_id = identity.user_id
        self.node.feeds.join(self)
        self.node.introductions.introduce(identity)
        self.say(self._hello(identity))

    def renew(self, identity: Identity) -> None:
        """Go on with a newer token of the same user; its role acts from the next command on."""
        self.identity = identity
        self.node.introductions.introduce(identity)

    def check(self, now: float) -> None:
        """Close when authentication is late or the token has expired. Called about once a second."""
        if self.identity is None:
            if now - self.opened_at >= AUTH_S:
                # Its first frame may be waiting here until bans are known again: that is not the client's fault.
                is_heard = self.node.standing.is_confirmed
                self.close(
                    CloseCode.AUTHENTICATION_MISSING if is_heard else CloseCode.TRY_AGAIN_LATER
                )
        elif self.node.wall() >= self.identity.expires_at:
            self.close(CloseCode.TOKEN_EXPIRED)

    def close(self, code: CloseCode) -> None:
        """Close the socket with this code."""
        self._wire.close(code)

    def end(self) -> None:
        """Forget everything about the session: its socket is closing. Twice does nothing."""
        if self.ended:
            return
        self.ended = True
        self._lane.clear()
        for thread_id in tuple(self.subscriptions):
            self.node.threads.leave(self, thread_id)
        if self.identity is not None and self.node.feeds.leave(self):
            self.node.rate.release(self.user_id)

    # ------------------------------------------------------------------ commands

    @property
    def is_saturated(self) -> bool:
        """Whether no more should be read now: too many commands are unanswered, or bans are not known for certain."""
        return self.unanswered >= UNANSWERED_MAX or not self.node.standing.is_confirmed

    def receive(self, text: bytes) -> None:
        """Take one text frame, valid UTF-8."""
        # Before anything looks at it: whoever must go has said nothing any more.
        code = None if self.identity is None else self.node.standing.why_closed(self.identity)
        if code is not None:
            self.close(code)
            return
        try:
            command = parse_command(text)
        except FrameError as error:
            self._refuse_frame(error)
            return
        self.node.received[type(command)].value += 1
        if self.identity is None:
            self._authenticate(command)
            return
        if type(command) is not SendMessage:
            wait_ms = self._rate.take(self.node.clock())
            if wait_ms is not None:
                self.refuse(ErrorCode.RATE_LIMITED, command.ref, retry_after_ms=wait_ms)
                return
        self.unanswered += 1
        # These two change nothing that another command looks at before it takes effect.
        if self._busy and not isinstance(command, Ping | Auth):
            self._lane.append(command)
        else:
            self._run(command)

    def _run(self, command: AnyCommand) -> None:
        try:
            work = self._execute(self, command)
        except Exception:
            self._fail_unforeseen(command)
            return
        if work is not None:
            self._busy = True
            self.node.spawn(self._finish(command, work))

    async def _finish(self, command: AnyCommand, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            self._fail_unforeseen(command)
        self._busy = False
        while self._lane and not self._busy:
            self._run(self._lane.popleft())

    def _fail_unforeseen(self, command: AnyCommand) -> None:
        # The client hears it and the log names it; the other commands of the session go on.
        _log.exception("a command failed: %s", command.__struct_config__.tag)
        self.fail(ErrorCode.INTERNAL, command.ref)

    def _authenticate(self, command: AnyCommand) -> None:
        if not isinstance(command, Auth):
            self.close(CloseCode.AUTHENTICATION_MISSING)
            return
        try:
            identity = self.node.verifier.verify(command.token)
        except TokenError as error:
            self.close(CloseCode.TOKEN_EXPIRED if error.expired else CloseCode.TOKEN_INVALID)
            return
        code = self.node.standing.why_closed(identity)
        if code is not None:
            self.close(code)
            return
        self.begin(identity)
        if command.ref is not None:
            self.say(Ack(command.ref, token_expires_at=expiry(identity)))

    # ------------------------------------------------------------------ answers

    def push(self, frame: bytes) -> None:
        """Queue an encoded frame that must arrive; a session without room for it is closed as slow."""
        if not self._wire.send(frame):
            self.close(CloseCode.SLOW_CLIENT)

    @property
    def has_room(self) -> bool:
        """Whether less than half of the outbound queue is taken, and more may be sent that can wait."""
        return self._wire.has_room

    async def room(self) -> None:
        """Wait until the outbound queue has been written, or the session has ended."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wire.when_room(lambda: None if written.done() else written.set_result(None))
        if not self.ended and not self.has_room:
            await written

    def push_ephemeral(self, frame: bytes) -> None:
        """Queue an encoded frame that may be dropped."""
        self._wire.send_ephemeral(frame)

    def say(self, frame: AnyFrame) -> None:
        """Encode and queue a frame for this session alone."""
        self.push(text_frame(_ENCODER.encode(frame)))

    def succeed(self, ack: Ack | None) -> None:
        """Answer a command that took effect; None when it carried no ``ref``."""
        if ack is not None:
            self.say(ack)
        self._answered()

    def fail(
        self,
        code: ErrorCode,
        ref: str | None,
        *,
        details: list[Detail] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        """Answer a command that changed nothing."""
        self.refuse(code, ref, details=details, retry_after_ms=retry_after_ms)
        self._answered()

    def refuse(
        self,
        code: ErrorCode,
        ref: str | None,
        *,
        details: list[Detail] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        """Say an error. The third bad frame and the tenth limit error within a minute are answered, and the last."""
        if self.ended:
            return
        self.node.metrics.errors.of(code).value += 1
        self.say(
            Error(
                code=code,
                message=MEANING[code],
                retryable=code in RETRYABLE,
                ref=msgspec.UNSET if ref is None else ref,
                retry_after_ms=msgspec.UNSET if retry_after_ms is None else retry_after_ms,
                details=details or msgspec.UNSET,
            )
        )
        if code in _BAD_FRAMES and self._bad_frames.is_full(self.node.clock()):
            self.close(CloseCode.POLICY_VIOLATION)
        elif code is ErrorCode.RATE_LIMITED and self._limit_errors.is_full(self.node.clock()):
            self.close(CloseCode.RATE_LIMITED)

    def _refuse_frame(self, error: FrameError) -> None:
        self.node.metrics.frames_in.of("refused").value += 1
        if self.identity is None:
            self.close(CloseCode.AUTHENTICATION_MISSING)
        else:
            self.refuse(error.code, error.ref, details=error.details)

    def _answered(self) -> None:
        self.unanswered -= 1
        if self.unanswered == UNANSWERED_MAX // 2:
            self._wire.read_on()

    def _hello(self, identity: Identity) -> Hello:
        settings = self.node.settings
        limit = settings.messaging_throttle_limit
        return Hello(
            protocol=SUBPROTOCOL,
            session_id=self.session_id,
            user_id=self.user_id,
            node=self.node.name,
            heartbeat_s=HEARTBEAT_S,
            server_time=timestamp(),
            token_expires_at=expiry(identity),
            features=Features(
                clips=settings.messaging_enable_clips,
                analytics=settings.messaging_enable_analytics,
                typing=settings.messaging_enable_typing_indicators,
                receipts=settings.messaging_enable_read_receipts,
            ),
            quota=Quota(gated=False, remaining=None),
            limits=Limits(
                frame_bytes=FRAME_BYTES_MAX,
                body_chars=BODY_CHARS_MAX,
                attachments=ATTACHMENTS_MAX,
                subscriptions=SUBSCRIPTIONS_MAX,
                rate=RateLimit(limit, settings.messaging_throttle_ttl) if limit else None,
            ),
        )


def expiry(identity: Identity) -> str:
    """Return when the token ends, as the wire has it."""
    return timestamp(datetime.fromtimestamp(min(identity.expires_at, _LATEST), UTC))
