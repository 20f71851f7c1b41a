"""Ids that a client makes: UUIDv7 on the server's clock, so that a wrong local clock does not matter. Pure."""

import random
from datetime import datetime
from typing import Final

_RANDOM_BITS: Final = 62
_COUNTER_MAX: Final = 0xFFF


def uuid7(unix_ms: int, counter: int, entropy: int) -> str:
    """Return a UUIDv7 as 32 lower-case hex digits: ``unix_ms``, 12 bits of ``counter``, 62 of ``entropy``."""
    tail = (0b10 << _RANDOM_BITS) | (entropy & ((1 << _RANDOM_BITS) - 1))
    return f"{unix_ms & 0xFFFFFFFFFFFF:012x}7{counter & _COUNTER_MAX:03x}{tail:016x}"


def unix_ms_of(text: str) -> int:
    """Return the Unix time in milliseconds of an RFC 3339 time.

    Raises:
        ValueError: It is none.
    """
    return round(datetime.fromisoformat(text).timestamp() * 1000)


class MessageIds:
    """Makes ``client_msg_id``s that sort in the order in which they were made.

    ``set_clock`` takes what ``hello`` says; until then the local clock is believed.
    """

    def __init__(self, entropy: random.Random) -> None:
        self._entropy = entropy
        self._ahead_ms = 0
        self._last_ms = 0
        self._counter = 0

    def set_clock(self, server_ms: int, local_ms: int) -> None:
        """Note that the server's clock showed ``server_ms`` when ours showed ``local_ms``."""
        self._ahead_ms = server_ms - local_ms
        # Or a clock corrected backwards would keep making ids of a future that the server refuses.
        self._last_ms = min(self._last_ms, server_ms)

    def server_ms(self, local_ms: int) -> int:
        """Return what the server's clock shows about now."""
        return local_ms + self._ahead_ms

    def new(self, local_ms: int) -> str:
        """Return a new id; later ones sort later."""
        now_ms = max(self.server_ms(local_ms), self._last_ms)
        self._counter = self._counter + 1 if now_ms == self._last_ms else 0
        if self._counter > _COUNTER_MAX:
            now_ms, self._counter = now_ms + 1, 0
        self._last_ms = now_ms
        return uuid7(now_ms, self._counter, self._entropy.getrandbits(_RANDOM_BITS))
