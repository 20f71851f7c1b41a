"""Starting processes so that they never outlive us unnoticed, and naming them so that no other is hit.

A process is named by its pid **and** its start time: a pid alone is reused by the kernel.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from cli.embedded.privileges import Account

_PR_SET_PDEATHSIG: Final = 1
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Launch:
    """How one process is started and asked to end.

    ``account`` None means our own user. ``stop_signal`` is what asks for a clean end.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM


class ProcessName(NamedTuple):
    """One process of this boot of this machine, for ever: ``started`` is in clock ticks since boot."""

    pid: int
    started: int


def popen_options(launch: Launch, log: IO[bytes] | int) -> dict[str, Any]:
    """Return the keyword arguments of ``Popen`` and ``create_subprocess_exec`` for ``launch``.

    The child gets its own session, because Ctrl+C in a terminal signals the whole foreground group
    and the order of stopping is the supervisor's. Its output goes straight into ``log``: a pipe
    would end with the supervisor and take nats-server's clean shutdown with it (SIGPIPE).
    """
    options: dict[str, Any] = {
        "env": dict(launch.env),
        "cwd": launch.cwd,
        "stdin": subprocess.DEVNULL,
        "stdout": log,
        "stderr": subprocess.STDOUT,
        "start_new_session": True,
        "preexec_fn": _ends_with_parent(launch.stop_signal),
    }
    if launch.account is not None:
        options |= {"user": launch.account.uid, "group": launch.account.gid, "extra_groups": []}
    return options


def process_name(pid: int) -> ProcessName | None:
    """Return the full name of the running process ``pid``, or None when there is none (or a zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name, in parentheses, may itself hold spaces and parentheses.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else ProcessName(pid, int(fields[18]))


def is_running(name: ProcessName) -> bool:
    """Return whether exactly this process still runs."""
    return process_name(name.pid) == name


def signal_process(name: ProcessName, number: signal.Signals) -> bool:
    """Send ``number`` to this very process; return False when it is gone already."""
    if not is_running(name):
        return False
    try:
        os.kill(name.pid, number)
    except ProcessLookupError:
        return False
    return True


def end_process(name: ProcessName, number: signal.Signals, *, grace_s: float) -> None:
    """Ask the process to end with ``number``, wait ``grace_s`` seconds, then kill it."""
    if not signal_process(name, number):
        return
    deadline = time.monotonic() + grace_s
    while is_running(name):
        if time.monotonic() > deadline:
            signal_process(name, signal.SIGKILL)
            deadline = time.monotonic() + grace_s
        time.sleep(_POLL_S)


def _ends_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Return what a child runs before exec, so that it is signalled when its parent is killed -9."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(
        None, use_errno=True
    ).prctl  # Looked up before the fork: no import after it.
    parent = os.getpid()

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # It died between our fork and the line above.
            os._exit(1)

    return before_exec
