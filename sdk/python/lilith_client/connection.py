"""The I/O: one WebSocket after another, for as long as the server lets us come back. Decisions are ``state``'s.

Per connection one task writes what is due and the reading loop hands frames to the state; gaps are filled beside
them. All of them end with the connection.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from lilith_client.errors import (
    ClientError,
    ClosedError,
    CommandError,
    DisconnectedError,
    StoppedError,
)
from lilith_client.ids import unix_ms_of
from lilith_client.inbox import Inbox
from lilith_client.lanes import Settled
from lilith_client.objects import CONNECTED, DISCONNECTED, Event, Hello
from lilith_client.policy import (
    TOKEN_EXPIRED,
    Backoff,
    Rotation,
    may_reconnect,
    may_retry_handshake,
)
from lilith_client.refill import refill
from lilith_client.rest import Rest, Token
from lilith_client.state import Drain, Effect, State, decode
from lilith_client.subscriptions import Fill

SUBPROTOCOL: Final = Subprotocol("messaging.v1.json")
HANDSHAKE_S: Final = 10.0
HEARTBEAT_S: Final = 20.0
FRAME_BYTES_MAX: Final = 1024 * 1024
HELD_LONG_ENOUGH_S: Final = 5.0
DEADLINE_TICK_S: Final = 0.1
FILLS_MAX: Final = 4
RENEW_BEFORE_S: Final = 60.0
_UNAUTHORIZED: Final = 401
_NORMAL: Final = 1000
_PROTOCOL_ERROR: Final = 1002
_ABNORMAL: Final = 1006


@dataclass(frozen=True, slots=True)
class Options:
    """How to connect. ``authenticate``: in the handshake, or as browsers must, by the first frame."""

    addresses: Sequence[str]
    token: Token
    authenticate: Literal["header", "frame"] = "header"
    proxy: str | None = None


class _Ended(NamedTuple):
    """How an attempt or a connection ended."""

    code: int | None
    reason: str
    final: bool = False
    held: bool = False
    wait_s: float | None = None


class Connection:
    """Keeps the state connected until ``run`` is cancelled or the server says not to come back."""

    def __init__(self, options: Options, state: State, inbox: Inbox, rest: Rest | None) -> None:
        """What a session of one user needs; ``greeted`` is set while ``hello`` is there, and when we stopped."""
        self.hello: Hello | None = None
        self.token: Token = options.token
        self.stopped: StoppedError | None = None
        self.greeted = asyncio.Event()
        self._options = options
        self._state = state
        self._inbox = inbox
        self._rest = rest
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._entropy = random.Random()  # noqa: S311 - jitter
        self._rotation = Rotation(options.addresses)
        self._backoff = Backoff(self._entropy)
        self._wake = asyncio.Event()
        self._fills = asyncio.Semaphore(FILLS_MAX)
        self._refused_tokens = 0
        inbox.on_room = self._room

    async def ask(self, ref: str) -> dict[str, Any]:
        """Wait for the outcome of what the state queued as ``ref``; return the fields of its ``ack``.

        Raises:
            ClientError: It was refused, its deadline passed, or the client stopped.
        """
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[ref] = future
        self._wake.set()
        try:
            return await future
        finally:
            self._waiting.pop(ref, None)

    def abandon(self, ref: str, reason: str) -> None:
        """Let whoever waits for ``ref`` hear that there will be no outcome."""
        self._settle([Settled(ref, ClientError(reason))])

    async def run(self) -> None:
        """Stay connected until this is cancelled or the server will not have us back; ``stopped`` says which."""
        stopped: StoppedError = ClosedError()
        ticker = asyncio.create_task(self._expire(), name="lilith-deadlines")
        try:
            while not (ended := await self._connect_once()).final:
                await self._pause(ended)
            stopped = StoppedError(ended.code, ended.reason)
        except Exception as error:
            # A source of tokens that fails, or a bug: whoever waits must hear it, for nobody awaits this task.
            stopped = StoppedError(None, repr(error))
            raise
        finally:
            ticker.cancel()
            self._end(stopped)

    async def _pause(self, ended: _Ended) -> None:
        self._rotation.advance()
        if ended.held:
            self._backoff.reset()
        wait_s = ended.wait_s if ended.wait_s is not None else self._backoff.next_s()
        data = {"code": ended.code, "reason": ended.reason, "retry_in_s": round(wait_s, 3)}
        self._inbox.put(Event(DISCONNECTED, data, "client"))
        await asyncio.sleep(wait_s)

    async def _connect_once(self) -> _Ended:
        """Make one connection and serve it to its end."""
        token = self.token if isinstance(self.token, str) else await self.token()
        try:
            async with self._socket(token) as socket:
                return await self._serve(socket, token)
        except InvalidStatus as error:
            return self._handshake_refused(error.response.status_code)
        except (OSError, InvalidHandshake, TimeoutError, EOFError) as error:
            return _Ended(None, f"no connection: {_text(error)}")

    @asynccontextmanager
    async def _socket(self, token: str) -> AsyncIterator[ClientConnection]:
        in_header = self._options.authenticate == "header"
        socket = await connect(
            self._rotation.current,
            subprotocols=[SUBPROTOCOL],
            additional_headers={"Authorization": f"Bearer {token}"} if in_header else None,
            compression=None,
            open_timeout=HANDSHAKE_S,
            ping_interval=HEARTBEAT_S,
            ping_timeout=HEARTBEAT_S,
            close_timeout=1.0,
            max_size=FRAME_BYTES_MAX,
            proxy=self._options.proxy,
        )
        try:
            yield socket
        finally:
            await socket.close()

    async def _serve(self, socket: ClientConnection, token: str) -> _Ended:
        opened_at = time.monotonic()
        leaving = False
        try:
            await self._greet(socket, token)
            async with asyncio.TaskGroup() as tasks:
                helpers = [
                    tasks.create_task(self._write(socket), name="lilith-write"),
                    tasks.create_task(self._renew_in_time(), name="lilith-renew"),
                ]
                leaving = await self._read(socket, tasks, helpers)
                for helper in helpers:
                    helper.cancel()
        except ConnectionClosed:
            pass  # Before the hello; the code is on the socket.
        except (ClientError, TimeoutError) as error:
            return _Ended(None, f"no hello: {_text(error)}")
        finally:
            self.hello = None
            self.greeted.clear()
            self._settle(self._state.close())
        return self._closed(socket, opened_at, leaving=leaving)

    async def _read(
        self, socket: ClientConnection, tasks: asyncio.TaskGroup, helpers: list[asyncio.Task[None]]
    ) -> bool:
        """Hand frames on until the connection ends; return whether the node had said that it stops."""
        leaving = False
        try:
            async for data in socket:
                for effect in self._receive(data):
                    match effect:
                        case Settled():
                            self._settle([effect])
                        case Event():
                            self._inbox.put(effect)
                        case Fill():
                            helpers.append(tasks.create_task(self._fill(effect)))
                        case Drain(within_s):
                            leaving = True
                            helpers.append(tasks.create_task(self._leave(socket, within_s)))
                helpers[:] = [helper for helper in helpers if not helper.done()]
        except ConnectionClosed:
            pass  # The code is on the socket.
        except ClientError as error:
            # Not our protocol. Better a new connection, which resumes, than a state that guesses.
            await socket.close(_PROTOCOL_ERROR, str(error)[:100])
        return leaving

    async def _greet(self, socket: ClientConnection, token: str) -> None:
        """Authenticate when the handshake has not, and take the server's ``hello``."""
        if self._options.authenticate == "frame":
            await socket.send(_encode({"type": "auth", "token": token}))
        async with asyncio.timeout(HANDSHAKE_S):
            frame = decode(await socket.recv())
        try:
            hello = msgspec.convert(frame, Hello)
            self._state.open(hello, time.monotonic(), local_ms=time.time_ns() // 1_000_000)
        except ValueError as error:
            raise ClientError(str(error)) from error
        self._refused_tokens = 0
        self.hello = hello
        self.greeted.set()
        self._inbox.put(
            Event(CONNECTED, {"address": self._rotation.current, "hello": frame}, "client")
        )

    def _receive(self, data: str | bytes) -> list[Effect]:
        frame = decode(data)
        try:
            effects = self._state.receive(frame, time.monotonic(), room=self._inbox.has_room)
        except (KeyError, TypeError) as error:
            raise ClientError(f"a {frame['type']} without {error}") from error
        self._wake.set()
        return effects

    async def _write(self, socket: ClientConnection) -> None:
        while True:
            self._wake.clear()
            try:
                for frame in self._state.due(time.monotonic()):
                    await socket.send(_encode(frame))
            except ConnectionClosed:
                return  # The reading loop sees it too, and ends the connection.
            try:
                async with asyncio.timeout(self._state.wait_s(time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _fill(self, fill: Fill) -> None:
        async with self._fills:
            await refill(fill, self._rest, self._state.subscriptions, self._inbox)
        self._wake.set()  # The thread is subscribed again.

    async def _leave(self, socket: ClientConnection, within_s: float) -> None:
        """Go before the node does, at a random moment, so that its clients do not all arrive elsewhere at once."""
        await asyncio.sleep(self._entropy.uniform(0, within_s))
        await socket.close(_NORMAL, "draining")

    async def _renew_in_time(self) -> None:
        """Put a fresh token in before the old one expires, when there is a source of fresh ones."""
        while self.hello is not None and not isinstance(self.token, str):
            now_ms = self._state.ids.server_ms(time.time_ns() // 1_000_000)
            left_s = (unix_ms_of(self.hello.token_expires_at) - now_ms) / 1000
            await asyncio.sleep(max(1.0, left_s - min(RENEW_BEFORE_S, left_s / 2)))
            # Refused, the old one still holds for a while, and the next round tries again.
            with suppress(CommandError, DisconnectedError):
                await self.renew(await self.token())

    async def renew(self, token: str) -> None:
        """Authenticate the open connection again.

        Raises:
            ClientError: The token was refused (the old one stays), or there is no connection.
        """
        ack = await self.ask(self._state.command({"type": "auth", "token": token}))
        if self.hello is not None:
            expires_at = ack["token_expires_at"]
            self.hello = msgspec.structs.replace(self.hello, token_expires_at=expires_at)

    def _handshake_refused(self, status: int) -> _Ended:
        fresh = status == _UNAUTHORIZED and self._may_try_another_token()
        final = not may_retry_handshake(status) and not fresh
        return _Ended(status, f"the handshake was refused with {status}", final=final)

    def _closed(self, socket: ClientConnection, opened_at: float, *, leaving: bool) -> _Ended:
        code = socket.close_code or _ABNORMAL
        final = not may_reconnect(code)
        if code == TOKEN_EXPIRED:
            final = not self._may_try_another_token()
        held = time.monotonic() - opened_at >= HELD_LONG_ENOUGH_S
        wait_s = 0.0 if leaving and code == _NORMAL else None
        return _Ended(code, socket.close_reason or "closed", final, held, wait_s)

    def _may_try_another_token(self) -> bool:
        """Return whether a refused token can be replaced; a second refusal in a row is the last."""
        self._refused_tokens += 1
        return not isinstance(self.token, str) and self._refused_tokens < 2

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(DEADLINE_TICK_S)
            self._settle(self._state.expired(time.monotonic()))

    def _room(self) -> None:
        for event in self._state.room():
            self._inbox.put(event)
        self._wake.set()

    def _settle(self, settled: Sequence[Settled]) -> None:
        for ref, outcome in settled:
            future = self._waiting.pop(ref, None)
            if future is None or future.done():
                continue
            if isinstance(outcome, ClientError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _end(self, stopped: StoppedError) -> None:
        self.stopped = stopped
        self.greeted.set()
        self._settle(self._state.stop())
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(stopped)
        self._inbox.end(stopped)


def _encode(frame: dict[str, Any]) -> str:
    return msgspec.json.encode(frame).decode()


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
