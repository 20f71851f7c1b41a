"""The listening socket and every connection behind it: caps, deadlines, drain.

Every connection is looked at once a second by one loop, a quarter of them at a time: no timers, and 10,000 idle ones
cost half a percent of a core. Draining (SIGTERM): not ready, nothing accepted, every session is told, sends are taken
until its close, closes are spread, answers on their way are waited for.
"""

import asyncio
import logging
import random
import socket
from collections import Counter
from typing import Final

from edge.connection import Connection
from edge.handshake import Refusal, Rules
from edge.node import Node
from edge.session import Execute
from shared.bus import Bus
from shared.protocol import CloseCode, ErrorCode, ServerDraining
from shared.waiting import is_set_within

BACKLOG: Final = 4_096
SEND_BUFFER_BYTES: Final = 64 * 1024
"""Small: what the kernel holds for a peer that does not read is neither counted nor recallable."""

REFUSALS_MAX: Final = 1_024
"""Sockets beyond the cap that still get a 503; even later ones are cut."""

SWEEP_S: Final = 1.0
_PARTS: Final = 4
FABRIC_AWAY_S: Final = 10.0
DRAIN_SPREAD_S: Final = 2.0
DRAIN_MIN_S: Final = 0.25
DRAIN_PER_SESSION_S: Final = 0.01
DRAIN_ANSWERS_S: Final = 2.0
"""How long a session is kept beyond its turn while a send of it is unanswered."""

DRAIN_END_S: Final = 1.0
RECONNECT_PER_SESSION_MS: Final = 2
RECONNECT_MS_MIN: Final = 1_000
RECONNECT_MS_MAX: Final = 30_000

_log = logging.getLogger(__name__)


class Gateway:
    """The WebSocket side of one edge."""

    def __init__(self, node: Node, rules: Rules, execute: Execute, buses: tuple[Bus, ...]) -> None:
        self._node = node
        self._rules = rules
        self._execute = execute
        self._buses = buses
        self._parts: list[dict[Connection, None]] = [{} for _ in range(_PARTS)]
        self._part_of: dict[Connection, dict[Connection, None]] = {}
        self._addresses: Counter[str] = Counter()
        self._server: asyncio.Server | None = None
        self._is_draining = False
        self._is_empty = asyncio.Event()
        self.port = 0
        node.standing.when_confirmed(self._read_on)

    def __len__(self) -> int:
        return len(self._part_of)

    @property
    def is_ready(self) -> bool:
        """Whether new clients should come here."""
        return self._server is not None and not self._is_draining

    @property
    def is_fabric_lost(self) -> bool:
        """Whether NATS has been away for so long that clients are better off elsewhere."""
        return self._node.standing.unconfirmed_for_s() >= FABRIC_AWAY_S or any(
            bus.disconnected_for_s() >= FABRIC_AWAY_S for bus in self._buses
        )

    async def start(self) -> None:
        """Listen; other processes may share the port (SO_REUSEPORT).

        Raises:
            OSError: The address cannot be used.
        """
        settings = self._node.settings
        listener = _listener(settings.messaging_host, settings.messaging_ws_port)
        self.port = listener.getsockname()[1]
        self._server = await asyncio.get_running_loop().create_server(
            self._accept, sock=listener, backlog=BACKLOG
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Look after the connections until ``stop`` is set, then drain and return."""
        number = 0
        try:
            while not stop.is_set():
                self._sweep(self._parts[number % _PARTS])
                number += 1
                if self.is_fabric_lost:
                    self._close_all(CloseCode.TRY_AGAIN_LATER)
                await is_set_within(stop, SWEEP_S / _PARTS)
            await self._drain()
        finally:
            # Cancelled: nobody is told, but nothing stays open either.
            self._stop_listening()
            for connection in tuple(self._part_of):
                connection.abort()

    # ------------------------------------------------------------------ the door

    def entered(self, connection: Connection) -> bool:
        """Note a new socket; False when even a refusal would be one socket too many."""
        part = min(self._parts, key=len)
        part[connection] = None
        self._part_of[connection] = part
        self._is_empty.clear()
        self._addresses[connection.address] += 1
        return len(self._part_of) <= self._node.settings.messaging_connections_max + REFUSALS_MAX

    def left(self, connection: Connection) -> None:
        """Note that a socket is gone."""
        part = self._part_of.pop(connection, None)
        if part is not None:
            del part[connection]
            self._addresses[connection.address] -= 1
            if not self._addresses[connection.address]:
                del self._addresses[connection.address]
        if not self._part_of:
            self._is_empty.set()

    def why_closed(self, connection: Connection) -> Refusal | None:
        """Return why this socket may not come in, None when it may."""
        settings = self._node.settings
        later = {"Retry-After": "5"}
        if self._is_draining:
            return Refusal(503, ErrorCode.UNAVAILABLE, "This node is stopping.", later)
        if self.is_fabric_lost or not self._node.standing.is_confirmed:
            return Refusal(503, ErrorCode.UNAVAILABLE, "This node has lost its fabric.", later)
        if len(self._part_of) > settings.messaging_connections_max:
            return Refusal(503, ErrorCode.UNAVAILABLE, "This node is full.", later)
        if self._addresses[connection.address] > settings.messaging_connections_per_address_max:
            detail = "There are too many connections from this address."
            return Refusal(429, ErrorCode.RATE_LIMITED, detail, later)
        return None

    def _accept(self) -> Connection:
        return Connection(self._node, self, self._rules.protocol(), self._execute)

    def _stop_listening(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _sweep(self, part: dict[Connection, None]) -> None:
        now = self._node.clock()
        for connection in tuple(part):
            connection.check(now)

    def _read_on(self) -> None:
        # Whoever was banned meanwhile is closed by now; what the others said has waited in their sockets.
        for connection in tuple(self._part_of):
            connection.read_on()

    def _close_all(self, code: CloseCode) -> None:
        for connection in tuple(self._part_of):
            connection.close(code)

    # ------------------------------------------------------------------ drain

    async def _drain(self) -> None:
        self._is_draining = True
        self._stop_listening()
        connections = list(self._part_of)
        random.shuffle(connections)
        self._announce(connections)
        _log.info("drains %d connections", len(connections))
        spread_s = min(DRAIN_SPREAD_S, DRAIN_MIN_S + len(connections) * DRAIN_PER_SESSION_S)
        await self._close_in_turn(connections, spread_s)
        if self._part_of:
            await is_set_within(self._is_empty, DRAIN_END_S)
        for connection in tuple(self._part_of):
            connection.abort()
        if self._part_of:
            await is_set_within(self._is_empty, DRAIN_END_S)

    def _announce(self, connections: list[Connection]) -> None:
        most = max(RECONNECT_MS_MIN, len(connections) * RECONNECT_PER_SESSION_MS)
        for connection in connections:
            session = connection.session
            if session is not None and session.identity is not None:
                # Spread over the nodes that are left; no secret depends on it.
                delay = random.randint(0, min(RECONNECT_MS_MAX, most))  # noqa: S311
                session.say(ServerDraining(reconnect_after_ms=delay))

    async def _close_in_turn(self, connections: list[Connection], spread_s: float) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        turns = {
            connection: started + spread_s * (index + 1) / len(connections)
            for index, connection in enumerate(connections)
        }
        while turns:
            now = loop.time()
            for connection, turn in tuple(turns.items()):
                session = connection.session
                is_answered = session is None or session.ended or not session.unanswered
                if now >= turn and (is_answered or now >= turn + DRAIN_ANSWERS_S):
                    connection.close(CloseCode.SERVICE_RESTART)
                    del turns[connection]
            await asyncio.sleep(0.02)


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Accepted sockets inherit both.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
