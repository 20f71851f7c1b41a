"""What tests of provisioning say to the server and the database."""

from typing import TYPE_CHECKING, Any, Final

from shared import subjects
from shared.bus import Bus
from shared.identity import ThreadId
from shared.provision import queries
from shared.settings import Settings, load_settings
from tests.support.nats_streams import connected
from tests.support.servers import NatsServer

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

THREAD: Final = ThreadId("0190a0b1c2d37e4f8a9b0c1d2e3f4a5b")


def configured(**explicit: object) -> Settings:
    return load_settings(**explicit)


async def info_of(bus: Bus, stream: str = "MSG_0") -> dict[str, Any]:
    return await bus.api(f"STREAM.INFO.{stream}")


async def send(server: NatsServer, count: int) -> int:
    """Store messages and return the seq of the last one."""
    async with connected(server, "edge") as edge:
        for number in range(count - 1):
            await edge.store(subjects.msg_subject(THREAD), b"%d" % number)
        return (await edge.store(subjects.msg_subject(THREAD), b"last")).seq


async def persisted(pool: "Pool", last_seq: int) -> None:
    """Let the database say that the persister has stored everything up to ``last_seq``."""
    await pool.execute(
        "INSERT INTO stream_cursors (stream, consumer, last_seq) VALUES ('MSG_0', 'persister', $1)",
        last_seq,
    )


async def generation_in(pool: "Pool") -> int | None:
    found: int | None = await pool.fetchval(queries.READ_GENERATION, "MSG_0")
    return found
