"""The batch loop: each event's effect exactly once, in order, through crashes, rivals, poison and outages."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import asyncpg
import pytest

from persister import queries
from persister.history import store_events
from shared.bus import Delivery, Puller
from shared.consumer import Consumer, StreamBehindCursorError
from shared.subjects import PERSISTER_DURABLE
from tests.support.eventually import eventually
from tests.support.fabric import STREAM, Fabric, new_message
from tests.support.persisters import lingering
from tests.support.servers import PostgresServer

if TYPE_CHECKING:
    from shared.consumer import Connection


class DiedError(Exception):
    """The process was killed here."""


def die_before_ack(consumer: Consumer) -> None:
    async def die(_puller: Puller, _last: Delivery) -> None:
        raise DiedError

    consumer._acknowledge = die  # type: ignore[method-assign, assignment]


def never_locked(consumer: Consumer) -> None:
    """Let a consumer work although another one does: both think that they hold the lock."""
    consumer._queries = dataclasses.replace(consumer._queries, try_lock="SELECT $1 <> ''")


def without_fence(consumer: Consumer) -> None:
    never_locked(consumer)
    unlocked = queries.LOCK_CURSOR.replace("FOR UPDATE", "")
    consumer._queries = dataclasses.replace(consumer._queries, lock_cursor=unlocked)


async def leave_a_row_each(
    connection: "Connection", deliveries: Sequence[Delivery], *, careful: bool
) -> None:
    """A ``handle`` without any unique key that could hide a second execution."""
    del careful
    await connection.execute(
        "INSERT INTO persister_outbox (kind, subject, payload) SELECT 'test', seq, '' FROM unnest($1::text[]) AS seq",
        [str(delivery.seq) for delivery in deliveries],
    )


async def handled(fabric: Fabric) -> list[int]:
    rows = await fabric.pool.fetch("SELECT subject FROM persister_outbox ORDER BY id")
    return [int(row["subject"]) for row in rows]


# ---------------------------------------------------------------------- crashes


async def test_a_crash_between_commit_and_ack_stores_nothing_twice(fabric: Fabric) -> None:
    # Given 300 messages of which a persister committed a batch, dying before it could acknowledge
    thread_id = await fabric.thread("ava")
    seqs = await fabric.send(thread_id, "ava", *map(str, range(300)))
    persister = await fabric.start_persister(
        handle=leave_a_row_each, relays=False, change=die_before_ack
    )
    with pytest.raises(DiedError):
        await persister.tasks[0]
    await persister.close()
    committed = await handled(fabric)
    assert committed
    # When its successor starts and JetStream delivers everything again
    async with fabric.persister(handle=leave_a_row_each, relays=False) as successor:
        await fabric.reached(seqs[-1])
    # Then each event was handled once, in order
    assert await handled(fabric) == seqs
    skipped = successor.metrics.consumer.skipped.labels(STREAM)._value.get()
    assert skipped == len(committed)


async def test_a_crash_inside_the_transaction_leaves_nothing_behind(fabric: Fabric) -> None:
    # Given a persister that dies after its rows and before its commit
    thread_id = await fabric.thread("ava")
    seqs = await fabric.send(thread_id, "ava", *map(str, range(50)))

    async def die(
        connection: "Connection", deliveries: Sequence[Delivery], *, careful: bool
    ) -> None:
        await store_events(connection, deliveries, careful=careful)
        raise DiedError

    persister = await fabric.start_persister(handle=die)
    with pytest.raises(DiedError):
        await persister.tasks[0]
    await persister.die()
    # Then nothing of it is visible, and the successor stores all of it
    assert await fabric.count("messages") == 0
    assert await fabric.cursor() < seqs[0]
    async with fabric.persister():
        await fabric.reached(seqs[-1])
    assert [seq for seq, _ in await fabric.history(thread_id)] == seqs


async def test_stop_finishes_the_batch_in_hand(fabric: Fabric) -> None:
    # Given a persister that is told to stop while it stores a batch
    thread_id = await fabric.thread("ava")
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(
        connection: "Connection", deliveries: Sequence[Delivery], *, careful: bool
    ) -> None:
        inside.set()
        await go_on.wait()
        await store_events(connection, deliveries, careful=careful)

    persister = await fabric.start_persister(handle=slowly, relays=False)
    (seq,) = await fabric.send(thread_id, "ava", "last words")
    await asyncio.wait_for(inside.wait(), 5)
    persister.stop.set()
    go_on.set()
    # When it has ended
    await persister.end()
    # Then the batch is stored and acknowledged
    assert await fabric.cursor() == seq
    bus = await fabric.bus("persister")
    info = await bus.puller(STREAM, PERSISTER_DURABLE, batch_max=1, bytes_max=1000).info()
    await bus.close()
    assert (info.ack_floor_seq, info.num_ack_pending) == (seq, 0)


async def test_a_bug_in_the_handler_ends_the_process_and_skips_nothing(fabric: Fabric) -> None:
    thread_id = await fabric.thread("ava")
    (seq,) = await fabric.send(thread_id, "ava", "precious")

    async def broken(
        connection: "Connection", deliveries: Sequence[Delivery], *, careful: bool
    ) -> None:
        del connection, careful
        raise AttributeError(len(deliveries))

    persister = await fabric.start_persister(handle=broken)
    with pytest.raises(AttributeError):
        await persister.tasks[0]
    await persister.die()
    assert await fabric.count("dead_letters") == 0
    async with fabric.persister():
        await fabric.reached(seq)
    assert await fabric.bodies(thread_id) == ["precious"]


# ---------------------------------------------------------------------- rivals


async def rivals(fabric: Fabric, change: Callable[[Consumer], None]) -> tuple[list[int], list[int]]:
    """Give one batch to two owners at once; return (sent, handled)."""
    thread_id = await fabric.thread("ava")
    seqs = await fabric.send(thread_id, "ava", *map(str, range(20)))
    in_hand: list[Delivery] = []
    found_position, taken, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slowly(
        connection: "Connection", deliveries: Sequence[Delivery], *, careful: bool
    ) -> None:
        in_hand.extend(deliveries)
        await go_on.wait()
        await leave_a_row_each(connection, deliveries, careful=careful)

    def with_the_same_batch(consumer: Consumer) -> None:
        change(consumer)

        async def next_batch(_puller: Puller) -> list[Delivery]:
            found_position.set()
            if taken.is_set():
                await asyncio.sleep(0.05)
                return []
            await eventually(lambda: in_hand)
            batch, in_hand[:] = list(in_hand), []
            taken.set()
            return batch

        consumer._next_batch = next_batch  # type: ignore[method-assign, assignment]

    second = await fabric.start_persister(
        handle=leave_a_row_each, relays=False, change=with_the_same_batch
    )
    await asyncio.wait_for(found_position.wait(), 5)
    first = await fabric.start_persister(
        handle=slowly, relays=False, source=lingering(), change=change
    )
    await asyncio.wait_for(taken.wait(), 5)
    await asyncio.sleep(0.3)  # Long enough for a second owner that nothing holds back.
    go_on.set()
    await fabric.reached(seqs[-1])
    await second.end()
    await first.end()
    return seqs, await handled(fabric)


async def test_two_owners_at_once_handle_every_event_once(fabric: Fabric) -> None:
    seqs, done = await rivals(fabric, never_locked)
    assert done == seqs


async def test_without_the_fence_two_owners_handle_events_twice(fabric: Fabric) -> None:
    """The test above would notice: the same walk with a cursor that nobody locks."""
    seqs, done = await rivals(fabric, without_fence)
    assert len(done) > len(seqs)


async def test_a_second_persister_stands_by_and_takes_over_when_the_first_dies(
    fabric: Fabric,
) -> None:
    # Given two persisters, of which one owns the stream
    thread_id = await fabric.thread("ava")
    first = await fabric.start_persister()
    await eventually(lambda: first.consumer.is_owner)
    async with fabric.persister() as second:
        await eventually(lambda: second.consumer.ready)
        seqs = await fabric.send(thread_id, "ava", "one")
        await fabric.reached(seqs[-1])
        assert (first.consumer.is_owner, second.consumer.is_owner) == (True, False)
        # When the owner dies
        await first.die()
        # Then the other one goes on behind its last commit
        seqs = await fabric.send(thread_id, "ava", "two", "three")
        await fabric.reached(seqs[-1])
        assert second.consumer.is_owner
    assert await fabric.bodies(thread_id) == ["one", "two", "three"]


# ---------------------------------------------------------------------- positions


async def test_an_ack_floor_ahead_of_the_cursor_is_reset_and_everything_stored(
    fabric: Fabric,
) -> None:
    # Given a consumer on which somebody acknowledged what was never stored (a restored database looks the same)
    thread_id = await fabric.thread("ava")
    seqs = await fabric.send(thread_id, "ava", *map(str, range(40)))
    bus = await fabric.bus("persister")
    puller = bus.puller(STREAM, PERSISTER_DURABLE, batch_max=100, bytes_max=10**6)
    batch: list[Delivery] = []
    while len(batch) < 40:
        batch += await puller.next_batch(wait_s=2)
    await puller.ack(batch[-1])
    await bus.close()
    # When a persister starts
    async with fabric.persister():
        await fabric.reached(seqs[-1])
    # Then it went back
    assert [seq for seq, _ in await fabric.history(thread_id)] == seqs


async def test_a_cursor_ahead_of_the_floor_drops_what_comes_again(fabric: Fabric) -> None:
    # Given a cursor that says: the first 30 are stored (they were erased since, say)
    thread_id = await fabric.thread("ava")
    seqs = await fabric.send(thread_id, "ava", *map(str, range(40)))
    await fabric.pool.execute(
        "INSERT INTO stream_cursors VALUES ($1, $2, $3)", STREAM, PERSISTER_DURABLE, seqs[29]
    )
    # When a persister with an untouched consumer starts
    async with fabric.persister():
        await fabric.reached(seqs[-1])
    # Then only the others are written
    assert [seq for seq, _ in await fabric.history(thread_id)] == seqs[30:]


async def test_a_stream_that_ends_before_the_cursor_stops_the_process_with_a_sentence(
    fabric: Fabric,
) -> None:
    await fabric.pool.execute(
        "INSERT INTO stream_cursors VALUES ($1, $2, $3)", STREAM, PERSISTER_DURABLE, 2**50
    )
    persister = await fabric.start_persister(relays=False)
    with pytest.raises(StreamBehindCursorError, match="lilith provision --new-generation MSG_0"):
        await persister.tasks[0]
    await persister.close()


async def test_an_empty_stream_counts_as_stored(fabric: Fabric) -> None:
    """Who asks whether everything up to the stream's tail is stored must hear yes: ``svc.message.find`` does."""
    bus = await fabric.bus("persister")
    tail = (await bus.api(f"STREAM.INFO.{STREAM}"))["state"]["last_seq"]
    await bus.close()
    assert tail > 0
    async with fabric.persister():
        await fabric.reached(tail)


async def test_a_gap_behind_the_cursor_is_asked_for_before_it_is_believed(fabric: Fabric) -> None:
    # Given a puller that loses the first half of what it fetched, without noticing
    thread_id = await fabric.thread("ava")
    seqs = await fabric.send(thread_id, "ava", *map(str, range(40)))
    lost: list[int] = []

    def losing(consumer: Consumer) -> None:
        honest = consumer._next_batch

        async def next_batch(puller: Puller) -> list[Delivery]:
            batch = await honest(puller)
            if batch and not lost:
                lost.extend(delivery.seq for delivery in batch[:20])
                return batch[20:]
            return batch

        consumer._next_batch = next_batch  # type: ignore[method-assign]

    # When the persister meets the gap
    async with fabric.persister(source=lingering(), change=losing):
        await fabric.reached(seqs[-1])
    # Then it asked again and nothing is missing
    assert lost
    assert [seq for seq, _ in await fabric.history(thread_id)] == seqs


# ---------------------------------------------------------------------- outages


async def test_an_error_that_passes_is_tried_again_and_is_no_poison(fabric: Fabric) -> None:
    # Given a database that refuses twice for reasons of its own
    thread_id = await fabric.thread("ava")
    (seq,) = await fabric.send(thread_id, "ava", "patience")
    refusals = [asyncpg.SerializationError("x"), asyncpg.DeadlockDetectedError("y")]

    async def refusing(
        connection: "Connection", deliveries: Sequence[Delivery], *, careful: bool
    ) -> None:
        if refusals:
            raise refusals.pop()
        await store_events(connection, deliveries, careful=careful)

    # When the persister meets it
    async with fabric.persister(handle=refusing) as persister:
        await fabric.reached(seq)
    # Then the message is stored in the end
    assert await fabric.bodies(thread_id) == ["patience"]
    assert await fabric.count("dead_letters") == 0
    assert persister.metrics.consumer.failures.labels(STREAM)._value.get() == 2


async def test_postgresql_away_loses_nothing_and_is_not_ready_meanwhile(
    fabric: Fabric, postgres_server: PostgresServer
) -> None:
    # Given a persister that works
    thread_id = await fabric.thread("ava")
    async with fabric.persister() as persister:
        before = await fabric.send(thread_id, "ava", "before")
        await fabric.reached(before[-1])
        await eventually(lambda: persister.consumer.ready)
        # When PostgreSQL stops, and messages go on arriving
        postgres_server.stop()
        try:
            during = await fabric.send(thread_id, "ava", *map(str, range(100)))
            # Then it is not ready, and says how old the oldest of them is
            await eventually(lambda: not persister.consumer.ready)
            await eventually(lambda: persister.consumer.lag_s() > 0.5)
        finally:
            postgres_server.start()
        # And when it is back, everything is stored and it is ready again
        await fabric.reached(during[-1])
        await eventually(lambda: persister.consumer.ready)
        assert persister.consumer.lag_s() == 0
    assert [seq for seq, _ in await fabric.history(thread_id)] == before + during


async def test_nats_restarted_under_load_loses_and_doubles_nothing(fabric: Fabric) -> None:
    # Given a persister in the middle of a backlog
    thread_id = await fabric.thread("ava")
    seqs = await fabric.send(thread_id, "ava", *map(str, range(3_000)))
    async with fabric.persister(handle=leave_a_row_each, relays=False):
        await fabric.reached(seqs[0])
        # When NATS is killed and comes back
        fabric.nats.restart(kill=True)
        # Then it finishes
        await fabric.reached(seqs[-1], within_s=20)
    assert await handled(fabric) == seqs


async def test_a_killed_connection_in_the_middle_of_a_batch_is_survived(fabric: Fabric) -> None:
    # Given a persister inside a transaction
    thread_id = await fabric.thread("ava")
    seqs = await fabric.send(thread_id, "ava", *map(str, range(100)))
    killed: list[int] = []

    async def cut_off(
        connection: "Connection", deliveries: Sequence[Delivery], *, careful: bool
    ) -> None:
        await store_events(connection, deliveries, careful=careful)
        if not killed:
            # When an administrator ends its session before the commit
            killed.append(await connection.fetchval("SELECT pg_backend_pid()"))
            await fabric.pool.execute("SELECT pg_terminate_backend($1)", killed[0])

    async with fabric.persister(handle=cut_off):
        await fabric.reached(seqs[-1])
    # Then the batch was rolled back and stored again, once
    assert [seq for seq, _ in await fabric.history(thread_id)] == seqs


async def test_a_backlog_of_20000_messages_is_stored_in_order(
    fabric: Fabric, record_property: Callable[[str, object], None]
) -> None:
    # Given 20,000 messages over 50 threads
    threads = [await fabric.thread("ava", "ben") for _ in range(50)]
    seqs = await fabric.store(
        [new_message(threads[n % 50], "ava", f"message {n}") for n in range(20_000)]
    )
    # When a persister starts
    started_s = time.perf_counter()
    async with fabric.persister():
        await fabric.reached(seqs[-1], within_s=60)
        rate = 20_000 / (time.perf_counter() - started_s)
    record_property("rows_per_s", round(rate))
    print(f"{rate:.0f} rows/s")  # noqa: T201 - shown by pytest -s
    # Then each is there once, and each thread in its order
    assert await fabric.count("messages") == 20_000
    assert await fabric.history(threads[7]) == [
        (seqs[n], f"message {n}") for n in range(7, 20_000, 50)
    ]
