"""Runs the processes of the platform: starts them in order, keeps them running, stops them in reverse.

Knows nothing of what they are: ``cli.stack`` says that in a list of stages.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cli.child import Child, ChildSpec
from cli.console import Console, LogFollower, rotate_log
from cli.data_directory import DataDirectory
from cli.processes import end_process, signal_process
from shared.errors import LilithError

_LEFTOVER_GRACE_S: Final = 3.0
_LET_GO_S: Final = 0.7
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Stage:
    """Processes that start side by side, then the steps that need them, one after the other.

    A step is a name and what to do; it raises a LilithError to say that the platform cannot start.
    """

    children: Sequence[ChildSpec] = ()
    steps: Sequence[tuple[str, Callable[[], Awaitable[object]]]] = ()


class Supervisor:
    """Runs stages on one data directory, whose lock the caller holds."""

    def __init__(self, directory: DataDirectory, console: Console, *, show_logs: bool) -> None:
        self._directory = directory
        self._console = console
        self._show_logs = show_logs
        self._children: list[Child] = []
        self._stop = asyncio.Event()
        self._began = time.monotonic()

    async def run(
        self,
        stages: Sequence[Stage],
        on_ready: Callable[[Mapping[str, int]], Awaitable[None]],
    ) -> None:
        """Start the stages, call ``on_ready`` with the pids, and go on until a signal; then stop all.

        ``on_ready`` may take as long as the platform runs: it is cancelled at the stop.

        Raises:
            LilithError: A child did not become ready or a step failed. Everything is stopped again.
        """
        failure: LilithError | None = None
        for number in _STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._ask_to_stop)
        async with asyncio.TaskGroup() as tasks:
            followers: list[asyncio.Task[None]] = []
            try:
                await self._until_stopped(self._start(stages, on_ready, tasks, followers))
            except LilithError as error:
                failure = error
            finally:
                await self._stop_all(stages)
                for follower in followers:
                    follower.cancel()
        self._directory.forget_record()
        if failure is not None:
            raise failure

    async def _start(
        self,
        stages: Sequence[Stage],
        on_ready: Callable[[Mapping[str, int]], Awaitable[None]],
        tasks: asyncio.TaskGroup,
        followers: list[asyncio.Task[None]],
    ) -> None:
        for stage in stages:
            children = [self._adopt(spec) for spec in stage.children]
            for child in children:
                name = child.spec.name
                tasks.create_task(child.run(), name=f"run {name}")
                shown = self._console if self._show_logs and child.spec.log_shown else None
                follower = LogFollower(child.log, name, shown)
                followers.append(tasks.create_task(follower.follow(), name=f"log {name}"))
            await asyncio.gather(*(self._wait_ready(child) for child in children))
            for name, step in stage.steps:
                await step()
                self._say(f"{name} done")
        await on_ready(self._pids())
        await self._stop.wait()

    async def _until_stopped(self, work: Awaitable[None]) -> None:
        """Run ``work`` until it fails or a signal came; then it is cancelled and has a moment to let go."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.create_task(self._stop.wait(), name="wait for a signal")
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.wait({working, stopping}, timeout=_LET_GO_S)

    async def _wait_ready(self, child: Child) -> None:
        await child.wait_ready()
        self._say(f"{child.spec.name} ready")

    async def _stop_all(self, stages: Sequence[Stage]) -> None:
        if self._children:
            self._say("stopping")
        for stage in reversed(stages):
            # The last started end first: a server must outlive the services that use it.
            specs = list(stage.children)
            await asyncio.gather(*(c.stop() for c in self._children if c.spec in specs))

    def _adopt(self, spec: ChildSpec) -> Child:
        log = self._directory.log / f"{spec.name}.log"
        rotate_log(log)
        child = Child(spec, log, self._console, self._write_record)
        self._children.append(child)
        return child

    def _write_record(self) -> None:
        self._directory.record({child.spec.name: child.record for child in self._children})

    def _pids(self) -> dict[str, int]:
        records = {child.spec.name: child.record.process for child in self._children}
        return {name: process.pid for name, process in records.items() if process is not None}

    def _ask_to_stop(self) -> None:
        if self._stop.is_set():  # Asked twice: somebody is in a hurry.
            for child in self._children:
                child.signal(signal.SIGKILL)
        self._stop.set()

    def _say(self, text: str) -> None:
        self._console.note(f"{time.monotonic() - self._began:5.2f} s  {text}")


def stop_leftovers(directory: DataDirectory, console: Console) -> None:
    """End what a killed supervisor of this folder left running, found by pid and start time."""
    leftovers = [
        (name, child.process, child.stop_signal)
        for name, child in reversed(directory.recorded().items())
        if child.process is not None
    ]
    for name, process, number in leftovers:
        console.note(f"ending {name} (pid {process.pid}), left over from a killed run")
        signal_process(process, number)
    for _name, process, number in leftovers:
        end_process(process, number, grace_s=_LEFTOVER_GRACE_S)
    directory.forget_record()
