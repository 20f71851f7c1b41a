"""Who is let in and who must go: the mirror of bans and revoked tokens, and the sockets of this edge."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from shared.auth import Identity
from shared.identity import UserId
from shared.protocol import CloseCode
from shared.standing import StandingEntry, StandingMirror, Verdict
from shared.waiting import is_set_within

FORGET_S: Final = 60.0
CODES: Final = {
    Verdict.REVOKED: CloseCode.TOKEN_INVALID,
    Verdict.BANNED: CloseCode.BANNED,
    Verdict.DEACTIVATED: CloseCode.BANNED,
}
"""All of them are final: a client that comes back with the same token is refused again."""


class Guest(Protocol):
    """A session, as far as its standing is concerned."""

    @property
    def identity(self) -> Identity | None:
        """Who it is; None before authentication."""
        ...

    def close(self, code: CloseCode) -> None:
        """Close its socket."""


class Standing:
    """Answers whether a token is enough at this moment, and closes the sockets of those whose token is not any more."""

    def __init__(
        self,
        mirror: StandingMirror,
        *,
        guests_of: Callable[[UserId], Iterable[Guest]],
        wall: Callable[[], float],
        kept_s: float,
    ) -> None:
        """Follow a mirror.

        Args:
            mirror: Of bucket ``standing``.
            guests_of: The sessions of one user on this edge.
            wall: Unix seconds.
            kept_s: How long revoked tokens stay known; older ones are expired.
        """
        self._mirror = mirror
        self._guests_of = guests_of
        self._wall = wall
        self._kept_s = kept_s
        mirror.on_change.append(self._react)

    async def start(self) -> None:
        """Read every ban there is.

        Raises:
            BusError: They cannot be read at the moment.
        """
        await self._mirror.start()

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the mirror true, and free of what has no effect any more, until ``stop`` is set."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._mirror.run(stop), name="standing-mirror")
            while not await is_set_within(stop, FORGET_S):
                self._mirror.table.forget_expired(self._wall(), self._kept_s)

    @property
    def is_confirmed(self) -> bool:
        """Whether every ban up to a moment ago is known. While it is not, nothing is accepted from anybody."""
        return self._mirror.is_confirmed

    def unconfirmed_for_s(self) -> float:
        """Seconds since bans are not known for certain; 0.0 while they are."""
        return self._mirror.unconfirmed_for_s()

    def when_confirmed(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called whenever frames may be accepted again."""
        self._mirror.on_confirmed.append(listener)

    def why_closed(self, identity: Identity) -> CloseCode | None:
        """Return the code that the holder of this token is closed with; None while they may stay."""
        verdict = self._mirror.table.verdict(identity.user_id, identity.issued_at, self._wall())
        return None if verdict is None else CODES[verdict]

    def _react(self, entry: StandingEntry) -> None:
        for guest in tuple(self._guests_of(UserId(entry.user_id))):
            code = None if guest.identity is None else self.why_closed(guest.identity)
            if code is not None:
                guest.close(code)
