"""``python -m api`` as the supervisor starts it: ready, serving, drained, and refusing to start without a key."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from cli.ports import PortReservations
from shared.auth import make_token
from tests.api.support import SECRET, settings_for
from tests.support.eventually import eventually
from tests.support.fabric import Fabric

ROOT = Path(__file__).parents[2]


def start(fabric: Fabric, port: int, **changed: str) -> subprocess.Popen[bytes]:
    environment = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": fabric.dsn,
        "NATS_URL": fabric.nats.url("api"),
        "JWT_SECRET": SECRET,
        "MESSAGING_API_PORT": str(port),
        "MESSAGING_NODE_NAME": "api-0",
        **changed,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "api"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


async def test_the_process_gets_ready_serves_and_drains(
    fabric: Fabric, port_reservations: PortReservations
) -> None:
    port = port_reservations.search(28_000)
    process = start(fabric, port)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

            async def ready() -> bool:
                assert process.poll() is None
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            # When it runs, it is ready and serves
            await eventually(ready, within_s=20)
            token = make_token(settings_for(fabric), "ava", "client", "Ava")
            headers = {"Authorization": f"Bearer {token}"}
            body = {"kind": "direct", "participants": ["ben"]}
            made = await client.post("/api/threads", json=body, headers=headers)
            assert made.status_code == 201, made.text
        # Then it ends by itself, with nothing left to tell
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert await fabric.count("api_outbox") == 0
    assert SECRET.encode() not in output


def test_without_a_key_it_does_not_start(
    fabric: Fabric, port_reservations: PortReservations
) -> None:
    process = start(fabric, port_reservations.search(28_000), JWT_SECRET="")
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 2
    assert b"JWT_SECRET" in output
