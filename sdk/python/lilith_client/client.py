"""The client that programs use: connect, subscribe, send, and read events."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self

import msgspec

from lilith_client.connection import Connection, Options
from lilith_client.errors import ClosedError, CommandError, RestError
from lilith_client.inbox import Inbox
from lilith_client.objects import Event, Hello, Message, Position, Sent, Subscribed, Synced
from lilith_client.rest import Rest, Token
from lilith_client.state import State

CONNECT_S: Final = 30.0
SEND_DEADLINE_S: Final = 150.0
"""Below three minutes, in which the log itself knows a message by its id: automatic retries stay cheap."""
UNSETTLED_MAX: Final = 1_000
EVENTS_MAX: Final = 1_000


class Client:
    """One user's session, kept alive over any number of connections.

    ::

        async with Client(["ws://a/ws/messaging", "ws://b/ws/messaging"], token, api="http://a:8080") as client:
            await client.subscribe(thread_id)
            await client.send(thread_id, "hello")
            async for event in client.events():
                print(event.type, event.data)

    Args:
        addresses: WebSocket addresses of edges, the preferred one first; after a failure the next is tried.
        token: The JWT, or a coroutine function that returns a fresh one.
        api: Address of the REST api; without it gaps are told as ``client.gap`` events instead of being filled.
        authenticate: ``header`` (in the handshake) or ``frame`` (as browsers must).
        on_event: Called for each event at once, instead of ``events()``. It must not block.
        events_max: Events that wait for ``events()``; beyond it they are dropped and read again later.
        proxy: Address of an HTTP proxy for the WebSocket.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        token: Token,
        *,
        api: str | None = None,
        authenticate: Literal["header", "frame"] = "header",
        on_event: Callable[[Event], None] | None = None,
        events_max: int = EVENTS_MAX,
        proxy: str | None = None,
    ) -> None:
        self.rest = Rest(api, token) if api else None
        self.sync_cursor: str | None = None
        self._state = State(random.SystemRandom())
        self._inbox = Inbox(events_max, on_event)
        options = Options(addresses, token, authenticate, proxy)
        self._connection = Connection(options, self._state, self._inbox, self.rest)
        self._room = asyncio.Semaphore(UNSETTLED_MAX)
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def hello(self) -> Hello | None:
        """What the server said on the present connection, None while there is none."""
        return self._connection.hello

    @property
    def unsettled(self) -> int:
        """How many messages are neither sent nor failed yet."""
        return len(self._state.lanes)

    async def connect(self, *, timeout_s: float = CONNECT_S) -> Hello:
        """Connect for the first time, trying every address, and return the server's ``hello``.

        Raises:
            StoppedError: The server refuses us for good (a bad token, a ban).
            TimeoutError: No edge could be reached in ``timeout_s``.
        """
        self._running = asyncio.create_task(self._connection.run(), name="lilith-client")
        try:
            async with asyncio.timeout(timeout_s):
                while (hello := self._connection.hello) is None:
                    await self._connection.greeted.wait()
                    self._raise_if_stopped()
        except BaseException:
            await self.close()
            raise
        return hello

    async def close(self) -> None:
        """Disconnect. Whatever is unsettled ends with what is known about it."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # Every caller has heard of it already.

    async def send(
        self,
        thread_id: str,
        body: str,
        *,
        client_msg_id: str | None = None,
        attachments: Sequence[dict[str, str]] = (),
        reply_to: str | None = None,
        metadata: dict[str, Any] | None = None,
        deadline_s: float = SEND_DEADLINE_S,
    ) -> Sent:
        """Send a message and return when it is stored; several to one thread arrive in the order of the calls.

        Whatever is unknown is tried again with the same id until ``deadline_s``. Cancelling does not take it back.

        Raises:
            CommandError: Refused; nothing is stored.
            OutcomeUnknownError: Stored or not; call again with ``client_msg_id`` to find out.
            DisconnectedError: Never written to any connection; nothing is stored.
            StoppedError: The client is closed.
        """
        async with self._room:
            self._raise_if_stopped()
            frame: dict[str, Any] = {
                "type": "message.send",
                "thread_id": thread_id,
                "client_msg_id": client_msg_id or self.new_message_id(),
                "body": body,
            }
            if attachments:
                frame["attachments"] = list(attachments)
            if reply_to is not None:
                frame["reply_to"] = reply_to
            if metadata:
                frame["metadata"] = metadata
            now = time.monotonic()
            ref = self._state.send(frame, now=now, deadline=now + deadline_s)
            return msgspec.convert(await self._connection.ask(ref), Sent)

    def new_message_id(self) -> str:
        """Return a new ``client_msg_id`` on the server's clock, to be kept until the message is settled."""
        return self._state.ids.new(time.time_ns() // 1_000_000)

    async def subscribe(
        self, thread_id: str, *, after: Position | Message | str | None = None
    ) -> Subscribed:
        """Receive a thread's events from now on, or after a position; kept over reconnects, without gaps.

        With ``after``, ``thread.caught_up`` follows the last change that was missed.

        Raises:
            CommandError: Refused (``not_found``: not yours to see).
            StoppedError: The client is closed.
        """
        self._raise_if_stopped()
        match after:
            case Message():
                position: Position | None = Position(after.cursor, after.seq)
            case str():
                position = Position(after, 0 if after == "0" else None)
            case _:
                position = after
        self._give_up(thread_id)
        ack = await self._connection.ask(self._state.subscribe(thread_id, position))
        return msgspec.convert(ack, Subscribed)

    async def unsubscribe(self, thread_id: str) -> None:
        """Receive a thread's events no longer.

        Raises:
            DisconnectedError: There is no connection; the thread is not subscribed on the next one.
        """
        if self._give_up(thread_id):
            await self._ask({"type": "thread.unsubscribe", "thread_id": thread_id})

    def position(self, thread_id: str) -> Position | None:
        """Return the position after the last event of a subscribed thread: what ``subscribe`` takes as ``after``."""
        return self._state.subscriptions.position(thread_id)

    async def sync(self) -> Synced:
        """Return the threads that changed since the last call: after ``client.connected`` and ``sync.required``.

        The first call returns all of them, unless ``sync_cursor`` was set to what an earlier run of the program kept.

        Raises:
            RestError: The api refuses, cannot be reached, or was not given; ``sync_cursor`` stays.
        """
        if self.rest is None:
            raise RestError(0, "unreachable", "the client was made without the address of the api")
        synced = await self.rest.sync(self.sync_cursor)
        self.sync_cursor = synced.cursor
        return synced

    async def typing(self, thread_id: str, *, active: bool = True) -> None:
        """Say that the user types, or stopped; repeat it every few seconds while it lasts.

        Raises:
            CommandError: Refused. Nobody needs to know.
            DisconnectedError: There is no connection.
        """
        kind = "typing.start" if active else "typing.stop"
        await self._ask({"type": kind, "thread_id": thread_id})

    async def mark_read(
        self, thread_id: str, *, seq: int | None = None, message_id: str | None = None
    ) -> int:
        """Mark everything of others as read, up to a position or a message; return where the marker is now.

        It never goes back. The server writes at most once a second, so this may take as long.

        Raises:
            CommandError: Refused (``feature_disabled``, ``not_found``).
            DisconnectedError: There is no connection; a later mark includes this one.
        """
        self._raise_if_stopped()
        given = {"seq": seq, "message_id": message_id}
        target = {name: value for name, value in given.items() if value is not None}
        ref = self._state.mark_read(thread_id, target, time.monotonic())
        ack = await self._connection.ask(ref)
        return int(ack["read_seq"])

    async def ping(self) -> float:
        """Return how many seconds the server took to answer.

        Raises:
            DisconnectedError: There is no connection.
        """
        began = time.perf_counter()
        await self._ask({"type": "ping"})
        return time.perf_counter() - began

    async def renew_token(self, token: str) -> None:
        """Go on with another token of the same user, on this connection and the ones after it.

        Raises:
            CommandError: ``unauthorized``; the old token stays.
            DisconnectedError: There is no connection; the token is used for the next one.
        """
        old = self._connection.token
        self._use(token)
        try:
            await self._connection.renew(token)
        except CommandError:
            self._use(old)
            raise

    async def events(self) -> AsyncIterator[Event]:
        """Yield every event, oldest first, until the client is closed.

        Raises:
            StoppedError: The server said not to come back.
        """
        while True:
            try:
                yield await self._inbox.get()
            except ClosedError:
                return

    async def _ask(self, frame: dict[str, Any]) -> dict[str, Any]:
        self._raise_if_stopped()
        return await self._connection.ask(self._state.command(frame))

    def _give_up(self, thread_id: str) -> bool:
        """End a subscription, also one that still waits for its ack; return whether there was one."""
        ref = self._state.subscriptions.remove(thread_id)
        if ref is not None:
            self._connection.abandon(ref, "the thread was subscribed again, or unsubscribed")
        return ref is not None

    def _use(self, token: Token) -> None:
        self._connection.token = token
        if self.rest is not None:
            self.rest.token = token

    def _raise_if_stopped(self) -> None:
        if self._connection.stopped is not None:
            raise self._connection.stopped
