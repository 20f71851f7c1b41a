"""One supervised process: started, waited for, started again when it dies, stopped when asked."""

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.console import Console, last_lines
from cli.data_directory import Recorded
from cli.processes import Launch, ProcessName, popen_options, process_name, signal_process
from shared.errors import LilithError
from shared.waiting import is_set_within

FIRST_DELAY_S: Final = 0.1
DELAY_MAX_S: Final = 5.0
STABLE_S: Final = 30.0
READY_S: Final = 60.0
_ATTEMPTS_MAX: Final = 3
_POLL_S: Final = 0.025
_LINES_SHOWN: Final = 15


class StartFailedError(LilithError):
    """A child did not become ready. The text holds the end of its log."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run and how to tell that it is ready.

    ``prepare`` runs in a thread before every start, ``is_ready`` (with the pid) in one while waiting;
    each returns within a second or so. After ``stop_s`` seconds a stop becomes a kill. Without
    ``log_shown`` its lines go to the log file only.
    """

    name: str
    launch: Launch
    is_ready: Callable[[int], bool]
    stop_s: float
    prepare: Callable[[], None] = lambda: None
    log_shown: bool = True


class Child:
    """Keeps one process running until ``stop``; ``on_change`` is called whenever pid or readiness moved."""

    def __init__(
        self, spec: ChildSpec, log: Path, console: Console, on_change: Callable[[], None]
    ) -> None:
        self.spec = spec
        self.log = log
        self._console = console
        self._on_change = on_change
        self._stopping = asyncio.Event()
        self._finished = asyncio.Event()
        self._settled = asyncio.Event()  # Ready, or given up.
        self._failure = ""
        self._was_ready = False
        self._record = self._recorded(None)

    @property
    def record(self) -> Recorded:
        """The process of now and whether it is ready."""
        return self._record

    async def run(self) -> None:
        """Start the process, and again with back-off whenever it ends, until ``stop`` is called.

        A child that was never ready is given up after three attempts, one that was is never.
        """
        delay_s, attempts = FIRST_DELAY_S, 0
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                ended = await self._run_once()
                attempts += 1
                if self._stopping.is_set():
                    return
                if not self._was_ready and attempts >= _ATTEMPTS_MAX:
                    self._give_up(ended)
                    return
                if time.monotonic() - began > STABLE_S:
                    delay_s = FIRST_DELAY_S
                self._say(f"{ended}; starting again in {delay_s:.1f} s")
                await is_set_within(self._stopping, delay_s)
                delay_s = min(2 * delay_s, DELAY_MAX_S)
        finally:
            self._finished.set()

    async def wait_ready(self) -> None:
        """Return when the process has been ready once.

        Raises:
            StartFailedError: It ended three times before, or was not ready within a minute.
        """
        if not await is_set_within(self._settled, READY_S):
            self._give_up(f"was not ready within {READY_S:.0f} s")
        if self._failure:
            raise StartFailedError(self._failure)

    async def stop(self) -> None:
        """End the process: its own signal first, SIGKILL after ``stop_s`` seconds."""
        self._stopping.set()
        self.signal(self.spec.launch.stop_signal)
        if not await is_set_within(self._finished, self.spec.stop_s):
            self._say(f"did not end within {self.spec.stop_s:.1f} s and is killed")
            self.signal(signal.SIGKILL)
            await self._finished.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send ``number`` to the process of now, if there is one."""
        if self._record.process is not None:
            signal_process(self._record.process, number)

    async def _run_once(self) -> str:
        """Run the process to its end and say how that was."""
        launch = self.spec.launch
        try:
            await asyncio.to_thread(self.spec.prepare)
            with self.log.open("ab") as log:
                # Forked by this thread, which lives as long as we do: the signal that a child gets
                # at the death of its parent is tied to the thread.
                process = await asyncio.create_subprocess_exec(
                    *launch.argv, **popen_options(launch, log)
                )
        except (OSError, LilithError) as error:
            return f"could not be started: {error}"
        name = process_name(process.pid) or ProcessName(process.pid, 0)
        self._changed(self._recorded(name))
        probing = asyncio.create_task(self._probe(name), name=f"probe {self.spec.name}")
        if self._stopping.is_set():  # The stop came while the process was being made.
            signal_process(name, launch.stop_signal)
        try:
            code = await process.wait()
        finally:
            probing.cancel()
            self._changed(self._recorded(None))
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return f"ended with {how}"

    async def _probe(self, name: ProcessName) -> None:
        while not await asyncio.to_thread(self.spec.is_ready, name.pid):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        self._was_ready = True
        self._changed(self._recorded(name, ready=True))
        self._settled.set()

    def _recorded(self, process: ProcessName | None, *, ready: bool = False) -> Recorded:
        return Recorded(process, ready=ready, stop_signal=self.spec.launch.stop_signal)

    def _changed(self, record: Recorded) -> None:
        self._record = record
        self._on_change()

    def _give_up(self, why: str) -> None:
        said = "\n".join(f"    {line}" for line in last_lines(self.log, lines_max=_LINES_SHOWN))
        self._failure = f"{self.spec.name} {why}. Its log, {self.log}, ends with\n{said}"
        self._settled.set()

    def _say(self, text: str) -> None:
        self._console.note(text, name=self.spec.name)
