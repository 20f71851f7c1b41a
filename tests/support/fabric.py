"""A whole provisioned fabric for one test: NATS with every stream, a migrated database, and words to use them.

::

    async def test_something(fabric: Fabric) -> None:
        thread_id = await fabric.thread("ava", "ben")
        seqs = await fabric.send(thread_id, "ava", "hello", "again")
        async with fabric.persister():
            await fabric.reached(seqs[-1])
        assert await fabric.bodies(thread_id) == ["hello", "again"]
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from shared.bus import Bus, OutgoingMessage, PubAck
from shared.database import close_pool, open_pool
from shared.events import AnyThreadEvent, MessageNew, encode_event, timestamp
from shared.identity import ClientMessageId, ThreadId, UserId, message_id, new_id
from shared.provision import provision
from shared.settings import Settings
from shared.subjects import PERSISTER_DURABLE, inbox_prefix, msg_subject
from tests.support.eventually import eventually_passes
from tests.support.servers import NatsServer

if TYPE_CHECKING:
    import asyncpg

    from tests.support.persisters import Persister

BATCH: Final = 500
STREAM: Final = "MSG_0"


class Fabric:
    """NATS, PostgreSQL, and what tests say to them."""

    def __init__(
        self, nats: NatsServer, dsn: str, pool: "asyncpg.Pool[asyncpg.Record]", edge: Bus
    ) -> None:
        self.nats = nats
        self.dsn = dsn
        self.pool = pool
        self.edge = edge
        self._persisters: list[Persister] = []

    def settings(self, role: str = "persister") -> Settings:
        """Return the settings of a service of this role."""
        return settings_of(self.nats, self.dsn, role)

    async def bus(self, role: str) -> Bus:
        """Return a new connection of a role; close it yourself."""
        return await connect(self.nats, role)

    async def close(self) -> None:
        """End whatever a failed test left running."""
        for persister in self._persisters:
            await persister.die()
        await self.edge.close()
        await close_pool(self.pool, wait_s=0.5)

    # ------------------------------------------------------------------ given

    async def thread(self, *members: str, kind: str = "group", visible_from: int = 0) -> ThreadId:
        """Make a thread with these members in PostgreSQL; the first one owns it."""
        thread_id = ThreadId(new_id())
        await self.pool.execute(
            "INSERT INTO threads (thread_id, kind, owner_id, history) VALUES ($1, $2, $3, 'all')",
            thread_id,
            kind,
            members[0],
        )
        await self.pool.executemany(
            "INSERT INTO thread_members (thread_id, user_id, role, visible_from) VALUES ($1, $2, $3, $4)",
            [
                (thread_id, user, "member" if place else "owner", visible_from)
                for place, user in enumerate(members)
            ],
        )
        return thread_id

    async def send(self, thread_id: ThreadId, sender: str, *bodies: str) -> list[int]:
        """Store messages in the log as an edge does; returns their seqs."""
        return await self.store([new_message(thread_id, sender, body) for body in bodies])

    async def store(self, events: Sequence[AnyThreadEvent]) -> list[int]:
        """Store events in the log; returns their seqs."""
        return await self.store_raw(
            [(msg_subject(ThreadId(event.thread_id)), encode_event(event)) for event in events]
        )

    async def store_raw(self, messages: Sequence[tuple[str, bytes]]) -> list[int]:
        """Store any bytes in the log, in order; returns their seqs."""
        seqs: list[int] = []
        for start in range(0, len(messages), BATCH):
            part = [OutgoingMessage(*message) for message in messages[start : start + BATCH]]
            ack: PubAck = (
                await self.edge.store_batch(part, timeout_s=10)
                if len(part) > 1
                else await self.edge.store(part[0].subject, part[0].payload)
            )
            seqs.extend(range(ack.seq - len(part) + 1, ack.seq + 1))
        return seqs

    # ------------------------------------------------------------------ when

    @asynccontextmanager
    async def persister(
        self,
        **options: Any,  # noqa: ANN401 - those of start_persister
    ) -> "AsyncIterator[Persister]":
        """Run a persister, and stop it at the end."""
        persister = await self.start_persister(**options)
        try:
            yield persister
        finally:
            await persister.end()

    async def start_persister(
        self,
        **options: Any,  # noqa: ANN401 - those of persisters.start
    ) -> "Persister":
        """Start a persister with connections of its own; ``end`` or ``die`` is yours."""
        from tests.support import persisters  # Tests of other services need none of it.

        bus = await self.bus("persister")
        persister = await persisters.start(self.dsn, bus, **options)
        self._persisters.append(persister)
        return persister

    # ------------------------------------------------------------------ then

    async def count(self, table: str) -> int:
        """Return the number of rows of a table."""
        return int(await self.pool.fetchval(f"SELECT count(*) FROM {table}"))  # noqa: S608

    async def cursor(self, stream: str = STREAM, consumer: str = PERSISTER_DURABLE) -> int:
        """Return the position up to which events are stored; 0 when nothing ever was."""
        value = await self.pool.fetchval(
            "SELECT last_seq FROM stream_cursors WHERE stream = $1 AND consumer = $2",
            stream,
            consumer,
        )
        return int(value or 0)

    async def reached(self, seq: int, *, within_s: float = 10.0) -> None:
        """Wait until everything up to ``seq`` is stored."""

        async def cursor_is_there() -> None:
            assert await self.cursor() >= seq

        await eventually_passes(cursor_is_there, within_s=within_s)

    async def history(self, thread_id: ThreadId) -> list[tuple[int, str]]:
        """Return (seq, body) of a thread in its order."""
        rows = await self.pool.fetch(
            "SELECT seq, body FROM messages WHERE thread_id = $1 ORDER BY seq", thread_id
        )
        return [(row["seq"], row["body"]) for row in rows]

    async def bodies(self, thread_id: ThreadId) -> list[str]:
        """Return the bodies of a thread in its order."""
        return [body for _seq, body in await self.history(thread_id)]


def new_message(
    thread_id: ThreadId,
    sender: str,
    body: str = "hello",
    **fields: Any,  # noqa: ANN401 - those of MessageNew
) -> MessageNew:
    """Return a message as an edge makes it."""
    client_msg_id = ClientMessageId(fields.pop("client_msg_id", None) or new_id())
    made: dict[str, Any] = {
        "message_id": message_id(thread_id, UserId(sender), client_msg_id),
        "thread_id": thread_id,
        "client_msg_id": client_msg_id,
        "sender_id": sender,
        "kind": "text",
        "body": body,
        "attachments": [],
        "reply_to": None,
        "metadata": {},
        "sent_at": timestamp(),
    }
    return MessageNew(**{**made, **fields})


def settings_of(nats: NatsServer, dsn: str, role: str) -> Settings:
    """Return settings for one role, whatever the environment says."""
    return Settings(
        database_url=dsn, nats_url=nats.url(role), messaging_node_name=f"{role}-0", _env_file=None
    )


async def connect(nats: NatsServer, role: str) -> Bus:
    """Return a connection of a role."""
    node = new_id()[-12:]
    return await Bus.connect(
        nats.url(role),
        name=f"test-{role}",
        on_closed=lambda _reason: None,
        # Platform services are not ours: they use the inboxes of any NATS client.
        inbox_prefix=f"_INBOX.{node}" if role == "platform" else inbox_prefix(role, node),
    )


@pytest.fixture(name="fabric")
async def fabric_fixture(nats_server: NatsServer, database_url: str) -> AsyncIterator[Fabric]:
    """The provisioned fabric of this test."""
    pool = await open_pool(database_url, name="test", size=5)
    provisioner = await connect(nats_server, "provision")
    await provision(provisioner, pool, settings_of(nats_server, database_url, "provision"))
    await provisioner.close()
    edge = await connect(nats_server, "edge")
    made = Fabric(nats_server, database_url, pool, edge)
    try:
        yield made
    finally:
        await made.close()
