"""Makes what is missing and updates what may be updated; see the package for generations."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from shared import subjects
from shared.bus import Bus, JetStreamApiError
from shared.provision import queries
from shared.provision.differences import (
    CONSUMER_UPDATABLE,
    STREAM_UPDATABLE,
    Difference,
    differences,
    generation_of,
)
from shared.provision.errors import ProvisionError
from shared.provision.server import check_servers
from shared.provision.streams import (
    GENERATION_BITS,
    Config,
    Consumer,
    consumers,
    first_seq_of,
    message_stream,
    other_streams,
)
from shared.settings import Settings

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    Connection = PoolConnectionProxy[asyncpg.Record]

_LOCK_NAME: Final = "provision"
_API_TIMEOUT_S: Final = 10.0
_NOT_FOUND: Final = 404


@dataclass
class Report:
    """What a run found and did, as lines for people."""

    servers: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    generations: dict[str, int] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether anything was made or updated."""
        return bool(self.created or self.updated)

    def lines(self) -> list[str]:
        """Return the report, one sentence per line."""
        return [
            *(f"{server}: flushes before it acknowledges" for server in self.servers),
            *(f"created {name}" for name in self.created),
            *(f"updated {name}" for name in self.updated),
            f"{len(self.unchanged)} streams and consumers were as they should be",
        ]


async def provision(
    bus: Bus,
    pool: "asyncpg.Pool[asyncpg.Record]",
    settings: Settings,
    *,
    new_generation: Collection[str] = (),
    relaxed_sync: bool = False,
) -> Report:
    """Make the fabric as ``settings`` want it, and return what was done. Running it again changes nothing.

    Args:
        bus: A connection of the user ``provision``.
        pool: The migrated database.
        settings: What to make.
        new_generation: Message streams that are gone and may begin their next life.
        relaxed_sync: As for ``check_servers``.

    Raises:
        ProvisionError: A server, stream or consumer breaks a promise and cannot be changed in place.
        BusError: NATS did not answer.
    """
    names = subjects.stream_names(settings.messaging_streams)
    unknown = set(new_generation) - set(names)
    if unknown:
        raise ProvisionError(f"no message stream is called {', '.join(sorted(unknown))}")
    servers = await check_servers(
        bus, role="provision", replicas=settings.messaging_replicas, relaxed_sync=relaxed_sync
    )
    run = _Run(bus, settings, Report(servers))
    # The lock and the generations are of one transaction; streams are made inside it. When it fails after a stream
    # was made, the next run finds the stream's generation in its metadata.
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(queries.LOCK, _LOCK_NAME)
        for number, name in enumerate(names):
            await run.message_stream(connection, number, agreed=name in new_generation)
        for config in other_streams(settings):
            await run.stream(config, await _stream_info(bus, config["name"]))
        for consumer in consumers(settings):
            await run.consumer(consumer)
    return run.report


class _Run:
    """One run: where to make things, what to make, and what was done so far."""

    def __init__(self, bus: Bus, settings: Settings, report: Report) -> None:
        self._bus = bus
        self._settings = settings
        self.report = report

    async def message_stream(self, connection: "Connection", number: int, *, agreed: bool) -> None:
        """Make or check one message stream; ``agreed`` lets a lost one begin its next generation."""
        name = subjects.stream_names(self._settings.messaging_streams)[number]
        known = await connection.fetchval(queries.READ_GENERATION, name) or 0
        cursor = await connection.fetchval(queries.READ_CURSOR, name, subjects.PERSISTER_DURABLE)
        info = await _stream_info(self._bus, name)
        if info is None:
            generation = _next_generation(name, known, cursor or 0, agreed=agreed)
        else:
            _refuse_other_shards(info["config"], number, self._settings.messaging_streams)
            generation = _present_generation(name, info, known, cursor or 0)
        await connection.execute(queries.SAVE_GENERATION, name, generation)
        await self.stream(message_stream(self._settings, number, generation), info)
        self.report.generations[name] = generation

    async def stream(self, wanted: Config, info: Mapping[str, Any] | None) -> None:
        """Make a stream, or bring it up to date."""
        name = wanted["name"]
        if info is None:
            await self._bus.api(f"STREAM.CREATE.{name}", wanted, timeout_s=_API_TIMEOUT_S)
            self.report.created.append(f"stream {name}")
            return
        found = differences(info["config"], wanted)
        _refuse_unchangeable(f"stream {name}", found, STREAM_UPDATABLE)
        if found:
            changed = {**info["config"], **{item.field: item.wanted for item in found}}
            await self._bus.api(f"STREAM.UPDATE.{name}", changed, timeout_s=_API_TIMEOUT_S)
        self._note(f"stream {name}", found)

    async def consumer(self, consumer: Consumer) -> None:
        """Make a durable consumer, or bring it up to date."""
        name = f"consumer {consumer.stream}/{consumer.durable}"
        try:
            info = await self._bus.api(f"CONSUMER.INFO.{consumer.stream}.{consumer.durable}")
        except JetStreamApiError as error:
            if error.code != _NOT_FOUND:
                raise
            await self._write_consumer(consumer, consumer.config, action="create")
            self.report.created.append(name)
            return
        found = differences(info["config"], consumer.config)
        _refuse_unchangeable(name, found, CONSUMER_UPDATABLE)
        if found:
            changed = {**info["config"], **{item.field: item.wanted for item in found}}
            await self._write_consumer(consumer, changed, action="update")
        self._note(name, found)

    async def _write_consumer(self, consumer: Consumer, config: Config, *, action: str) -> None:
        await self._bus.api(
            f"CONSUMER.CREATE.{consumer.stream}.{consumer.durable}",
            {"stream_name": consumer.stream, "config": config, "action": action},
            timeout_s=_API_TIMEOUT_S,
        )

    def _note(self, name: str, found: Sequence[Difference]) -> None:
        if found:
            self.report.updated.append(f"{name} ({'; '.join(map(str, found))})")
        else:
            self.report.unchanged.append(name)


def _next_generation(name: str, known: int, cursor: int, *, agreed: bool) -> int:
    """Return the generation of a stream that is to be made."""
    if (known or cursor) and not agreed:
        raise ProvisionError(
            f"stream {name} is gone, but it was in use (generation {known}, stored up to {cursor}). Bring its store "
            f"back; if it is lost for good, accept that with `lilith provision --new-generation {name}`"
        )
    return max(known, cursor >> GENERATION_BITS) + 1


def _present_generation(name: str, info: Mapping[str, Any], known: int, cursor: int) -> int:
    """Return the generation of a stream that exists, after checking that nothing of it went back."""
    generation = generation_of(info)
    last_seq = info["state"]["last_seq"]
    advice = (
        f"Bring the newer store back; if it is lost for good, delete this stream and accept that with "
        f"`lilith provision --new-generation {name}`"
    )
    if not generation or last_seq < first_seq_of(generation) - 1:
        raise ProvisionError(f"stream {name} was not made by `lilith provision`. {advice}")
    if generation < known:
        raise ProvisionError(
            f"stream {name} is of generation {generation}, but generation {known} was in use. {advice}"
        )
    if last_seq < cursor:
        raise ProvisionError(
            f"stream {name} ends at {last_seq}, but events up to {cursor} of it are in PostgreSQL: it was restored "
            f"from an old copy, or a power cut took its end. {advice}"
        )
    return generation


def _refuse_other_shards(actual: Config, number: int, streams: int) -> None:
    """Refuse to share the shards anew among another number of streams: their events would stay where they are."""
    if actual["subjects"] != subjects.stream_subjects(number, streams):
        raise ProvisionError(
            f"MESSAGING_STREAMS={streams}, but stream {actual['name']} was made for another number of streams: set it "
            f"back. Moving shards between streams is a migration, not a setting"
        )


def _refuse_unchangeable(
    name: str, found: Collection[Difference], updatable: Collection[str]
) -> None:
    fixed = [str(item) for item in found if item.field not in updatable]
    if fixed:
        raise ProvisionError(
            f"{name} differs in what cannot be changed in place ({'; '.join(fixed)}): set the settings back, or delete "
            f"it by hand once nothing in it is needed, and run `lilith provision` again"
        )


async def _stream_info(bus: Bus, name: str) -> dict[str, Any] | None:
    try:
        return await bus.api(f"STREAM.INFO.{name}")
    except JetStreamApiError as error:
        if error.code != _NOT_FOUND:
            raise
        return None
