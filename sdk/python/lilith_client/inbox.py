"""The events that wait for the program: bounded, and honest about it when they do not fit."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from lilith_client.objects import Event

OWN_EVENTS_MAX: Final = 64


class Inbox:
    """A queue of at most about ``limit`` events, or a callback that takes each at once.

    The reader of the socket asks ``has_room`` before it takes an event in and drops it otherwise; ``on_room`` is
    called when a queue that was full is half empty again, and what was dropped is read again.
    """

    def __init__(self, limit: int, on_event: Callable[[Event], None] | None) -> None:
        self._limit = limit
        self._on_event = on_event
        self._events: deque[Event] = deque()
        self._changed = asyncio.Event()
        self._was_full = False
        self._ended: Exception | None = None
        self.on_room: Callable[[], None] = lambda: None

    @property
    def has_room(self) -> bool:
        """Whether one more event fits. Asking while it does not is remembered."""
        fits = len(self._events) < self._limit
        self._was_full = self._was_full or not fits
        return fits

    def put(self, event: Event) -> None:
        """Add an event. The client's own few go a little beyond the limit, so that they are hardly ever missed."""
        if self._on_event is not None:
            self._on_event(event)
            return
        if len(self._events) < self._limit + OWN_EVENTS_MAX:
            self._events.append(event)
            self._changed.set()

    async def wait_for_room(self) -> None:
        """Wait until one more event fits."""
        while len(self._events) >= self._limit:
            self._changed.clear()
            await self._changed.wait()

    async def get(self) -> Event:
        """Return the oldest event, waiting for it.

        Raises:
            StoppedError: The client stopped and every event was taken.
        """
        while not self._events:
            if self._ended is not None:
                raise self._ended
            self._changed.clear()
            await self._changed.wait()
        event = self._events.popleft()
        self._changed.set()
        if self._was_full and len(self._events) <= self._limit // 2:
            self._was_full = False
            self.on_room()
        return event

    def end(self, error: Exception) -> None:
        """Let ``get`` raise ``error`` once the queue is empty."""
        self._ended = error
        self._changed.set()
