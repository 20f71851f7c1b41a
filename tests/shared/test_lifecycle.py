"""A service process from start to exit code: real processes, real signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.eventually import wait_until

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, sys
from shared.errors import ConfigurationError, LilithError
from shared.lifecycle import Lifecycle, run_service

async def main(life: Lifecycle) -> None:
    print("started", type(asyncio.get_running_loop()).__module__, flush=True)
{body}

raise SystemExit(run_service("test", main, drain_s=0.5))
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a service whose ``main`` has this body, and wait until it runs."""
    processes: list[subprocess.Popen[str]] = []

    def starter(body: str, **environment: str) -> subprocess.Popen[str]:
        indented = "\n".join(f"    {line}" for line in body.splitlines())
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(body=indented)],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "PYTHONPATH": str(ROOT),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield starter
    for process in processes:
        process.kill()
        process.communicate()


def started(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout is not None
    assert process.stdout.readline() == "started uvloop\n"
    return process


def ended(process: subprocess.Popen[str], *, within_s: float = 10) -> tuple[int, str]:
    _, errors = process.communicate(timeout=within_s)
    return process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_service_finish_and_exit_cleanly(
    start: Start, number: signal.Signals
) -> None:
    # Given a service that needs a moment to finish
    process = started(
        start("await life.stop.wait()\nawait asyncio.sleep(0.1)\nprint('finished', flush=True)")
    )
    # When it is asked to end
    process.send_signal(number)
    # Then it finishes first
    assert process.stdout is not None
    assert process.stdout.readline() == "finished\n"
    assert ended(process)[0] == 0


def test_what_does_not_drain_in_time_is_cancelled_and_the_exit_code_says_so(start: Start) -> None:
    # Given a service that ignores the stop event
    process = started(start("await asyncio.sleep(60)"))
    # When it is asked to end
    asked = time.monotonic()
    process.terminate()
    code, errors = ended(process)
    # Then it is cancelled after the drain deadline
    assert code == 1
    assert 0.4 < time.monotonic() - asked < 5
    assert "not drained within 0.5 s" in errors


def test_a_task_that_swallows_its_cancellation_does_not_keep_the_process(start: Start) -> None:
    # Given a service that cannot be cancelled
    body = """while True:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        pass"""
    process = started(start(body))
    # When it is asked to end
    process.terminate()
    code, errors = ended(process)
    # Then it ends all the same
    assert code == 1
    assert "does not let go" in errors


def test_a_second_signal_does_not_wait(start: Start) -> None:
    # Given a service that drains slowly
    process = started(
        start("await life.stop.wait()\nprint('draining', flush=True)\nawait asyncio.sleep(60)")
    )
    process.terminate()
    assert process.stdout is not None
    process.stdout.readline()
    # When it is asked again
    process.terminate()
    # Then it ends at once
    assert ended(process)[0] == 1


def test_a_failure_of_the_fabric_drains_and_ends_with_one(start: Start) -> None:
    # Given a service whose connection closes for ever
    process = start(
        "life.fail('NATS closed')\nawait life.stop.wait()\nprint('drained', flush=True)"
    )
    # When it is told so
    code, errors = ended(started(process))
    # Then it drains, and its supervisor will start a fresh one
    assert code == 1
    assert "NATS closed" in errors


def test_a_service_that_returns_by_itself_has_succeeded(start: Start) -> None:
    assert ended(started(start("return")))[0] == 0


@pytest.mark.parametrize(
    ("body", "code", "text", "has_traceback"),
    [
        ("raise RuntimeError('a bug')", 1, "a bug", True),
        ("raise LilithError('no stream MSG_0')", 1, "no stream MSG_0", False),
        ("raise ConfigurationError('set X to Y')", 2, "set X to Y", False),
        ("raise ExceptionGroup('g', [ConfigurationError('set X to Y')])", 2, "set X to Y", False),
        ("raise ExceptionGroup('g', [LilithError('a'), ValueError('b')])", 1, "ValueError", True),
    ],
)
def test_the_exit_code_and_the_log_say_what_was_wrong(
    start: Start, body: str, code: int, text: str, *, has_traceback: bool
) -> None:
    ended_with, errors = ended(started(start(body)))
    assert ended_with == code
    assert text in errors
    assert ("Traceback" in errors) is has_traceback


def test_impossible_settings_end_it_before_anything_else(start: Start) -> None:
    # Given an impossible setting
    process = start("pass", MESSAGING_API_PORT="seventy")
    # When it starts
    output, errors = process.communicate(timeout=10)
    # Then it does not, and one sentence names the variable
    assert process.returncode == 2
    assert output == ""
    assert errors.startswith("test: MESSAGING_API_PORT: ")
    assert "Traceback" not in errors


def test_an_unknown_setting_is_reported_with_the_nearest_name(start: Start) -> None:
    process = start("return", MESSAGING_THROTLE_LIMIT="5")
    _, errors = ended(started(process))
    assert "did you mean MESSAGING_THROTTLE_LIMIT" in errors


def test_logs_are_lines_of_json_that_name_the_node(start: Start) -> None:
    process = started(start("await life.stop.wait()", MESSAGING_NODE_NAME="edge-7"))
    process.terminate()
    _, errors = ended(process)
    assert '"node":"edge-7"' in errors.replace(" ", "")


def test_the_process_is_gone_after_a_clean_end(start: Start) -> None:
    process = started(start("await life.stop.wait()"))
    process.terminate()
    wait_until(lambda: process.poll() is not None, within_s=10)
    assert process.returncode == 0
