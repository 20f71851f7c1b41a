"""The transactional outbox: published at least once, in order per subject, and deleted only then."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from persister import queries
from shared.bus import BusDisconnectedError
from shared.database import close_pool, open_pool
from shared.metrics import OutboxMetrics, PersisterMetrics
from shared.outbox import BATCH_MAX, NotRelayedError, Outbox, OutboxRow
from tests.support.eventually import eventually, eventually_passes

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]


class Publisher:
    """Takes rows, or refuses them for a while, as a lost connection would."""

    def __init__(self) -> None:
        self.published: list[OutboxRow] = []
        self.is_away = False
        self.slow: asyncio.Event | None = None

    async def publish(self, rows: Sequence[OutboxRow]) -> None:
        if self.slow is not None:
            await self.slow.wait()
        if self.is_away:
            raise BusDisconnectedError("publishing")
        self.published.extend(rows)

    @property
    def ids(self) -> list[int]:
        return [row.id for row in self.published]


@pytest.fixture
async def pool(database_url: str) -> "AsyncIterator[Pool]":
    """A pool on a migrated database."""
    made = await open_pool(database_url, name="test", size=6)
    yield made
    await close_pool(made, wait_s=0.5)


def outbox_of(pool: "Pool", publisher: Publisher) -> tuple[Outbox, OutboxMetrics]:
    metrics = PersisterMetrics("test").outbox
    return Outbox(pool, queries.OUTBOX, publisher.publish, name="test", metrics=metrics), metrics


@asynccontextmanager
async def running(*outboxes: Outbox) -> AsyncIterator[None]:
    """Run the background runners, and stop them at the end."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(outbox.run(stop)) for outbox in outboxes]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def write(pool: "Pool", *subjects: str) -> list[int]:
    """Commit one row per subject; return their ids."""
    rows = await pool.fetch(
        "INSERT INTO persister_outbox (kind, subject, message_id, payload) "
        "SELECT 'test', subject, 'm', '\\x01' FROM unnest($1::text[]) AS subject RETURNING id",
        list(subjects),
    )
    return [row["id"] for row in rows]


async def left(pool: "Pool") -> int:
    return int(await pool.fetchval("SELECT count(*) FROM persister_outbox"))


async def nothing_is_left(pool: "Pool") -> None:
    assert await left(pool) == 0


async def test_the_runner_publishes_in_order_and_deletes(pool: "Pool") -> None:
    # Given more rows than fit into one batch
    publisher = Publisher()
    outbox, metrics = outbox_of(pool, publisher)
    ids = await write(pool, *["t"] * (BATCH_MAX + 100))
    # When the runner runs
    async with running(outbox):
        await eventually(lambda: len(publisher.published) == len(ids))
    # Then they came out in order, once, as they were written, and are gone
    assert publisher.ids == ids
    assert publisher.published[0] == OutboxRow(ids[0], "test", "t", "m", b"\x01")
    assert await left(pool) == 0
    assert metrics.relayed.labels("test")._value.get() == len(ids)


async def test_a_poke_publishes_at_once_and_a_poll_finds_what_nobody_poked_for(
    pool: "Pool",
) -> None:
    publisher = Publisher()
    outbox, _ = outbox_of(pool, publisher)
    async with running(outbox):
        await eventually(lambda: outbox.is_runner)
        await write(pool, "unpoked")
        await eventually(lambda: len(publisher.published) == 1)
        await asyncio.sleep(0.05)
        await write(pool, "poked")
        outbox.poke()
        await eventually(lambda: len(publisher.published) == 2, within_s=0.3)


async def test_rows_survive_refusals_and_are_published_when_it_works_again(pool: "Pool") -> None:
    # Given a bus that is away
    publisher = Publisher()
    publisher.is_away = True
    outbox, metrics = outbox_of(pool, publisher)
    ids = await write(pool, "a", "b")
    async with running(outbox):
        await eventually(lambda: metrics.failures._value.get() >= 2)
        assert await left(pool) == 2
        # When it is back
        publisher.is_away = False
        # Then nothing was lost
        await eventually(lambda: publisher.ids == ids)
        await eventually_passes(lambda: nothing_is_left(pool))


async def test_one_runner_works_and_the_next_takes_over(pool: "Pool", database_url: str) -> None:
    # Given two processes
    second_pool = await open_pool(database_url, name="second", size=4)
    first_publisher, second_publisher = Publisher(), Publisher()
    first, _ = outbox_of(pool, first_publisher)
    second, _ = outbox_of(second_pool, second_publisher)
    stop = asyncio.Event()
    running_first = asyncio.create_task(first.run(stop))
    await eventually(lambda: first.is_runner)
    async with running(second):
        await write(pool, "one")
        await eventually(lambda: first_publisher.published)
        await eventually_passes(lambda: nothing_is_left(pool))
        assert not second.is_runner
        # When the first one dies
        running_first.cancel()
        await asyncio.wait([running_first])
        await write(pool, "two")
        # Then the second one goes on
        await eventually(lambda: second_publisher.published)
        assert [row.subject for row in second_publisher.published] == ["two"]
    await close_pool(second_pool)


async def test_relay_now_returns_when_the_rows_are_out(pool: "Pool") -> None:
    publisher = Publisher()
    outbox, _ = outbox_of(pool, publisher)
    ids = await write(pool, "t", "t")
    await outbox.relay_now(ids)
    assert publisher.ids == ids
    assert await left(pool) == 0


async def test_relay_now_publishes_older_rows_of_the_same_subject_first(pool: "Pool") -> None:
    """Else a change that another process made before could come out after this one."""
    publisher = Publisher()
    outbox, _ = outbox_of(pool, publisher)
    older, foreign, own, newer = await write(pool, "t", "other", "t", "t")
    await outbox.relay_now([own])
    assert publisher.ids == [older, own]
    assert await left(pool) == 2
    assert {foreign, newer} == {
        row["id"] for row in await pool.fetch("SELECT id FROM persister_outbox")
    }


async def test_relay_now_of_rows_that_are_out_already_does_nothing(pool: "Pool") -> None:
    publisher = Publisher()
    outbox, _ = outbox_of(pool, publisher)
    ids = await write(pool, "t")
    await outbox.relay_now(ids)
    await outbox.relay_now(ids)
    assert publisher.ids == ids


async def test_relay_now_gives_up_in_time_and_leaves_the_rows_to_the_runner(
    pool: "Pool",
) -> None:
    # Given a bus that hangs
    publisher = Publisher()
    publisher.slow = asyncio.Event()
    outbox, _ = outbox_of(pool, publisher)
    ids = await write(pool, "t")
    # When somebody waits for it
    with pytest.raises(NotRelayedError):
        await outbox.relay_now(ids, timeout_s=0.1)
    # Then the row is still there, and the runner brings it out later
    assert await left(pool) == 1
    publisher.slow.set()
    async with running(outbox):
        await eventually(lambda: publisher.ids == ids)


async def test_stop_publishes_what_is_there_once_more(pool: "Pool") -> None:
    publisher = Publisher()
    outbox, _ = outbox_of(pool, publisher)
    async with running(outbox):
        await eventually(lambda: outbox.is_runner)
        await asyncio.sleep(0.05)
        ids = await write(pool, "last")
    assert publisher.ids == ids
