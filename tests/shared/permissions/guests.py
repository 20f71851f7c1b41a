"""Connections of every role to one running server, and what it refused them."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Final

import pytest

from shared import subjects
from shared.bus import (
    Bus,
    PublishTimeoutError,
    RequestTimeoutError,
)
from shared.identity import ThreadId, UserId, new_id
from tests.support.eventually import eventually
from tests.support.servers import NatsServer

THREAD: Final = ThreadId("0190a0b1c2d37e4f8a9b0c1d2e3f4a5b")
AVA: Final = UserId("ava")
MSG: Final = subjects.msg_subject(THREAD)
LIVE: Final = subjects.live_subject(THREAD)
PATIENCE_S: Final = 0.25


class Guests:
    """Connections of any role; what the server refuses ends up in ``violations``."""

    def __init__(self, server: NatsServer, stack: AsyncExitStack) -> None:
        self.server = server
        self._stack = stack
        self.violations: list[str] = []

    async def come(self, role: str) -> Bus:
        bus = await Bus.connect(
            self.server.url(role),
            name=role,
            on_closed=self.violations.append,
            inbox_prefix=_inbox(role),
        )
        self._stack.push_async_callback(bus.close)
        return bus

    async def refuses(self, attempt: Awaitable[object] | None, *, naming: str) -> None:
        """Await an attempt that gets no answer, and the server's word that it was not allowed."""
        if attempt is not None:
            with pytest.raises((RequestTimeoutError, PublishTimeoutError)):
                await attempt
        await eventually(
            lambda: any(naming.lower() in text.lower() for text in self.violations),
            because=f"no word of {naming}",
        )
        assert all("permissions violation" in text.lower() for text in self.violations)


def _inbox(role: str) -> str:
    """Platform services come with any client library, and the inbox that all of them use."""
    return "_INBOX" if role == "platform" else subjects.inbox_prefix(role, new_id()[-8:])


async def heard(bus: Bus, subject: str, by: Callable[[], object]) -> bool:
    """Return whether ``bus`` hears on ``subject`` what ``by`` publishes."""
    got: list[bytes] = []
    bus.subscribe(subject, lambda _subject, _reply, _headers, payload: got.append(payload))
    await asyncio.sleep(0.05)
    result = by()
    if isinstance(result, Coroutine):
        await result
    await asyncio.sleep(PATIENCE_S / 2)
    return bool(got)
