"""What a sender must know of the message streams: their generation, and whether the persister keeps up.

What cannot be kept must not be acknowledged: when the oldest message that is not in PostgreSQL yet is older than half
of the stream's age, it could expire before it gets there, so sends to that stream are refused.
"""

import asyncio
import logging
import time
from datetime import datetime
from typing import Final

import msgspec

from shared.bus import Bus, BusError
from shared.metrics import SendingMetrics
from shared.settings import Settings
from shared.subjects import PERSISTER_DURABLE, stream_names
from shared.waiting import is_set_within

CHECK_S: Final = 10.0
_CHECK_AGAIN_S: Final = 1.0
_log = logging.getLogger(__name__)


class StreamState(msgspec.Struct, frozen=True):
    """One message stream, as last read."""

    generation: int
    created_ms: int
    blocked: bool


class StreamWatch:
    """Reads the state of every message stream now and then."""

    def __init__(self, bus: Bus, settings: Settings, *, metrics: SendingMetrics) -> None:
        self._bus = bus
        self._lag_max_s = settings.persister_lag_max_s
        self._names = stream_names(settings.messaging_streams)
        self._metrics = metrics
        self._states: dict[str, StreamState] = {}

    @property
    def ready(self) -> bool:
        """Whether every stream was read once."""
        return len(self._states) == len(self._names)

    def state(self, stream: str) -> StreamState | None:
        """Return the stream's state, None before it was read."""
        return self._states.get(stream)

    async def read(self) -> None:
        """Read every stream.

        Raises:
            BusError: One did not answer. The states stay as they were.
        """
        for name in self._names:
            state = await self._read(name)
            before = self._states.get(name)
            if state.blocked and not (before and before.blocked):
                _log.error("%s: the persister is too far behind, sends are refused", name)
            self._states[name] = state
        self._metrics.blocked_streams.set(sum(state.blocked for state in self._states.values()))

    async def run(self, stop: asyncio.Event) -> None:
        """Read every stream each ``CHECK_S`` until ``stop`` is set."""
        while not stop.is_set():
            pause_s = CHECK_S
            try:
                await self.read()
            except BusError as error:
                _log.warning("the message streams were not read: %s", error)
                pause_s = _CHECK_AGAIN_S
            await is_set_within(stop, pause_s)

    async def _read(self, name: str) -> StreamState:
        info = await self._bus.api(f"STREAM.INFO.{name}")
        consumer = await self._bus.consumer_info(name, PERSISTER_DURABLE)
        first_seq, last_seq = info["state"]["first_seq"], info["state"]["last_seq"]
        oldest = max(consumer.ack_floor_seq + 1, first_seq)
        waited_s = 0.0
        if info["state"]["messages"] and oldest <= last_seq:
            stored = await self._bus.get_seq(name, oldest)
            if stored is not None:  # Otherwise it expired just now; the next reading tells.
                waited_s = time.time() - datetime.fromisoformat(stored.time).timestamp()
        metadata = info["config"].get("metadata") or {}
        return StreamState(
            generation=int(metadata.get("generation", 1)),
            created_ms=int(datetime.fromisoformat(info["created"]).timestamp() * 1000),
            blocked=waited_s > self._lag_max_s,
        )
