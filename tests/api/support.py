"""The api on real servers, served by uvicorn on a real port, and clients that check what it says.

Every answer that a test gets is compared with the OpenAPI document: an undocumented status or a body of another shape
fails the test that saw it.
"""

import asyncio
import re
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
import jsonschema
import msgspec

from api.__main__ import make_parts
from api.app import create_app
from api.dependencies import Parts
from api.services import Services
from shared.auth import make_token
from shared.database import close_pool, open_pool
from shared.health import AppServer
from shared.identity import new_id
from shared.settings import Settings
from tests.support.fabric import Fabric, connect

SECRET: Final = secrets.token_urlsafe(48)
ORIGIN: Final = "https://chat.example"
HEX_ID: Final = re.compile(r"[0-9a-f]{32}")


def settings_for(fabric: Fabric, **changed: Any) -> Settings:  # noqa: ANN401 - any setting
    """Return the settings of an api under test."""
    values = {
        "database_url": fabric.dsn,
        "nats_url": fabric.nats.url("api"),
        "messaging_node_name": "api-0",
        "jwt_secret": SECRET,
        "messaging_allowed_origins": ORIGIN,
        "messaging_throttle_limit": 0,
        "_env_file": None,
    }
    return Settings(**{**values, **changed})


@dataclass
class Api:
    """A running api."""

    fabric: Fabric
    parts: Parts
    url: str
    document: dict[str, Any]
    clients: list[httpx.AsyncClient]

    def client(
        self, user: str | None = "ava", *, name: str | None = None, role: str = "client"
    ) -> httpx.AsyncClient:
        """Return a client with a token of ``user``, or without any."""
        headers = {}
        if user is not None:
            headers["Authorization"] = f"Bearer {self.token(user, name=name, role=role)}"
        client = httpx.AsyncClient(
            base_url=self.url, headers=headers, event_hooks={"response": [self.check]}, timeout=20
        )
        self.clients.append(client)
        return client

    def token(self, user: str, *, name: str | None = None, role: str = "client") -> str:
        """Return a token of a user."""
        return make_token(self.parts.settings, user, role, name)

    async def check(self, answer: httpx.Response) -> None:
        """Compare an answer with the OpenAPI document, and an error with the rules of all errors."""
        await answer.aread()
        if answer.status_code >= 400:
            check_problem(answer)
        described = self._described(answer.request)
        if described is None:
            return
        wanted = described["responses"].get(str(answer.status_code))
        seen = f"{answer.request.method} {answer.request.url.path}: {answer.status_code}"
        assert wanted is not None, f"{seen} is not documented: {answer.text}"
        content = wanted.get("content", {})
        if not content:
            assert answer.content == b"", seen
            return
        media_type = answer.headers["content-type"].partition(";")[0]
        schema = {**content[media_type]["schema"], "components": self.document["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())

    def _described(self, request: httpx.Request) -> dict[str, Any] | None:
        path = re.sub(r"^/api/v1/", "/api/", request.url.path)
        for template, operations in self.document["paths"].items():
            pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
            if re.fullmatch(pattern, path):
                found: dict[str, Any] | None = operations.get(request.method.lower())
                return found
        return None


def check_problem(answer: httpx.Response) -> None:
    """Every 4xx and 5xx has the same shape."""
    if answer.request.url.path == "/readyz":
        return
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "errors", "trace_id"}
    assert body["type"] == f"/problems/{body['code']}"
    assert body["status"] == answer.status_code
    assert body["trace_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text


@asynccontextmanager
async def running_api(
    fabric: Fabric,
    *,
    relays: bool = True,
    **changed: Any,  # noqa: ANN401 - any setting
) -> AsyncIterator[Api]:
    """Run an api: its server, services, sender and (with ``relays``) its background relay."""
    settings = settings_for(fabric, **changed)
    pool = await open_pool(fabric.dsn, name="test-api", size=10, generic_plans=True)
    bus = await connect(fabric.nats, "api")
    parts = make_parts(settings, pool, bus)
    app = create_app(parts, lambda: {"nats": bus.connected})
    server = AppServer(app, host="127.0.0.1", port=0)
    await server.start()
    _without_delay(server)
    subscriptions = Services(parts).serve()
    await bus.flush()
    stop = asyncio.Event()
    tasks = [
        asyncio.create_task(parts.sender.run(stop)),
        asyncio.create_task(parts.standing.run(stop)),
    ]
    if relays:
        tasks.append(asyncio.create_task(parts.outbox.run(stop)))
    url = f"http://127.0.0.1:{server.bound_port}"
    api = Api(fabric, parts, url, app.openapi(), [])
    try:
        yield api
    finally:
        for client in api.clients:
            await client.aclose()
        for subscription in subscriptions:
            subscription.close()
        await server.close()
        stop.set()
        await asyncio.gather(*tasks)
        await bus.close()
        await close_pool(pool, wait_s=0.5)


def _without_delay(server: AppServer) -> None:
    # uvloop, which serves in production, switches Nagle off by itself. Under asyncio uvicorn's two writes per answer
    # would wait 40 ms for each other; accepted sockets inherit the option of the listening one.
    for listening in server._server.servers[0].sockets:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def make_thread(
    client: httpx.AsyncClient,
    *others: str,
    kind: str = "group",
    **fields: Any,  # noqa: ANN401 - those of the body
) -> dict[str, Any]:
    """Make a thread over REST and return it."""
    body = {"kind": kind, "participants": list(others), **fields}
    answer = await client.post("/api/threads", json=body)
    assert answer.status_code in (200, 201), answer.text
    made: dict[str, Any] = answer.json()
    return made


def message_body(thread_id: str, body: str = "hello", **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the body of a new message."""
    return {"thread_id": thread_id, "client_msg_id": new_id(), "body": body, **fields}


async def entry_of(api: Api, bucket: str, key: str) -> dict[str, Any]:
    """Return an entry of a bucket, which must be there."""
    stored = await api.parts.bus.kv_get(bucket, key)
    assert stored is not None, f"no entry {key} in {bucket}"
    entry: dict[str, Any] = msgspec.json.decode(stored.value)
    return entry


def without(mapping: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return a copy without some keys."""
    return {name: value for name, value in mapping.items() if name not in names}
