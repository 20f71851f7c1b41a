"""The supervisor over real, tiny processes: order, restart, stop, and what a kill leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.child import FIRST_DELAY_S
from cli.data_directory import DataDirectory
from cli.processes import ProcessName, is_running, process_name
from tests.support.eventually import wait_until
from tests.support.reading import first_line

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("standin_platform.py")
START_S = 20.0

IGNORES_SIGTERM = """
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(os.environ["READY"]).touch()
time.sleep(60)
"""
SURVIVES_ITS_PARENT = """
import ctypes, os, pathlib, time
ctypes.CDLL(None).prctl(1, 0)  # Takes back what the supervisor asked the kernel for.
pathlib.Path(os.environ["READY"]).touch()
time.sleep(60)
"""
NEVER_STARTS = "print('the configuration is impossible'); raise SystemExit(2)"


class Platform:
    """One run of ``standin_platform.py``."""

    def __init__(self, directory: Path, *children: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, f"{PROGRAM}", f"{directory}", *children],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.seen: list[ProcessName] = []

    def pids(self) -> dict[str, int]:
        """Wait until it is ready."""
        assert self.process.stdout is not None
        line = first_line(self.process.stdout, within_s=START_S)
        assert line, self.end()
        pids: dict[str, int] = json.loads(line)
        self.seen += [name for pid in pids.values() if (name := process_name(pid)) is not None]
        return pids

    def end(self) -> str:
        """Wait for its end and return what it printed on stderr."""
        _, stderr = self.process.communicate(timeout=START_S)
        return stderr

    def kill(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        for name in self.seen:
            if is_running(name):
                os.kill(name.pid, signal.SIGKILL)


Start = Callable[..., Platform]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    platforms: list[Platform] = []

    def begin(*children: str) -> Platform:
        platforms.append(Platform(tmp_path, *children))
        return platforms[-1]

    yield begin
    for platform in platforms:
        platform.kill()


def running(pids: dict[str, int]) -> list[str]:
    return [name for name, pid in pids.items() if process_name(pid) is not None]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_in_reverse_order_with_exit_code_0(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    # Given two stages that are ready
    script = (
        "import os, pathlib, signal, sys, time\n"
        "pathlib.Path(os.environ['READY']).touch()\n"
        "def end(*_):\n"
        "    with open('ends', 'a') as ends: ends.write('{name}\\n')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "time.sleep(60)\n"
    )
    platform = start(*(f"{name}={script.format(name=name)}" for name in ("first", "second")))
    pids = platform.pids()
    # When it is asked to stop
    platform.process.send_signal(number)
    platform.end()
    # Then the last started ended first, nothing runs, and nothing is recorded
    assert platform.process.returncode == 0
    assert (tmp_path / "ends").read_text().splitlines() == ["second", "first"]
    assert running(pids) == []
    assert not (tmp_path / "pids.json").exists()


def test_the_second_stage_starts_only_when_the_first_is_ready(start: Start, tmp_path: Path) -> None:
    # Given a first stage that takes its time
    slow = (
        "import os, pathlib, time\n"
        "time.sleep(0.3)\n"
        "pathlib.Path('ready_at').write_text(str(time.time()))\n"
        "pathlib.Path(os.environ['READY']).touch()\n"
        "time.sleep(60)\n"
    )
    noting = (
        "import os, pathlib, time\n"
        "pathlib.Path('started_at').write_text(str(time.time()))\n"
        "pathlib.Path(os.environ['READY']).touch()\n"
        "time.sleep(60)\n"
    )
    # When both are started
    start(f"slow={slow}", f"second={noting}").pids()
    # Then the second one began later
    assert float((tmp_path / "started_at").read_text()) >= float(
        (tmp_path / "ready_at").read_text()
    )


def test_a_child_that_is_killed_comes_back(start: Start, tmp_path: Path) -> None:
    # Given a running platform
    pids = start().pids()
    directory = DataDirectory(tmp_path)
    # When one child is killed -9
    os.kill(pids["first"], signal.SIGKILL)
    # Then another process of that name is ready soon, and the other child was left alone
    wait_until(lambda: directory.recorded()["first"].process is None)
    wait_until(lambda: directory.recorded()["first"].ready, within_s=10 * FIRST_DELAY_S + 5)
    record = directory.recorded()
    assert record["first"].process is not None
    assert record["first"].process.pid != pids["first"]
    assert record["second"].process is not None
    assert record["second"].process.pid == pids["second"]


def test_a_child_that_ignores_the_signal_is_killed_in_time(start: Start) -> None:
    # Given a child that does not end when asked
    platform = start(f"stubborn={IGNORES_SIGTERM}")
    pids = platform.pids()
    # When the platform stops
    began = time.monotonic()
    platform.process.send_signal(signal.SIGINT)
    said = platform.end()
    # Then the child is gone within its second, and the log says so
    assert time.monotonic() - began < 3
    assert platform.process.returncode == 0
    assert running(pids) == []
    assert "is killed" in said


def test_children_end_with_a_supervisor_that_is_killed(start: Start) -> None:
    # Given a running platform
    platform = start()
    pids = platform.pids()
    # When the supervisor itself is killed -9
    platform.process.kill()
    # Then its children end by themselves
    wait_until(lambda: running(pids) == [])


def test_what_survives_a_killed_supervisor_is_found_and_ended_by_the_next_start(
    start: Start,
) -> None:
    # Given a child that outlives its killed supervisor
    platform = start(f"tough={SURVIVES_ITS_PARENT}")
    pids = platform.pids()
    platform.process.kill()
    platform.process.wait()
    assert running(pids) == ["tough"]
    # When the platform starts again on the same data
    start(f"tough={SURVIVES_ITS_PARENT}").pids()
    # Then the old one is gone
    assert running(pids) == []


def test_a_pid_that_another_process_has_now_is_never_signalled(
    start: Start, tmp_path: Path
) -> None:
    with subprocess.Popen(["sleep", "60"]) as innocent:
        # Given a killed supervisor, and a record whose pid belongs to somebody else by now
        platform = start()
        pids = platform.pids()
        platform.process.kill()
        wait_until(lambda: running(pids) == [])
        record = json.loads((tmp_path / "pids.json").read_text())
        name = process_name(innocent.pid)
        assert name is not None
        record["children"]["first"]["process"] = [name.pid, name.started - 1]
        (tmp_path / "pids.json").write_text(json.dumps(record))
        # When the platform starts again
        start().pids()
        # Then that process was left alone
        assert innocent.poll() is None
        innocent.kill()


def test_a_second_supervisor_on_the_same_folder_is_refused_with_a_sentence(start: Start) -> None:
    # Given a running platform
    first = start()
    pids = first.pids()
    # When another one is started on its folder
    second = start()
    said = second.end()
    # Then it ends with 1 and says who holds the folder, and the first one runs on
    assert second.process.returncode == 1
    assert f"in use by the supervisor with pid {first.process.pid}" in said
    assert "--data-dir" in said
    assert running(pids) == ["first", "second"]


def test_a_child_that_never_starts_fails_the_start_with_the_end_of_its_log(start: Start) -> None:
    # Given a first stage that is fine and a second one that cannot start
    platform = start(
        "fine=import os, pathlib, time; pathlib.Path(os.environ['READY']).touch(); time.sleep(60)",
        f"broken={NEVER_STARTS}",
    )
    # When it is started
    said = platform.end()
    # Then it ends with 1, shows why, and leaves nothing running
    assert platform.process.returncode == 1
    assert "broken ended with exit code 2" in said
    assert "the configuration is impossible" in said.splitlines()[-1]
    assert "fine" in said


def test_the_logs_of_the_last_runs_are_kept(start: Start, tmp_path: Path) -> None:
    # Given two runs, one after the other
    for _ in range(2):
        platform = start()
        platform.pids()
        platform.process.send_signal(signal.SIGTERM)
        platform.end()
    # Then both logs are there, and each holds one run
    assert (tmp_path / "log" / "first.log").read_text() == "serving\n"
    assert (tmp_path / "log" / "first.log.1").read_text() == "serving\n"


def test_log_lines_are_shown_with_the_name_and_without_colours_when_nobody_looks(
    start: Start,
) -> None:
    # Given a platform whose stderr is no terminal
    platform = start()
    platform.pids()
    # When it has run for a moment
    time.sleep(0.2)
    platform.process.send_signal(signal.SIGTERM)
    said = platform.end()
    # Then its children's lines carry their names, plainly
    assert "first      | serving" in said
    assert "\x1b[" not in said
