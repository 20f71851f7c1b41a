"""The operations port, over a real socket."""

import asyncio
import signal
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from shared.health import AppServer, HealthServer, Receive, Send, health_app
from shared.metrics import EdgeMetrics
from tests.support.eventually import eventually


@asynccontextmanager
async def serving(checks: dict[str, bool]) -> AsyncIterator[httpx.AsyncClient]:
    server = HealthServer(0, "127.0.0.1", lambda: checks, EdgeMetrics("1.0").registry)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.bound_port}") as client:
            yield client
    finally:
        await server.close()


async def test_ready_means_that_every_check_is_true() -> None:
    # Given a process with two needs
    checks = {"nats": True, "database": True}
    async with serving(checks) as client:
        # When both are there, and when one is not
        ready = await client.get("/readyz")
        checks["database"] = False
        not_ready = await client.get("/readyz")
        # Then the status tells, and the body names what is missing
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert (not_ready.status_code, not_ready.json()) == (
            503,
            {"status": "not_ready", "checks": {"nats": True, "database": False}},
        )
        # And the process is alive all the same
        assert (await client.get("/livez")).status_code == 200


async def test_metrics_are_those_of_this_process() -> None:
    async with serving({}) as client:
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert "messaging_edge_sessions 0.0" in answer.text


async def test_every_other_path_is_not_found() -> None:
    async with serving({}) as client:
        answers = [await client.get(path) for path in ("/", "/metrics/", "/readyz/x", "/LIVEZ")]
    assert [answer.status_code for answer in answers] == [404] * 4


async def test_an_app_of_its_own_gets_the_other_paths() -> None:
    # Given the api's app behind the three paths
    async def api(scope: MutableMapping[str, Any], _receive: Receive, send: Send) -> None:
        assert scope["path"] == "/api/threads"
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = health_app(lambda: {"a": True}, EdgeMetrics("1.0").registry, otherwise=api)
    server = AppServer(app, host="127.0.0.1", port=0)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.bound_port}") as client:
            # When both are asked
            # Then each answers its own
            assert (await client.get("/readyz")).status_code == 200
            assert (await client.get("/api/threads")).status_code == 418
    finally:
        await server.close()


async def test_an_address_in_use_is_an_error_of_the_caller_not_the_end_of_the_process() -> None:
    # Given a server on a port
    async with serving({}) as client:
        port = client.base_url.port
        assert port is not None
        # When another one wants the same
        second = HealthServer(port, "127.0.0.1", dict, EdgeMetrics("1.0").registry)
        # Then it is told
        with pytest.raises(OSError, match="in use"):
            await second.start()


async def test_signals_stay_with_the_lifecycle() -> None:
    # Given a handler for SIGTERM
    before = signal.getsignal(signal.SIGTERM)
    # When the server starts
    async with serving({}):
        # Then it is still there
        assert signal.getsignal(signal.SIGTERM) is before


async def test_it_serves_until_it_is_told_to_stop() -> None:
    # Given a server in a task group
    stop = asyncio.Event()
    server = HealthServer(0, "127.0.0.1", dict, EdgeMetrics("1.0").registry)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run(stop))
        await eventually(lambda: server.bound_port)
        # When stop is set
        stop.set()
    # Then it listens no more
    with pytest.raises(OSError, match=r"(?i)connect"):
        await asyncio.open_connection("127.0.0.1", server.bound_port)
