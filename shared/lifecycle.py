"""The life of one service process: settings, logs, event loop, signals, drain, exit code.

::

    async def main(life: Lifecycle) -> None:
        async with asyncio.TaskGroup() as tasks:        # everything that runs, owned here
            ...                                         # until life.stop is set, then finish and return

    if __name__ == "__main__":
        raise SystemExit(run_service("persister", main))

SIGTERM and SIGINT set ``stop``; nobody is cancelled in the middle of a batch. What has not returned ``drain_s`` later,
or at a second signal, is cancelled. Exit codes: 0 drained, 1 failed, 2 the configuration is impossible.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

import uvloop

from shared.errors import ConfigurationError, LilithError
from shared.logs import configure_logs
from shared.settings import Settings, load_settings, unknown_names

DRAIN_S: Final = 10.0
_CANCEL_S: Final = 2.0
"""What is cancelled may take this long to let go."""
_GC_THRESHOLD: Final = 100_000
"""A full walk over 10,000 sessions costs tens of milliseconds; most of what we allocate is freed by its last user."""
EXIT_FAILED: Final = 1
EXIT_CONFIGURATION: Final = 2

_log = logging.getLogger(__name__)


class Lifecycle:
    """What a service's ``main`` is handed: its settings, and the event that ends it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stop = asyncio.Event()
        self.failure: str | None = None

    def fail(self, reason: str) -> None:
        """Drain and end with exit code 1, so that the supervisor starts a fresh process. For ``on_closed``."""
        if self.failure is None:
            self.failure = reason
            _log.error("ends: %s", reason)
        self.stop.set()


Main = Callable[[Lifecycle], Coroutine[Any, Any, None]]


def run_service(name: str, main: Main, *, drain_s: float = DRAIN_S) -> int:
    """Run ``main`` until it returns, and return the exit code of the process.

    Args:
        name: ``edge``, ``persister``, …: shown in logs.
        main: Gets the ``Lifecycle``; returns soon after ``stop`` is set.
        drain_s: Seconds between ``stop`` and cancellation.
    """
    try:
        settings = load_settings()
    except ConfigurationError as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201 - there is no log before the settings
        return EXIT_CONFIGURATION
    configure_logs(
        service=name,
        node=settings.messaging_node_name,
        level=settings.log_level,
        form=settings.log_format,
    )
    for sentence in unknown_names():
        _log.warning(sentence)
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_live(name, main, settings, drain_s))


async def _live(name: str, main: Main, settings: Settings, drain_s: float) -> int:
    life = Lifecycle(settings)
    work = asyncio.create_task(main(life), name=name)
    _listen_to_signals(life, work)
    stopping = asyncio.create_task(life.stop.wait(), name="stop")
    await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    drained = bool((await asyncio.wait({work}, timeout=drain_s))[0])
    if not drained:
        _log.error("not drained within %s s: cancelled", drain_s)
        work.cancel()
        await asyncio.wait({work}, timeout=_CANCEL_S)
        if not work.done():
            # Waiting for a task that swallows its cancellation would keep the process for ever.
            _log.error("does not let go of its cancellation: killed")
            logging.shutdown()
            os._exit(EXIT_FAILED)
    stopping.cancel()
    code = _exit_code(work)
    if life.failure is not None or not drained:
        return code or EXIT_FAILED
    return code


def _listen_to_signals(life: Lifecycle, work: asyncio.Task[None]) -> None:
    def receive(name: str) -> None:
        if life.stop.is_set():
            _log.warning("%s again: cancelled", name)
            work.cancel()
        else:
            _log.info("%s: drains", name)
            life.stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, receive, number.name)


def _exit_code(work: asyncio.Task[None]) -> int:
    if work.cancelled():
        return EXIT_FAILED
    error = work.exception()
    if error is None:
        return 0
    causes = _causes(error)
    if all(isinstance(cause, ConfigurationError) for cause in causes):
        for cause in causes:
            _log.error("%s", cause)
        return EXIT_CONFIGURATION
    if all(isinstance(cause, LilithError) for cause in causes):
        # Ours says what is wrong in its own words; a traceback would hide them.
        for cause in causes:
            _log.error("ends: %s", cause)
    else:
        _log.error("ends: a bug or an unforeseen failure", exc_info=error)
    return EXIT_FAILED


def _causes(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [cause for inner in error.exceptions for cause in _causes(inner)]
    return [error]
