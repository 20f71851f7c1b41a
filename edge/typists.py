"""Who types where, as far as this edge passed it on: a refresh at most every 3 seconds. Pure: no I/O."""

from typing import Final

from shared.identity import ThreadId, UserId
from shared.protocol import TYPING_EXPIRES_MS, TYPING_REFRESH_S

MEMBERS_MAX: Final = 100
"""Larger threads show no typing: its cost grows with the square of their size."""

TYPISTS_MAX: Final = 50_000
_EXPIRES_S: Final = TYPING_EXPIRES_MS / 1000


class Typists:
    """When each typist of this node was last shown to the thread. Receivers clear a dot by themselves after 6 s."""

    def __init__(self) -> None:
        self._shown: dict[tuple[ThreadId, UserId], float] = {}

    def __len__(self) -> int:
        return len(self._shown)

    def starts(self, thread_id: ThreadId, user_id: UserId, now: float) -> bool:
        """Return whether this start is to be passed on at ``now`` (seconds)."""
        key = (thread_id, user_id)
        shown = self._shown.get(key)
        if shown is not None and now - shown < TYPING_REFRESH_S:
            return False
        if len(self._shown) >= TYPISTS_MAX:
            self._forget_expired(now)
            if len(self._shown) >= TYPISTS_MAX:
                return False
        self._shown[key] = now
        return True

    def stops(self, thread_id: ThreadId, user_id: UserId, now: float) -> bool:
        """Return whether anybody may still see this typist: then the stop is passed on."""
        shown = self._shown.pop((thread_id, user_id), None)
        return shown is not None and now - shown < _EXPIRES_S

    def sent(self, thread_id: ThreadId, user_id: UserId) -> None:
        """Note a message of the typist: it ends the dot, so the next start is news again."""
        self._shown.pop((thread_id, user_id), None)

    def _forget_expired(self, now: float) -> None:
        self._shown = {key: at for key, at in self._shown.items() if now - at < _EXPIRES_S}
