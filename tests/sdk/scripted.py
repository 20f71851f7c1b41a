"""A small server that speaks the protocol page, kept in memory, and misbehaves on request.

It is written from the page and not from the edge: the client's tests must not depend on our own server's habits.
"""

import asyncio
import itertools
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from lilith_client import Event

Frame = dict[str, Any]
Misbehaviour = Callable[[ServerConnection, Frame], Awaitable[bool]]
AT = "2026-11-24T12:00:00.000Z"
HELLO: Frame = {
    "type": "hello",
    "protocol": "messaging.v1.json",
    "session_id": "s1",
    "user_id": "ava",
    "node": "edge-0",
    "heartbeat_s": 20,
    "server_time": "2026-11-24T12:00:00.000Z",
    "token_expires_at": "2036-11-24T12:00:00.000Z",
    "features": {"typing": True},
    "quota": {"gated": False, "remaining": None},
    "limits": {"subscriptions": 128},
    "a_newer_field": 1,
}


class Fabric:
    """What every edge of the platform shares: one log per thread, and the misbehaviour of the moment.

    ``replays``: whether missed events are replayed; else whoever missed any gets ``recovered: false``.
    ``synced``: what ``GET /api/sync`` answers, by its ``after``; any other ``after`` is ``gone``.
    ``on_command``: looks at each command first and may answer it in its own way by returning True.
    """

    def __init__(self) -> None:
        self.logs: dict[str, list[Frame]] = defaultdict(list)
        self.commands: list[Frame] = []
        self.reads: list[str] = []
        self.replays = True
        self.synced: dict[str | None, Frame] = {}
        self.on_command: Callable[[ServerConnection, Frame], Any] = lambda _socket, _frame: None
        self.refuse_handshake: int | None = None
        self.refuse_reads = 0
        self.greeting: Frame = HELLO
        self._seqs = itertools.count(1)

    def store(
        self, thread_id: str, body: str, *, client_msg_id: str = "", sender: str = "ben"
    ) -> Frame:
        """Append a message as if somebody had sent it, without telling any session."""
        log = self.logs[thread_id]
        for known in log:
            if client_msg_id and known.get("client_msg_id") == client_msg_id:
                return {**known, "duplicate": True}
        message = {
            "client_msg_id": client_msg_id,
            "sender_id": sender,
            "kind": "text",
            "body": body,
            "sent_at": AT,
        }
        return {**self._append(thread_id, "message.new", message), "duplicate": False}

    def edit(self, thread_id: str, message_id: str, body: str) -> Frame:
        """Append another body of a message."""
        change = {"message_id": message_id, "body": body, "edited_at": AT}
        return self._append(thread_id, "message.updated", change)

    def delete(self, thread_id: str, message_id: str) -> Frame:
        """Append the deletion of a message."""
        change = {"message_id": message_id, "deleted_at": AT}
        return self._append(thread_id, "message.deleted", change)

    def _append(self, thread_id: str, kind: str, fields: Frame) -> Frame:
        seq = next(self._seqs) * 3
        place = {"seq": seq, "prev_seq": self.tail(thread_id), "cursor": f"c{seq}"}
        frame = {"type": kind, "thread_id": thread_id, "message_id": f"m{seq}", **fields, **place}
        self.logs[thread_id].append(frame)
        return frame

    def changed_since(self, thread_id: str, seq: int) -> list[Frame]:
        """Return what is different since ``seq`` as it is now, one frame per message."""
        now: dict[str, Frame] = {}
        for event in self.logs[thread_id]:
            key, is_new = event["message_id"], event["type"] == "message.new"
            if is_new or now[key]["type"] != "message.new" or now[key]["seq"] <= seq:
                now[key] = event
            elif event["type"] == "message.updated":
                now[key] = {**now[key], "body": event["body"], "edited_at": AT}
            else:
                now[key] = {**now[key], "body": "", "deleted_at": AT}
        changed = [frame for frame in now.values() if frame["seq"] > seq]
        return sorted(changed, key=lambda frame: int(frame["seq"]))

    def tail(self, thread_id: str) -> int:
        """Return the seq of the last event, 0 when there is none."""
        log = self.logs[thread_id]
        return int(log[-1]["seq"]) if log else 0

    def bodies(self, thread_id: str) -> list[str]:
        """Return the bodies as they were sent, in order."""
        return [event["body"] for event in self.logs[thread_id] if event["type"] == "message.new"]

    def sent(self, kind: str) -> list[Frame]:
        """Return every command of one type that any edge got."""
        return [frame for frame in self.commands if frame["type"] == kind]


class Edge:
    """One scripted edge. ``stop`` drops its connections; ``start`` listens at the same port again."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.sockets: list[ServerConnection] = []
        self.handshakes = 0
        self.frame_auth = False
        self._port = 0
        self._server: Server | None = None
        self._subscribed: dict[str, set[ServerConnection]] = defaultdict(set)

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"ws://127.0.0.1:{self._port}/ws/messaging"

    async def start(self) -> None:
        """Listen."""
        self._server = await serve(
            self._session,
            "127.0.0.1",
            self._port,
            process_request=self._handshake,
            subprotocols=["messaging.v1.json"],  # type: ignore[list-item]
            compression=None,
        )
        self._port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Close the listener and every connection, without a word."""
        assert self._server is not None
        for socket in self.sockets:
            socket.transport.abort()
        self._server.close()
        await self._server.wait_closed()

    async def close_all(self, code: int) -> None:
        """Close every connection with ``code``."""
        for socket in list(self.sockets):
            await socket.close(code, "scripted")

    async def say(self, frame: Frame) -> None:
        """Send a frame to every connection."""
        for socket in list(self.sockets):
            await socket.send(json.dumps(frame))

    async def post(self, thread_id: str, body: str) -> Frame:
        """Store a message of somebody else and deliver it to the sessions of this edge."""
        message = self.fabric.store(thread_id, body)
        await self.deliver(message)
        return message

    async def deliver(self, message: Frame) -> None:
        """Send a stored message to the sessions that subscribed its thread."""
        for socket in list(self._subscribed[message["thread_id"]]):
            await socket.send(json.dumps(message))

    def forget(self, thread_id: str) -> None:
        """Deliver nothing more of a thread to whoever subscribed it until now."""
        self._subscribed[thread_id].clear()

    def _handshake(self, socket: ServerConnection, request: Request) -> Response | None:
        self.handshakes += 1
        if self.fabric.refuse_handshake is not None:
            return socket.respond(self.fabric.refuse_handshake, "scripted")
        if not self.frame_auth and request.headers.get("Authorization") != "Bearer token":
            return socket.respond(401, "bad token")
        return None

    async def _session(self, socket: ServerConnection) -> None:
        if self.frame_auth:
            first = json.loads(await socket.recv())
            if first["type"] != "auth" or first["token"] != "token":
                await socket.close(4500)
                return
        self.sockets.append(socket)
        try:
            await socket.send(json.dumps(self.fabric.greeting))
            async for data in socket:
                await self._command(socket, json.loads(data))
        finally:
            self.sockets.remove(socket)
            for sockets in self._subscribed.values():
                sockets.discard(socket)

    async def _command(self, socket: ServerConnection, frame: Frame) -> None:
        self.fabric.commands.append(frame)
        answered = self.fabric.on_command(socket, frame)
        if asyncio.iscoroutine(answered):
            answered = await answered
        if answered:
            return
        ref = frame.get("ref")
        match frame["type"]:
            case "message.send":
                message = self.fabric.store(
                    frame["thread_id"],
                    frame["body"],
                    client_msg_id=frame["client_msg_id"],
                    sender="ava",
                )
                if not message["duplicate"]:
                    await self.deliver(message)
                await socket.send(json.dumps({**message, "type": "ack", "ref": ref}))
            case "thread.subscribe":
                await self._subscribe(socket, frame)
            case "ping":
                await socket.send(json.dumps({"type": "pong", "ref": ref}))
            case "auth":
                expires_at = "2037-01-01T00:00:00.000Z"
                await socket.send(
                    json.dumps({"type": "ack", "ref": ref, "token_expires_at": expires_at})
                )
            case _:
                await socket.send(json.dumps({"type": "ack", "ref": ref}))

    async def _subscribe(self, socket: ServerConnection, frame: Frame) -> None:
        thread_id = frame["thread_id"]
        tail = self.fabric.tail(thread_id)
        cursor = f"c{tail}" if tail else "0"
        from_seq = tail if frame.get("after") is None else _seq_of(frame["after"])
        missed = [event for event in self.fabric.logs[thread_id] if event["seq"] > from_seq]
        recovered = self.fabric.replays or not missed
        ack: Frame = {
            "cursor": cursor,
            "recovered": recovered,
            "participants": [],
            "participant_count": 0,
        }
        await socket.send(json.dumps({"type": "ack", "ref": frame["ref"], **ack}))
        if recovered:
            caught_up = {"type": "thread.caught_up", "thread_id": thread_id, "cursor": cursor}
            for event in [*missed, caught_up]:
                await socket.send(json.dumps(event))
        while newer := [event for event in self.fabric.logs[thread_id] if event["seq"] > tail]:
            tail = newer[-1]["seq"]
            for event in newer:
                await socket.send(json.dumps(event))
        self._subscribed[thread_id].add(socket)


class Api:
    """Scripted reads over the fabric's logs: messages, changes, sync. ``status``: what every answer has.

    ``code`` names the error when ``status`` is one.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._server: asyncio.Server | None = None
        self.address = ""
        self.status = 200
        self.code = "not_found"

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._exchange, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close the listener."""
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        target = head.split(" ")[1]
        self._fabric.reads.append(head)
        status, body = self._answer(target)
        if self._fabric.refuse_reads > 0:
            self._fabric.refuse_reads -= 1
            status, body = 503, {"code": "unavailable", "detail": "not yet"}
        payload = json.dumps(body).encode()
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Length: {len(payload)}\r\nRetry-After: 0\r\n\r\n".encode()
            + payload
        )
        await writer.drain()
        writer.close()

    def _answer(self, target: str) -> tuple[int, Frame]:
        if self.status >= 400:
            return self.status, {"code": self.code, "detail": "scripted"}
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/api/sync":
            page = self._fabric.synced.get(query.get("cursor", query.get("after")))
            return (200, page) if page else (410, {"code": "gone", "detail": "another generation"})
        if parts.path.endswith("/changes"):
            return 200, self._changes(parts.path.split("/")[-2], query)
        return 200, self._messages(query)

    def _changes(self, thread_id: str, query: dict[str, str]) -> Frame:
        since, limit = _seq_of(query.get("cursor", query["after"])), int(query["limit"])
        found = self._fabric.changed_since(thread_id, since)
        return {
            "items": found[:limit],
            "next_cursor": found[limit - 1]["cursor"] if len(found) > limit else None,
            "cursor": f"c{self._fabric.tail(thread_id)}",
        }

    def _messages(self, query: dict[str, str]) -> Frame:
        log = [
            {name: value for name, value in message.items() if name not in {"type", "prev_seq"}}
            for message in self._fabric.logs[query["thread_id"]]
            if message["type"] == "message.new"
        ]
        limit = int(query["limit"])
        if "after" in query:
            items = [m for m in log if m["seq"] > int(query["after"])][:limit]
        else:
            before = int(query.get("before", 1 << 53))
            items = [m for m in reversed(log) if m["seq"] < before][:limit]
        return {"items": items, "next_cursor": None}


@asynccontextmanager
async def platform(edges: int = 1) -> AsyncIterator[tuple[Fabric, list[Edge], Api]]:
    """Run some edges and an api over one fabric."""
    fabric = Fabric()
    api = Api(fabric)
    running = [Edge(fabric) for _ in range(edges)]
    await api.start()
    for edge in running:
        await edge.start()
    try:
        yield fabric, running, api
    finally:
        for edge in running:
            await edge.stop()
        await api.stop()


class Reader:
    """Collects the events of a client; ``bodies`` are those of its messages, in order of arrival."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def bodies(self) -> list[str]:
        return [event.message.body for event in self.events if event.message]

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.type == kind]


def _seq_of(cursor: str) -> int:
    return 0 if cursor == "0" else int(cursor[1:])


def refusing(kind: str, code: str, *, retryable: bool = False) -> Misbehaviour:
    """Return a misbehaviour: every command of one type is answered with this error."""

    async def refuse(socket: ServerConnection, frame: dict[str, Any]) -> bool:
        if frame["type"] != kind:
            return False
        error = {"type": "error", "code": code, "message": "scripted", "retryable": retryable}
        await socket.send(json.dumps({**error, "ref": frame["ref"]}))
        return True

    return refuse
