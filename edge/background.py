"""Work beside the callbacks: rare, awaited by nobody, owned by one task group."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

Spawn = Callable[[Coroutine[Any, Any, None]], None]
"""Runs a coroutine in the background; the node's task group owns it."""

_log = logging.getLogger(__name__)


class Background:
    """Owns every coroutine that a callback starts. A failing one is logged and stops no other."""

    def __init__(self) -> None:
        self._tasks = asyncio.TaskGroup()
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Sessions are closed by now: whatever still waits, waits for nobody.
        for task in self._running:
            task.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` until it ends or this group does."""
        task = self._tasks.create_task(_logged(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        _log.exception("work in the background failed")
