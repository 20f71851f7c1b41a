"""A socket without the client library: what the edge really writes, or a reader that does not read."""

import asyncio
import json
import socket
import time
from contextlib import suppress
from typing import Any, Final, Self
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.acceptance.platform import Platform

_SMALL_BUFFER: Final = 4_096
_STAMP: Final = '"body":"'
Frame = dict[str, Any]


class Wire:
    """One authenticated socket that subscribed one thread, from now."""

    def __init__(self, opened: ClientConnection) -> None:
        self._opened = opened
        self._reading: asyncio.Task[None] | None = None
        self.frames: list[Frame] = []
        self.delays: list[float] = []

    @classmethod
    async def open(
        cls, platform: Platform, user: str, thread_id: str, *, edge: int, reads: bool = True
    ) -> Self:
        """Connect and subscribe. Not ``reads``: as little as possible is taken out of the network."""
        address = urlsplit(platform.edges[edge])
        connection = socket.socket()
        if not reads:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (address.hostname, address.port))
        opened = await connect(
            platform.edges[edge],
            sock=connection,
            additional_headers={"Authorization": f"Bearer {platform.token(user)}"},
            proxy=None,
            compression=None,
            ping_interval=None,
            max_queue=None if reads else 1,
        )
        await opened.send(
            json.dumps({"type": "thread.subscribe", "ref": "1", "thread_id": thread_id})
        )
        while json.loads(await opened.recv())["type"] != "thread.caught_up":
            pass
        return cls(opened)

    def collect(self) -> None:
        """Keep every frame from here on, until the socket ends."""
        self._reading = asyncio.create_task(self._collect())

    def measure(self) -> None:
        """Note how long each message took from here on whose body begins with when it was sent (see ``stamp``)."""
        self._reading = asyncio.create_task(self._measure())

    @property
    def code(self) -> int | None:
        """How the socket was closed, None while it is not."""
        return self._opened.close_code

    async def close(self) -> None:
        """Let go, without a word when it was not reading."""
        if self._reading is None:
            self._opened.transport.abort()
        else:
            await self._opened.close()
            await self._reading

    async def _collect(self) -> None:
        with suppress(ConnectionClosed):
            async for data in self._opened:
                self.frames.append(json.loads(data))

    async def _measure(self) -> None:
        with suppress(ConnectionClosed):
            async for data in self._opened:
                text = data if isinstance(data, str) else data.decode()
                begin = text.find(_STAMP) + len(_STAMP)
                if text[begin : begin + 1].isdigit():
                    sent = int(text[begin : text.index("|", begin)])
                    self.delays.append((time.perf_counter_ns() - sent) / 1e9)


def stamp() -> str:
    """Return how a body that is measured begins."""
    return f"{time.perf_counter_ns()}|"
