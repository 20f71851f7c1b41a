"""Answering requests: a bounded number of handlers, a bounded queue before them, never silence."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, cast

from shared.bus.client import Client, Subscription
from shared.bus.errors import BusError
from shared.bus.messages import Headers, header_block
from shared.bus.requests import ERROR_CODE_HEADER, ERROR_HEADER

Handler = Callable[[bytes], Awaitable[bytes]]

WAITING_PER_HANDLER: Final = 16
"""Requests that may wait per running handler. Longer queues only produce answers after their deadline."""

_log = logging.getLogger(__name__)


class Service:
    """The responder of one subject in one process."""

    def __init__(self, client: Client, handler: Handler, *, concurrency: int) -> None:
        self._client = client
        self._handler = handler
        self._concurrency = concurrency
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None
        self._life = 0
        client.on_lost.append(self._connection_lost)

    def start(self, subject: str, queue: str) -> Subscription:
        """Begin to answer; closing what is returned ends it after the requests already taken."""
        self._subscription = self._client.listen(subject, self._take, queue=queue)
        return self._subscription

    async def stop(self, *, timeout_s: float) -> None:
        """Take no more, let the running handlers finish, cancel those that take longer than ``timeout_s``."""
        if self._subscription is not None:
            self._subscription.close()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    def _take(self, _subject: bytes, reply: bytes, _headers: bytes, payload: bytes) -> None:
        if len(self._running) < self._concurrency:
            task = asyncio.get_running_loop().create_task(
                self._work(reply, payload, self._life), name="bus-service"
            )
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        elif len(self._waiting) < self._concurrency * WAITING_PER_HANDLER:
            self._waiting.append((reply, payload))
        else:
            headers = _error_headers(503, "too many requests wait")
            self._answer(reply, b"", self._life, headers=headers)

    def _connection_lost(self) -> None:
        """Forget who asked on the connection that broke.

        The server lets a service answer what it was asked on the same connection, once. An answer on a later one is a
        permissions violation, which ends the process; who asked was told by their own connection or deadline.
        """
        self._life += 1
        self._waiting.clear()

    async def _work(self, reply: bytes, payload: bytes, life: int) -> None:
        """Handle one request, then those that waited meanwhile: a task per burst, not per request."""
        while True:
            try:
                answer = await self._handler(payload)
            except asyncio.CancelledError:
                headers = _error_headers(503, "the service stops")
                self._answer(reply, b"", life, headers=headers)
                for waiting_reply, _ in self._waiting:
                    self._answer(waiting_reply, b"", self._life, headers=headers)
                self._waiting.clear()
                raise
            except Exception:
                # One request's failure is that request's: the asker is told at once, the others go on.
                self._client.callback_errors += 1
                _log.exception("NATS: a request handler failed")
                self._answer(reply, b"", life, headers=_error_headers(500, "the handler failed"))
            else:
                self._answer(reply, answer, life)
            if not self._waiting:
                # Not left to the task's own end: a request that is read before that would wait for nobody.
                self._running.discard(cast("asyncio.Task[None]", asyncio.current_task()))
                return
            reply, payload = self._waiting.popleft()
            life = self._life

    def _answer(self, reply: bytes, payload: bytes, life: int, *, headers: Headers = b"") -> None:
        if not reply or life != self._life:
            return
        try:
            self._client.publish_now(reply, payload, headers=headers)
        except BusError as error:
            # The asker is told the same by its own connection or deadline.
            _log.warning("NATS: an answer was not sent: %s", error)


def _error_headers(code: int, description: str) -> Headers:
    return header_block({ERROR_CODE_HEADER.decode(): str(code), ERROR_HEADER.decode(): description})
