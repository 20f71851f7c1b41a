"""Tail checks: a lost *last* event shows no gap, so the log is asked how far each attached thread goes.

Asked after a reconnect of the live connection, when a stream gets a leader, soon after an attach where replicas may
lag, and for every thread once a minute. The feed of a member says it too: ``thread.activity`` carries a position.
What the log is known to hold and does not come by itself within ``GRACE_S`` is read.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from edge.background import Spawn
from edge.log import ThreadLog
from edge.threads import Threads
from shared.bus import Bus, BusError
from shared.identity import ThreadId
from shared.metrics import EdgeMetrics
from shared.subjects import LEADER_ELECTED
from shared.waiting import is_set_within

GRACE_S: Final = 0.25
AUDIT_S: Final = 60.0
AUDIT_TICKS: Final = 12
ATTACHED_S: Final = 1.0
LEADER_S: Final = (0.1, 1.2, 4.0)
"""When after an election to ask, at most: the old leader's last events, then those of a slow take-over."""

THREADS_MAX: Final = 1_024
"""Of one question; the server refuses more."""

TRIES: Final = 20
RETRY_S: Final = 0.5

_log = logging.getLogger(__name__)


class TailChecks:
    """Finds out which threads of this node are behind the log, and has them repaired."""

    def __init__(
        self,
        threads: Threads,
        log: ThreadLog,
        live: Bus,
        *,
        spawn: Spawn,
        metrics: EdgeMetrics,
        replicas_lag: bool,
    ) -> None:
        self._threads = threads
        self._thread_log = log
        self._spawn = spawn
        self._checks = metrics.tail_checks
        self._behind: set[ThreadId] = set()
        self._attached: set[ThreadId] = set()
        self._part = 0
        live.subscribe(LEADER_ELECTED, self._hear_of_leader)
        live.on_reconnect.append(lambda: spawn(self._check_all("reconnect")))
        threads.on_behind.append(self._note_behind)
        if replicas_lag:
            threads.on_attached.append(self._note_attached)

    async def run(self, stop: asyncio.Event) -> None:
        """Audit every attached thread once in ``AUDIT_S``, a part of them at a time, until ``stop`` is set."""
        # Jittered: edges that started together must not ask together.
        while not await is_set_within(stop, AUDIT_S / AUDIT_TICKS * random.uniform(0.5, 1.5)):  # noqa: S311
            self._part = (self._part + 1) % AUDIT_TICKS
            await self._check(self._of_part(self._part), "audit")

    def _of_part(self, part: int) -> list[ThreadId]:
        # By the id's last digits: a thread keeps its part, whoever comes and goes.
        return [
            thread_id
            for thread_id in self._threads.positions()
            if int(thread_id[-4:], 16) % AUDIT_TICKS == part
        ]

    # ------------------------------------------------------------------ triggers

    def _hear_of_leader(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        del reply, headers, payload
        self._spawn(self._check_after_election(subject.rpartition(b".")[2].decode()))

    async def _check_after_election(self, stream: str) -> None:
        for wait_s in LEADER_S:
            # Spread over the edges: all of them have heard it at once.
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311
            await self._check(
                (
                    thread_id
                    for thread_id in self._threads.positions()
                    if self._thread_log.stream_of(thread_id) == stream
                ),
                "leader",
            )

    def _note_attached(self, thread_id: ThreadId) -> None:
        if not self._attached:
            self._spawn(self._later(ATTACHED_S, self._check_attached))
        self._attached.add(thread_id)

    async def _check_attached(self) -> None:
        attached, self._attached = self._attached, set()
        await self._check(attached, "attach")

    def _note_behind(self, thread_id: ThreadId) -> None:
        if not self._behind:
            self._spawn(self._later(GRACE_S, self._repair_behind))
        self._behind.add(thread_id)

    async def _repair_behind(self) -> None:
        # Mostly the event was on its way and is here by now.
        behind, self._behind = self._behind, set()
        self._checks.of("behind").value += sum(map(self._threads.repair, behind))

    async def _later(self, wait_s: float, work: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(wait_s)
        await work()

    # ------------------------------------------------------------------ asking

    async def _check_all(self, trigger: str) -> None:
        await self._check(self._threads.positions(), trigger)

    async def _check(self, thread_ids: Iterable[ThreadId], trigger: str) -> None:
        by_stream: dict[str, list[ThreadId]] = {}
        for thread_id in thread_ids:
            by_stream.setdefault(self._thread_log.stream_of(thread_id), []).append(thread_id)
        for stream, group in by_stream.items():
            self._checks.of(trigger).value += 1
            for start in range(0, len(group), THREADS_MAX):
                if not await self._check_some(stream, group[start : start + THREADS_MAX]):
                    break
            await self._check_generation(stream, group)

    async def _check_some(self, stream: str, thread_ids: list[ThreadId]) -> bool:
        """Return whether the log answered; if it never does, the next event of each thread shows its gap."""
        for _ in range(TRIES):
            try:
                tails = await self._thread_log.tails(stream, thread_ids)
            except BusError as error:
                _log.warning("tails cannot be compared yet: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            for thread_id, seq in tails.items():
                self._threads.note(thread_id, seq)
            return True
        return False

    async def _check_generation(self, stream: str, thread_ids: list[ThreadId]) -> None:
        try:
            bounds = await self._thread_log.bounds(stream)
        except BusError as error:
            # Only the leader answers this, and there may be none. The next event or audit tells.
            _log.warning("a stream's generation is not known: %s", error)
            return
        for thread_id in thread_ids:
            self._threads.note_generation(thread_id, bounds.generation)
