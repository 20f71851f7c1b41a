"""What tokens say of users: the first word of a name and a role, written once and told to the edges.

The platform owns its users; this system knows of them what their last token or profile event said.
"""

from typing import TYPE_CHECKING, Final

from api.dependencies import POOL_WAIT_S
from api.queries import outbox as outbox_queries
from api.queries import users as queries
from shared.auth import Identity
from shared.identity import UserId

if TYPE_CHECKING:
    import asyncpg

    from shared.outbox import Outbox

REMEMBERED_MAX: Final = 50_000
"""Users whose last token this process remembers: a request of one of them costs no statement."""


class SeenUsers:
    """Writes what is new about users, and remembers what was written."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", outbox: "Outbox") -> None:
        self._pool = pool
        self._outbox = outbox
        self._remembered: dict[UserId, tuple[str | None, str]] = {}

    async def note(self, identity: Identity) -> None:
        """Take in what the caller's token says; the edges hear of it soon."""
        said = (identity.name, identity.role)
        if self._remembered.get(identity.user_id) == said:
            return
        if await self.record(identity.user_id, identity.name, identity.role):
            self._outbox.poke()
        self._remembered[identity.user_id] = said
        if len(self._remembered) > REMEMBERED_MAX:
            del self._remembered[next(iter(self._remembered))]

    async def record(self, user_id: UserId, name: str | None, role: str) -> list[int]:
        """Write what a token says, and return the outbox rows of the change: none when it was known.

        A token without a name leaves the name as it was.
        """
        async with self._pool.acquire(timeout=POOL_WAIT_S) as connection, connection.transaction():
            if await connection.fetchval(queries.SEEN, user_id, name, role) is None:
                return []
            return [await connection.fetchval(outbox_queries.QUEUE_USER, user_id)]
