"""The demo: alive at once, with people to be, and quick the second time."""

import json
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import jwt
import pytest

from tests.cli.test_up import ENVIRONMENT, ROOT, free_port
from tests.support.eventually import wait_until

pytestmark = pytest.mark.slow
START_S = 90.0
STOP_S = 5.0


class Demo:
    """One ``lilith demo``."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self._output = data_dir.with_suffix(".out")
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "cli.main",
                    "demo",
                    "--data-dir",
                    f"{data_dir}",
                    "--port",
                    f"{port}",
                ],
                env=ENVIRONMENT,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    def ready(self) -> str:
        """Wait for the lines at the end of the start, and return everything said so far."""
        wait_until(
            lambda: "production see" in self.said or self.process.poll() is not None,
            within_s=START_S,
        )
        assert self.process.poll() is None, self.said
        return self.said

    def stop(self) -> float:
        """Press Ctrl+C; return how long the end took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(START_S)
        return time.monotonic() - began


def test_the_demo_lives_and_its_history_is_there_at_the_next_start(server_directory: Path) -> None:
    # Given a demo that was started for the first time
    parent = server_directory / f"demo-{secrets.token_hex(4)}"
    parent.mkdir(mode=0o755)
    port = free_port()
    first = Demo(parent / "data", port)
    try:
        said = first.ready()
        # Then it names two people, and their tokens open a world that is inhabited
        tokens = re.findall(r"token: (\S+)", said)
        people = [jwt.decode(t, options={"verify_signature": False})["sub"] for t in tokens]
        assert people == ["ava", "ben"]
        assert "./run chat --user ava --with ben" in said
        before = threads(said, tokens[0])
        assert len(before) >= 6
        assert all(thread["last_message"] for thread in before)
        # When Ctrl+C is pressed, then everything ends in time
        assert first.stop() < STOP_S
        assert first.process.returncode == 0
    finally:
        first.process.kill()
    # When it is started again
    second = Demo(parent / "data", port)
    try:
        said = second.ready()
        # Then nothing is seeded, and the same threads are there
        assert "demo data:" not in said
        after = threads(said, re.findall(r"token: (\S+)", said)[0])
        assert {t["thread_id"] for t in before} <= {t["thread_id"] for t in after}
        assert second.stop() < STOP_S
        assert second.process.returncode == 0
    finally:
        second.process.kill()


def threads(said: str, token: str) -> list[dict[str, object]]:
    """Return the threads that the holder of ``token`` sees."""
    match = re.search(r"REST docs +(\S+)/docs", said)
    assert match is not None
    answer = httpx.get(
        f"{match[1]}/api/threads?limit=100",
        headers={"Authorization": f"Bearer {token}"},
        timeout=10,
    )
    assert answer.status_code == 200, answer.text
    found: list[dict[str, object]] = json.loads(answer.text)["items"]
    return found
