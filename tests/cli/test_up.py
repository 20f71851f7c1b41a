"""The whole platform from one command: what it prints, what survives which kill, what is left at the end."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from cli.embedded.nats import NATS_USERS
from cli.ports import PortReservations
from cli.processes import process_name
from tests.support.eventually import wait_until
from tests.support.reading import first_line
from tests.support.servers import NatsServer

ROOT = Path(__file__).parents[2]
START_S = 60.0
STOP_S = 5.0
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": os.environ.get("HOME", "/"),
    "PYTHONPATH": os.pathsep.join([f"{ROOT}", f"{ROOT / 'sdk' / 'python'}"]),
    **{key: value for key, value in os.environ.items() if key == "PYTHONPYCACHEPREFIX"},
}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
pytestmark = pytest.mark.slow
NAMES = {"postgres", "nats", "persister", "analytics", "api", "edge-0", "edge-1"}


class Up:
    """One ``lilith up --json``, and what its one line said."""

    def __init__(
        self,
        data_dir: Path,
        port: int,
        *options: str,
        python: str = sys.executable,
        user: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir
        words = ["up", "--json", "--data-dir", f"{data_dir}", "--port", f"{port}", *options]
        self.process = subprocess.Popen(
            [python, "-m", "cli.main", *words],
            env={**ENVIRONMENT, **(environment or {})},
            cwd=data_dir.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )

    def ready(self) -> dict[str, Any]:
        """Wait for the line, and return it."""
        assert self.process.stdout is not None
        line = first_line(self.process.stdout, within_s=START_S)
        assert line, f"not ready: {self.end()}"
        said: dict[str, Any] = json.loads(line)
        return said

    def end(self, number: signal.Signals = signal.SIGKILL) -> str:
        """Send ``number`` when it still runs, wait for the end, and return the rest of its output."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        stdout, stderr = self.process.communicate(timeout=START_S)
        return f"{stdout}{stderr}"


def lilith(*words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *words],
        env=ENVIRONMENT,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def get(url: str, token: str | None = None) -> tuple[int, str]:
    """Return status and body; 0 when nobody answers."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        answer = httpx.get(url, headers=headers, timeout=5)
    except httpx.TransportError:
        return 0, ""
    return answer.status_code, answer.text


def answers(url: str) -> bool:
    return get(url)[0] == 200


def running(pids: dict[str, int]) -> list[str]:
    return [name for name, pid in pids.items() if process_name(pid) is not None]


def new_data_dir(server_directory: Path) -> Path:
    parent = server_directory / f"up-{secrets.token_hex(4)}"
    parent.mkdir(mode=0o755)
    return parent / "data"


@pytest.fixture(scope="module")
def up(server_directory: Path) -> Iterator[Up]:
    """One platform for every test that leaves it as it found it."""
    platform = Up(new_data_dir(server_directory), free_port())
    yield platform
    platform.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def said(up: Up) -> dict[str, Any]:
    """Its one line."""
    return up.ready()


def test_the_line_says_where_everything_is(up: Up, said: dict[str, Any]) -> None:
    assert said["ready"] is True
    assert set(said["pids"]) == NAMES
    assert len(said["edges"]) == 2
    assert said["ws"] == said["edges"][0]
    assert urlsplit(said["ws"]).path == "/ws/messaging"
    assert set(said["metrics"]) == NAMES - {"postgres", "nats"}
    assert said["data_dir"] == f"{up.data_dir}"
    assert said["version"]
    assert sorted(running(said["pids"])) == sorted(NAMES)


def test_the_pids_are_the_real_processes(said: dict[str, Any]) -> None:
    for name, pid in said["pids"].items():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        service = name.split("-")[0]
        if service == "postgres":
            assert words[0].endswith("/postgres")
        elif service == "nats":
            assert words[0].endswith("/nats-server")
        else:
            assert words[1:4] == ["-P", "-m", service]


def test_every_process_shows_its_metrics(said: dict[str, Any]) -> None:
    for name, url in said["metrics"].items():
        status, body = get(url)
        assert status == 200, name
        assert "messaging_" in body, name


async def test_the_database_address_works_and_holds_the_tables(said: dict[str, Any]) -> None:
    connection = await asyncpg.connect(said["database"])
    assert await connection.fetchval("SELECT to_regclass('messages') IS NOT NULL")
    await connection.close()


def test_a_token_of_the_command_line_opens_the_api_and_no_other_does(
    up: Up, said: dict[str, Any]
) -> None:
    # Given a token for this data directory, and one for another
    token = lilith("token", "--user", "ava", "--data-dir", f"{up.data_dir}", cwd=up.data_dir.parent)
    foreign = lilith("token", "--user", "ava", "--data-dir", "other", cwd=up.data_dir.parent)
    # Then the first one is taken, the second and none at all are not
    status, body = get(f"{said['api']}/api/me", token)
    assert status == 200
    assert json.loads(body)["user_id"] == "ava"
    assert get(f"{said['api']}/api/me", foreign)[0] == 401
    assert get(f"{said['api']}/api/me")[0] == 401


def test_ps_shows_the_same_processes(up: Up, said: dict[str, Any]) -> None:
    shown = json.loads(lilith("ps", "--json", "--data-dir", f"{up.data_dir}", cwd=ROOT))
    assert shown == {"ready": True, "pids": said["pids"]}


def test_a_second_start_on_the_same_folder_is_refused(up: Up, said: dict[str, Any]) -> None:
    second = Up(up.data_dir, free_port())
    assert second.process.wait(START_S) == 1
    assert f"pid {up.process.pid}" in second.end()
    assert sorted(running(said["pids"])) == sorted(NAMES)


@pytest.mark.parametrize("name", ["nats", "edge-1", "api", "persister", "postgres"])
def test_a_killed_process_comes_back_at_the_same_address(
    up: Up, said: dict[str, Any], name: str
) -> None:
    # Given a ready platform (an edge that comes back checks that NATS has every stream again)
    def shown() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            lilith("ps", "--json", "--data-dir", f"{up.data_dir}", cwd=ROOT)
        )
        return found

    before = wait_until(lambda: (found := shown())["ready"] and found, within_s=20)
    # When one process is killed -9
    os.kill(before["pids"][name], signal.SIGKILL)
    wait_until(lambda: process_name(before["pids"][name]) is None)
    # Then another one takes its place, and answers where the first one did
    after = wait_until(
        lambda: (
            (found := shown())["ready"] and found["pids"][name] != before["pids"][name] and found
        ),
        within_s=20,
    )
    assert process_name(after["pids"][name]) is not None
    token = lilith("token", "--user", "ava", "--data-dir", f"{up.data_dir}", cwd=ROOT)
    wait_until(lambda: get(f"{said['api']}/api/me", token)[0] == 200, within_s=10)
    for url in said["metrics"].values():
        wait_until(partial(answers, url), within_s=10)


def test_it_stops_within_five_seconds_and_starts_again_where_it_was(server_directory: Path) -> None:
    # Given a ready platform
    data_dir, port = new_data_dir(server_directory), free_port()
    first = Up(data_dir, port)
    before = first.ready()
    # When somebody presses Ctrl+C
    began = time.monotonic()
    first.end(signal.SIGINT)
    # Then it ends with 0 in time, and nothing runs any more
    assert first.process.returncode == 0
    assert time.monotonic() - began < STOP_S
    assert running(before["pids"]) == []
    assert json.loads(lilith("ps", "--json", "--data-dir", f"{data_dir}", cwd=ROOT)) == {
        "ready": False,
        "pids": {},
    }
    # When it is started again
    second = Up(data_dir, port)
    after = second.ready()
    second.end(signal.SIGTERM)
    # Then every address is the same
    for name in ("api", "edges", "nats", "database", "metrics"):
        assert after[name] == before[name], name


async def test_the_start_after_a_kill_finds_what_was_left_and_everything_stored(
    server_directory: Path,
) -> None:
    # Given a ready platform with something in its database, whose supervisor is killed -9
    data_dir, port = new_data_dir(server_directory), free_port()
    first = Up(data_dir, port)
    before = first.ready()
    connection = await asyncpg.connect(before["database"])
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    await connection.close()
    first.end(signal.SIGKILL)
    # When it is started again at once
    second = Up(data_dir, port)
    after = second.ready()
    # Then nothing of the first run is left, the addresses are the same, and so is the database
    assert running(before["pids"]) == []
    assert after["api"] == before["api"]
    connection = await asyncpg.connect(after["database"])
    assert await connection.fetchval("SELECT answer FROM kept") == 42
    await connection.close()
    second.end(signal.SIGTERM)
    assert running(after["pids"]) == []


def test_with_both_servers_given_nothing_is_embedded(up: Up, said: dict[str, Any]) -> None:
    # Given the addresses of running servers, NATS with a login that may not provision
    external = {"DATABASE_URL": said["database"], "NATS_URL": said["nats"]}
    # When the platform is started on them
    other = Up(up.data_dir.with_name("other"), free_port(), "--only-servers", environment=external)
    assert other.process.wait(START_S) == 1
    # Then the database was migrated, no server was started, and NATS refused that login
    said_there = other.end()
    assert "migrations done" in said_there
    assert "postgres ready" not in said_there
    assert "nats ready" not in said_there
    assert "Traceback" not in said_there


def test_the_platform_runs_on_servers_that_somebody_else_runs(
    server_directory: Path, database_url: str, nats_server: NatsServer
) -> None:
    # Given a database, and a NATS server with a login for each service
    logins = {f"NATS_URL_{user.upper()}": nats_server.url(user) for user in NATS_USERS}
    given = {"DATABASE_URL": database_url, "NATS_URL": nats_server.url("platform"), **logins}
    # When the platform is started on them
    up = Up(new_data_dir(server_directory), free_port(), "--edges", "1", environment=given)
    said = up.ready()
    # Then only services run, each with its own login and no other's, and edges without the database
    assert set(said["pids"]) == {"edge-0", "persister", "analytics", "api"}
    assert (said["database"], said["nats"]) == (database_url, nats_server.url("platform"))
    for name, pid in said["pids"].items():
        lines = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        held = dict(line.split("=", 1) for line in lines if line)
        assert held["NATS_URL"] == nats_server.url(name.split("-")[0])
        assert not [key for key in held if key.startswith("NATS_URL_")]
        assert ("DATABASE_URL" in held) == (name != "edge-0")
    up.end(signal.SIGTERM)
    assert up.process.returncode == 0


@needs_root
def test_below_a_closed_home_the_servers_data_lies_elsewhere_and_is_found_again(
    tmp_path: Path,
) -> None:
    # Given a folder that only root may enter
    tmp_path.chmod(0o700)
    data_dir, port = tmp_path / "data", free_port()
    try:
        # When the servers are started in it, twice
        stored = []
        for _ in range(2):
            up = Up(data_dir, port, "--only-servers")
            up.ready()
            stored.append(json.loads((data_dir / "state.json").read_text())["servers_home"])
            assert "exit" not in up.end(signal.SIGINT)
            assert up.process.returncode == 0
        # Then their data was found again, outside, and the folder is as closed as before
        assert stored[0] == stored[1]
        assert Path(stored[0], "postgres", "cluster").is_dir()
        assert tmp_path.stat().st_mode & 0o777 == 0o700
    finally:
        shutil.rmtree(json.loads((data_dir / "state.json").read_text())["servers_home"])


@needs_root
def test_an_ordinary_user_runs_everything_under_their_own_name(server_directory: Path) -> None:
    # Given an ordinary user with a folder of their own and a Python that they can reach
    python = shutil.which(
        f"python{sys.version_info[0]}.{sys.version_info[1]}", path="/usr/bin:/usr/local/bin"
    )
    if python is None:
        pytest.skip("no interpreter of this version outside of root's home")
    home = server_directory / f"user-{secrets.token_hex(4)}"
    home.mkdir(mode=0o755)
    os.chown(home, 65534, 65534)
    paths = [f"{ROOT}", f"{ROOT / 'sdk' / 'python'}", sysconfig.get_path("purelib")]
    scripts = sysconfig.get_path("scripts")
    # When they start the servers
    up = Up(
        home / "data",
        free_port(),
        "--only-servers",
        python=python,
        user=65534,
        environment={
            "HOME": f"{home}",
            "PATH": f"{scripts}:/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join(paths),
        },
    )
    said = up.ready()
    # Then the servers are theirs, and stop like any other
    for pid in said["pids"].values():
        assert Path(f"/proc/{pid}").stat().st_uid == 65534
    up.end(signal.SIGINT)
    assert up.process.returncode == 0
    assert running(said["pids"]) == []


def free_port() -> int:
    reservations = PortReservations()
    port = reservations.search(23_000 + secrets.randbelow(5_000))
    reservations.release()
    return port
