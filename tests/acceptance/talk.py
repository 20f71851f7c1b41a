"""People who write while something happens to the platform."""

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Final

from lilith_client import Sent
from tests.acceptance.board import Board
from tests.support.eventually import eventually

PAUSE_S: Final = 0.05


class Talk:
    """People who write one message after the other until they are told to stop; ``acks`` is what they were told."""

    def __init__(self, boards: Sequence[Board]) -> None:
        self.acks: list[Sent] = []
        self._silent = asyncio.Event()
        self._tasks = [asyncio.create_task(self._talk(board)) for board in boards]

    async def end(self) -> None:
        """Return when everybody's last message is acknowledged."""
        self._silent.set()
        await asyncio.gather(*self._tasks)

    async def goes_on(self, *, within_s: float = 20.0) -> None:
        """Return when ten more messages are acknowledged."""
        already = len(self.acks)
        await eventually(lambda: len(self.acks) >= already + 10, within_s=within_s)

    async def _talk(self, board: Board) -> None:
        for number in count():
            if self._silent.is_set():
                return
            self.acks.append(await board.client.send(board.thread_id, f"message {number}"))
            await asyncio.sleep(PAUSE_S)
