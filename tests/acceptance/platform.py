"""A whole platform as a black box: started by its command, reached over its public doors, killed by pid."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import asyncpg
import jwt

from lilith_client import Client, Event, Rest
from tests.support.eventually import wait_until

ROOT: Final = Path(__file__).parents[2]
START_S: Final = 60.0
STOP_S: Final = 20.0
SECRET: Final = "acceptance-tests-only-" + secrets.token_hex(16)
OnEvent = Callable[[Event], None]


class Platform:
    """``lilith up --json`` on a folder of its own. ``environment`` comes on top of this process's."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk' / 'python'}",
            "JWT_SECRET": SECRET,
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.described: dict[str, Any] = {}

    @property
    def api(self) -> str:
        """The address of REST."""
        return str(self.described["api"])

    @property
    def edges(self) -> list[str]:
        """The WebSocket addresses."""
        return list(self.described["edges"])

    @property
    def log(self) -> str:
        """What the supervisor said."""
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Start everything and wait for the line that says so."""
        output = self.directory.with_suffix(".out")
        with output.open("wb") as out, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command("up", "--json", "--port", f"{20_000 + secrets.randbelow(8_000)}"),
                env=self.environment,
                cwd=ROOT,
                stdout=out,
                stderr=log,
            )
        wait_until(
            lambda: b"\n" in output.read_bytes() or self._process_ended(),
            within_s=START_S,
            because="the platform did not become ready",
        )
        assert not self._process_ended(), self.log
        self.described = json.loads(output.read_text())

    def stop(self) -> float:
        """Stop everything as Ctrl+C does; return how long it took."""
        process, self._process = self._process, None
        if process is None:
            return 0.0
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(STOP_S) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        return time.monotonic() - began

    def kill9(self, name: str) -> None:
        """Kill one process in the middle of whatever it does, and wait until its successor is ready."""
        before = self.pids()[name]
        assert before is not None
        os.kill(before, signal.SIGKILL)
        wait_until(
            lambda: self.pids()[name] not in {before, None} and self.ready(),
            within_s=30.0,
            because=f"{name} did not come back",
        )

    @contextmanager
    def suspended(self, name: str) -> Iterator[None]:
        """Keep one process stopped, alive and deaf, as a machine that hangs."""
        pid = self.pids()[name]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def pids(self) -> dict[str, int | None]:
        """Return the processes that run now."""
        found: dict[str, int | None] = self._ps()["pids"]
        return found

    def ready(self) -> bool:
        """Return whether every process is ready."""
        return bool(self._ps()["ready"])

    def lilith(
        self,
        *words: str,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> subprocess.Popen[str]:
        """Start another command of the platform on the same folder."""
        return subprocess.Popen(
            self._command(*words),
            env=self.environment,
            cwd=ROOT,
            text=True,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )

    def token(self, user: str, *, role: str = "client") -> str:
        """Return a token as the platform's login service would make it."""
        now = int(time.time())
        claims = {"sub": user, "role": role, "name": user.title(), "iat": now, "exp": now + 3600}
        return jwt.encode(claims, SECRET, algorithm="HS256")

    def rest(self, user: str) -> Rest:
        """Return REST as ``user``."""
        return Rest(self.api, self.token(user))

    def client(self, user: str, *, edge: int = 0, on_event: OnEvent | None = None) -> Client:
        """Return a client of ``user`` that begins at ``edge`` and knows the others."""
        edges = [*self.edges[edge:], *self.edges[:edge]]
        return Client(edges, self.token(user), api=self.api, on_event=on_event)

    async def rows(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Return what PostgreSQL holds."""
        connection = await asyncpg.connect(self.described["database"])
        try:
            return list(await connection.fetch(statement, *arguments))
        finally:
            await connection.close()

    def close(self) -> None:
        """Leave nothing running, whatever happened."""
        with suppress(AssertionError, subprocess.TimeoutExpired):
            self.stop()

    @property
    def _log(self) -> Path:
        return self.directory.with_suffix(".log")

    def _ps(self) -> dict[str, Any]:
        done = subprocess.run(
            self._command("ps", "--json"),
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            timeout=20,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _command(self, word: str, *words: str) -> list[str]:
        return [
            sys.executable,
            "-P",
            "-m",
            "cli.main",
            word,
            "--data-dir",
            f"{self.directory}",
            *words,
        ]

    def _process_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None
