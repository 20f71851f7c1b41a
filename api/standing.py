"""Who may use the interface: the mirror of bans and revoked tokens, changes of it, and its upkeep.

Like an edge the api mirrors bucket ``standing`` whole. While the mirror cannot be trusted (NATS is away) PostgreSQL is
asked, where every change is written first: reading goes on, and a ban holds.
"""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from api.dependencies import POOL_WAIT_S
from api.queries import standing as queries
from api.relay import put_entry
from shared.auth import Identity
from shared.bus import Bus, BusError
from shared.database import TRANSIENT_ERRORS
from shared.identity import UserId
from shared.standing import STREAM, StandingMirror, StandingTable, Verdict, decode_standing
from shared.subjects import STANDING_BUCKET, bucket_subject
from shared.waiting import is_set_within

if TYPE_CHECKING:
    import asyncpg

    from api.dependencies import Connection

UPKEEP_S: Final = 60.0
UPKEEP_AGAIN_S: Final = 2.0
PAGE_MAX: Final = 1_000

_OUTAGES: Final[tuple[type[Exception], ...]] = (BusError, *TRANSIENT_ERRORS)
_log = logging.getLogger(__name__)


class Standing:
    """Answers whether somebody may use the interface, and keeps bucket and table the same."""

    def __init__(
        self,
        bus: Bus,
        pool: "asyncpg.Pool[asyncpg.Record]",
        mirror: StandingMirror,
        *,
        kept_s: float,
    ) -> None:
        """Use a mirror; ``run`` starts and keeps it.

        Args:
            bus: Writes the bucket.
            pool: PostgreSQL.
            mirror: Of bucket ``standing``.
            kept_s: How long revoked tokens stay known.
        """
        self._bus = bus
        self._pool = pool
        self._mirror = mirror
        self._kept_s = kept_s

    async def verdict(self, identity: Identity) -> Verdict | None:
        """Return why the holder of a token may not come in; None when they may."""
        return await self._verdict(identity.user_id, identity.issued_at)

    async def is_banned(self, user_id: UserId) -> bool:
        """Return whether nothing may be done for this user: banned or deactivated."""
        # Somebody without a token has none that could be revoked.
        return await self._verdict(user_id, float("inf")) is not None

    async def run(self, stop: asyncio.Event) -> None:
        """Keep mirror and bucket true until ``stop`` is set."""
        while not stop.is_set():
            try:
                await self._mirror.start()
                break
            except BusError as error:
                _log.warning("the standing of users cannot be read yet: %s", error)
                await is_set_within(stop, UPKEEP_AGAIN_S)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._mirror.run(stop), name="standing-mirror")
            pause_s = 0.0
            while not await is_set_within(stop, pause_s):
                try:
                    await self.restore()
                    await self.purge()
                    pause_s = UPKEEP_S
                except _OUTAGES as error:
                    _log.warning("bucket standing is looked after later: %r", error)
                    pause_s = UPKEEP_AGAIN_S

    async def restore(self) -> int:
        """Write what PostgreSQL knows and the bucket does not: it may have been lost. Returns how many entries.

        Raises:
            BusError, or one of ``shared.database.TRANSIENT_ERRORS``: Not all of them.
        """
        restored, after = 0, ""
        while True:
            async with self._pool.acquire(timeout=POOL_WAIT_S) as connection:
                rows = await connection.fetch(queries.CURRENT, after, self._kept_s, PAGE_MAX)
            for row in rows:
                known = self._mirror.table.get(row["user_id"])
                if known is None or known.revision < row["revision"]:
                    restored += await put_entry(
                        self._bus, STANDING_BUCKET, row["user_id"], row["entry"].encode()
                    )
            if len(rows) < PAGE_MAX:
                return restored
            after = rows[-1]["user_id"]

    async def purge(self) -> None:
        """Take entries without effect out of the bucket.

        Raises:
            BusError: Not all of them; those are purged after the next start.
        """
        for user_id, seq in self._mirror.table.forget_expired(time.time(), self._kept_s):
            # The last entry stays: mirrors tell by it how far they are. And a newer one of this user is not touched.
            if seq < self._mirror.position:
                subject = bucket_subject(STANDING_BUCKET, user_id)
                await self._bus.api(f"STREAM.PURGE.{STREAM}", {"filter": subject, "seq": seq + 1})

    async def _verdict(self, user_id: UserId, issued_at: float) -> Verdict | None:
        now = time.time()
        if self._mirror.is_confirmed:
            return self._mirror.table.verdict(user_id, issued_at, now)
        async with self._pool.acquire(timeout=POOL_WAIT_S) as connection:
            text = await connection.fetchval(queries.ENTRY, user_id)
        if text is None:
            return None
        alone = StandingTable()
        alone.put(decode_standing(text.encode()), 0, now)
        return alone.verdict(user_id, issued_at, now)


async def record(
    connection: "Connection",
    target: UserId,
    *,
    actor_id: UserId,
    action: str,
    details: dict[str, Any],
) -> None:
    """Leave the outbox row of a change of somebody's standing, and its line in the audit log."""
    await connection.execute(queries.QUEUE_STANDING, target)
    line = msgspec.json.encode(details).decode()
    await connection.execute(queries.AUDIT, actor_id, action, target, line)
