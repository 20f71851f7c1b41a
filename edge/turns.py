"""Places for replays: so many for a session, so many for the edge; who comes later waits, for a bounded time."""

import asyncio
from typing import Final

from shared.bus import BusOverloadedError

SESSION_MAX: Final = 4
EDGE_MAX: Final = 64
WAIT_S: Final = 10.0


class Turns:
    """First come, first served. The commands of a session wait in line, so one of it asks at a time."""

    def __init__(self) -> None:
        self._edge = asyncio.Semaphore(EDGE_MAX)
        self._taken: dict[object, int] = {}
        self._waiting: dict[object, asyncio.Future[None]] = {}

    def __len__(self) -> int:
        return sum(self._taken.values())

    async def take(self, session: object) -> None:
        """Return when the session has a place; it must be given back.

        Raises:
            BusOverloadedError: There was none in time.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                while self._taken.get(session, 0) >= SESSION_MAX:
                    self._waiting[session] = asyncio.get_running_loop().create_future()
                    await self._waiting[session]
                await self._edge.acquire()
        except TimeoutError as error:
            raise BusOverloadedError("too many replays at once") from error
        finally:
            self._waiting.pop(session, None)
        self._taken[session] = self._taken.get(session, 0) + 1

    def give_back(self, session: object) -> None:
        """Let the next one have the place."""
        self._edge.release()
        self._taken[session] -= 1
        if not self._taken[session]:
            del self._taken[session]
        waiting = self._waiting.get(session)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
