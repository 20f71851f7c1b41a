"""What tests of the edge say: start one, let somebody in, write an access entry, wait for a frame."""

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Self, cast

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from cli.ports import PortReservations
from edge.__main__ import main
from shared.access import AccessEntry, Kind, Member, UserEntry
from shared.auth import make_token
from shared.bus import Bus
from shared.identity import ThreadId, new_id
from shared.lifecycle import Lifecycle
from shared.protocol import PATH
from shared.provision.streams import consumers, message_stream, other_streams
from shared.settings import Settings
from shared.subjects import ACCESS_BUCKET, USERS_BUCKET, inbox_prefix
from tests.support.eventually import eventually
from tests.support.servers import NatsServer

SECRET: Final = "an-edge-under-test-has-a-key-of-its-own-0123456789"
WAIT_S: Final = 8.0
Frame = dict[str, Any]


class Edge:
    """One edge of this process: the real composition, on ports of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.life = Lifecycle(settings)
        self._running: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.settings.messaging_ws_port}{PATH}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.settings.messaging_ws_port}"

    async def start(self) -> Self:
        self._running = asyncio.create_task(main(self.life))
        await eventually(self._is_listening, within_s=WAIT_S)
        return self

    async def stop(self) -> None:
        """Do what SIGTERM does, and wait for the end."""
        self.life.stop.set()
        if self._running is not None:
            running, self._running = self._running, None
            async with asyncio.timeout(15):
                await running

    async def end(self) -> None:
        """End it without a drain, if it still runs; raises what it died of."""
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    async def ops(self, path: str) -> tuple[int, str]:
        """Return the status and body of a page of the operations port."""
        return await http_get("127.0.0.1", self.settings.messaging_health_port, path)

    async def metric(self, name: str) -> float:
        """Return one sample of /metrics; 0 when it has not appeared yet."""
        _, text = await self.ops("/metrics")
        for line in text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    async def _is_listening(self) -> bool:
        assert self._running is not None
        if self._running.done():
            self._running.result()
        try:
            status, _ = await self.ops("/readyz")
        except OSError:
            return False
        return status == 200


class Client:
    """A chat client: frames as dictionaries."""

    def __init__(self, socket: ClientConnection, user: str) -> None:
        self.socket = socket
        self.user = user
        self._refs = 0
        self._waiting: list[Frame] = []

    async def say(self, **frame: Any) -> None:  # noqa: ANN401
        await self.socket.send(json.dumps(frame))

    async def say_raw(self, text: str | bytes) -> None:
        await self.socket.send(text)

    async def next(self, *types: str, within_s: float = WAIT_S) -> Frame:
        """Return the next frame (of one of these types; others are kept for later)."""
        for index, frame in enumerate(self._waiting):
            if not types or frame["type"] in types:
                return self._waiting.pop(index)
        async with asyncio.timeout(within_s):
            while True:
                frame = cast("Frame", json.loads(await self.socket.recv()))
                if not types or frame["type"] in types:
                    return frame
                self._waiting.append(frame)

    async def ask(self, type_: str, **fields: Any) -> Frame:  # noqa: ANN401
        """Send a command with a fresh ref and return its answer."""
        self._refs += 1
        ref = f"{self.user}-{self._refs}"
        await self.say(type=type_, ref=ref, **fields)
        return await self.answer(ref)

    async def answer(self, ref: str) -> Frame:
        """Return the answer with this ref; everything else is kept for later."""
        for index, frame in enumerate(self._waiting):
            if frame.get("ref") == ref:
                return self._waiting.pop(index)
        async with asyncio.timeout(WAIT_S):
            while True:
                frame = cast("Frame", json.loads(await self.socket.recv()))
                if frame.get("ref") == ref:
                    return frame
                self._waiting.append(frame)

    async def send(self, thread_id: str, body: str = "hello", **fields: Any) -> Frame:  # noqa: ANN401
        """Send a message and return the answer."""
        fields.setdefault("client_msg_id", new_id())
        return await self.ask("message.send", thread_id=thread_id, body=body, **fields)

    async def subscribe(self, thread_id: str, **fields: Any) -> Frame:  # noqa: ANN401
        """Subscribe and return the ack, which must come."""
        ack = await self.ask("thread.subscribe", thread_id=thread_id, **fields)
        assert ack["type"] == "ack", ack
        return ack

    async def silence(self, *types: str, for_s: float = 0.3) -> None:
        """Make sure that no frame (of these types) is there or comes for a while."""
        with suppress(TimeoutError):
            frame = await self.next(*types, within_s=for_s)
            raise AssertionError(f"unexpected: {frame}")

    async def closed(self, within_s: float = WAIT_S) -> int:
        """Wait for the close and return its code."""
        async with asyncio.timeout(within_s):
            while True:
                try:
                    self._waiting.append(json.loads(await self.socket.recv()))
                except ConnectionClosed as end:
                    return 1006 if end.rcvd is None else end.rcvd.code


class House:
    """Everything of one test: streams, edges, clients."""

    def __init__(self, nats: NatsServer, ports: PortReservations) -> None:
        self.nats = nats
        self._ports = ports
        self._edges: list[Edge] = []
        self._sockets: list[ClientConnection] = []
        self._buses: dict[str, Bus] = {}

    async def provision(self, **changes: Any) -> None:  # noqa: ANN401
        """Make every stream and consumer, as ``lilith provision`` does; no database is needed here."""
        settings = self.settings(**changes)
        bus = await self.bus("provision")
        configs = [message_stream(settings, 0, 1), *other_streams(settings)]
        for config in configs:
            await bus.api(f"STREAM.CREATE.{config['name']}", config)
        for consumer in consumers(settings):
            wanted = {"stream_name": consumer.stream, "config": consumer.config, "action": "create"}
            await bus.api(f"CONSUMER.CREATE.{consumer.stream}.{consumer.durable}", wanted)

    def settings(self, **changes: Any) -> Settings:  # noqa: ANN401
        """Return the settings of the next edge."""
        chosen: dict[str, Any] = {
            "nats_url": self.nats.url("edge"),
            "jwt_secret": SECRET,
            "messaging_ws_port": self._ports.search(21_000),
            "messaging_health_port": self._ports.search(22_000),
            "messaging_node_name": f"edge-{len(self._edges)}",
            "messaging_throttle_limit": 0,
        }
        return Settings(**{**chosen, **changes}, _env_file=None)

    async def edge(self, **changes: Any) -> Edge:  # noqa: ANN401
        """Start an edge."""
        edge = Edge(self.settings(**changes))
        self._edges.append(edge)
        return await edge.start()

    def token(self, user: str, **options: Any) -> str:  # noqa: ANN401
        """Return a token of this house."""
        return make_token(self.settings_for_tokens, user, **options)

    @property
    def settings_for_tokens(self) -> Settings:
        return Settings(jwt_secret=SECRET, _env_file=None)

    async def open(self, edge: Edge, **options: Any) -> ClientConnection:  # noqa: ANN401
        """Open a socket without a token."""
        chosen: dict[str, Any] = {
            "compression": None,
            "ping_interval": None,
            "proxy": None,
            "close_timeout": 1,
            "user_agent_header": None,
        }
        receive_bytes = options.pop("receive_bytes", None)
        if receive_bytes is not None:
            chosen["sock"] = await _small_socket(edge.settings.messaging_ws_port, receive_bytes)
        opened = await connect(edge.url, **{**chosen, **options})
        self._sockets.append(opened)
        return opened

    async def client(
        self,
        edge: Edge,
        user: str,
        *,
        token: str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Client:
        """Connect with a token in the header and take the hello."""
        headers = {"Authorization": f"Bearer {token or self.token(user)}"}
        client = Client(await self.open(edge, additional_headers=headers, **options), user)
        client_hello = await client.next("hello")
        assert client_hello["user_id"] == user
        return client

    async def raw_client(self, edge: Edge, user: str = "ava") -> Client:
        """Connect without any token."""
        return Client(await self.open(edge), user)

    async def bus(self, role: str) -> Bus:
        """Return a connection with the rights of a role, one for the whole test."""
        if role not in self._buses:
            self._buses[role] = await Bus.connect(
                self.nats.url(role),
                name=f"test-{role}",
                on_closed=lambda _reason: None,
                inbox_prefix=inbox_prefix(role, "test"),
            )
        return self._buses[role]

    async def thread(
        self,
        *members: str,
        kind: Kind = "group",
        archived: bool = False,
        thread_id: ThreadId | None = None,
        revision: int = 1,
    ) -> ThreadId:
        """Write the access entry of a thread; the first member owns it."""
        thread_id = thread_id or ThreadId(new_id())
        joined = "2026-01-01T00:00:00.000Z"
        entry = AccessEntry(
            thread_id=thread_id,
            revision=revision,
            kind=kind,
            owner_id=members[0],
            archived=archived,
            members={
                user: Member("member" if place else "owner", joined)
                for place, user in enumerate(members)
            },
        )
        bus = await self.bus("api")
        await bus.kv_put(ACCESS_BUCKET, thread_id, msgspec.json.encode(entry), expected=None)
        return thread_id

    async def user(self, user: str, name: str, role: str = "client") -> None:
        """Write the entry of a user."""
        entry = UserEntry(user_id=user, revision=1, name=name, avatar_url=None, role=role)
        bus = await self.bus("api")
        await bus.kv_put(USERS_BUCKET, user, msgspec.json.encode(entry), expected=None)

    async def eventually(self, probe: Callable[[], bool | Awaitable[bool]]) -> None:
        """Wait until the probe says yes."""
        await eventually(probe, within_s=WAIT_S)

    async def stored(self) -> int:
        """Return the number of messages in the log."""
        bus = await self.bus("edge")
        info = await bus.api("STREAM.INFO.MSG_0")
        return int(info["state"]["messages"])

    async def close(self) -> None:
        """Close clients, edges and connections."""
        for opened in self._sockets:
            opened.transport.abort()
        endings = [edge.end() for edge in self._edges]
        await asyncio.gather(*endings, *(bus.close() for bus in self._buses.values()))


async def _small_socket(port: int, receive_bytes: int) -> socket.socket:
    """Return a connected socket whose kernel buffer is small from the first segment on."""
    small = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    small.setblocking(False)
    await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", port))
    return small


async def http_get(host: str, port: int, path: str, *lines: str) -> tuple[int, str]:
    """Return the status and body of a plain GET with these header lines."""
    head = "".join(f"{line}\r\n" for line in (f"Host: {host}", "Connection: close", *lines))
    status, _, body = await http_say(host, port, f"GET {path} HTTP/1.1\r\n{head}\r\n")
    return status, body


async def http_say(host: str, port: int, request: str) -> tuple[int, dict[str, str], str]:
    """Send bytes and return status, headers (lower case) and body of what comes back until the end."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request.encode("latin-1"))
        async with asyncio.timeout(WAIT_S):
            answer = (await reader.read(-1)).decode()
    finally:
        writer.transport.abort()
    head, _, body = answer.partition("\r\n\r\n")
    first, *rest = head.split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)
    }
    return int(first.split(" ")[1]), headers, body


def uuid7_at(offset_s: float) -> str:
    """Return a UUIDv7 whose time is that far from now."""
    return f"{int((time.time() + offset_s) * 1000):012x}7" + new_id()[13:]
