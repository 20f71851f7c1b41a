"""Read markers in PostgreSQL: right whatever comes first, counted exactly, told to those whom they concern."""

import itertools
import random
from functools import partial
from typing import Any

import msgspec
import pytest

from persister import queries
from persister.history import store_events
from persister.receipts import store_receipts
from shared.bus import Bus, BusError, Delivery
from shared.consumer import REWIND
from shared.events import encode_event, timestamp
from shared.identity import ThreadId, UserId, new_id
from shared.receipts import Receipt, encode_receipt, move_receipt
from shared.subjects import PERSISTER_DURABLE, RCPT_STREAM, msg_subject, rcpt_subject
from tests.support.eventually import eventually_passes
from tests.support.fabric import Fabric, new_message

AT = "2026-01-01T00:00:00.000Z"


async def read_up_to(bus: Bus, thread_id: ThreadId, user: str, seq: int) -> None:
    """Move a marker as an edge does."""
    at = timestamp()
    await move_receipt(bus, thread_id, UserId(user), lambda seen: seen.read_up_to(seq, at))


async def unread(fabric: Fabric, thread_id: ThreadId, user: str) -> int:
    """Return the number of unread messages of a member as lists show it."""
    (row,) = await fabric.pool.fetch(queries.UNREAD_OF, [thread_id], [user], 1_000)
    return int(row["unread"])


async def test_unread_is_exact_after_reading_up_to_any_message(fabric: Fabric) -> None:
    # Given messages of two senders, seen by a third
    thread_id = await fabric.thread("ava", "ben", "cid")
    seqs = await fabric.store(
        [new_message(thread_id, "ava" if number % 3 else "ben") for number in range(30)]
    )
    async with fabric.persister(receipts=True):
        await fabric.reached(seqs[-1])
        assert await unread(fabric, thread_id, "cid") == 30
        for place in (0, 7, 8, 29):
            # When cid reads up to one of them
            await read_up_to(fabric.edge, thread_id, "cid", seqs[place])

            # Then exactly those after it are unread
            async def is_counted(left: int) -> None:
                assert await unread(fabric, thread_id, "cid") == left

            await eventually_passes(partial(is_counted, 29 - place))
    # And the two counts of the persister agree
    rows = await fabric.pool.fetch(queries.MEMBERS_AND_UNREAD, [thread_id], 501, 1_000)
    for row in rows:
        assert row["unread"] == await unread(fabric, thread_id, row["user_id"]), row["user_id"]


async def test_a_marker_tells_platform_services_and_the_readers_own_devices(
    fabric: Fabric,
) -> None:
    # Given whoever listens to ben's feed, to ava's and to domain events
    thread_id = await fabric.thread("ava", "ben")
    frames: dict[str, list[dict[str, Any]]] = {"ava": [], "ben": []}
    events: list[dict[str, Any]] = []
    platform = await fabric.bus("platform")
    edge = await fabric.bus("edge")
    for user, heard in frames.items():
        edge.subscribe(
            f"user.{user}", lambda *parts, heard=heard: heard.append(msgspec.json.decode(parts[3]))
        )
    platform.subscribe(
        "messaging.message.read", lambda *parts: events.append(msgspec.json.decode(parts[3]))
    )
    await edge.flush()
    await platform.flush()
    async with fabric.persister(receipts=True):
        seqs = await fabric.send(thread_id, "ava", "one", "two", "three")

        async def ben_has(left: int) -> None:
            assert frames["ben"]
            assert (frames["ben"][-1]["unread"], frames["ben"][-1]["unread_total"]) == (left, left)

        await eventually_passes(partial(ben_has, 3))
        quiet = len(frames["ava"])
        # When ben reads two of them
        await read_up_to(fabric.edge, thread_id, "ben", seqs[1])
        # Then his devices hear the new count, hers nothing
        await eventually_passes(partial(ben_has, 1))
        assert len(frames["ava"]) == quiet

        # And platform services hear who read how far
        async def is_told() -> None:
            assert [event["data"] for event in events] == [
                {
                    "thread_id": thread_id,
                    "user_id": "ben",
                    "seq": seqs[1],
                    "read_at": events[0]["time"],
                }
            ]

        await eventually_passes(is_told)
        assert events[0]["subject"] == thread_id
        # When he marks it as unread again, that is nobody's business but his devices'
        at = timestamp()
        await move_receipt(
            fabric.edge, thread_id, UserId("ben"), lambda seen: seen.put_to(0, seqs[-1], at)
        )
        await eventually_passes(partial(ben_has, 3))
        assert len(events) == 1
    await edge.close()
    await platform.close()


@pytest.mark.parametrize("seed", range(8))
async def test_the_marker_is_the_same_whatever_is_folded_first(fabric: Fabric, seed: int) -> None:
    # Given a member who wrote, read on and put the marker back, in any order
    rng = random.Random(seed)
    thread_id, receipt, tail = await fabric.thread("ava"), Receipt(), 0
    own: list[Delivery] = []
    receipts: list[Delivery] = []
    for _ in range(5):
        tail += rng.randint(1, 3)
        match rng.randrange(3):
            case 0:
                own.append(_sent(thread_id, tail))
                continue
            case 1:
                receipt = receipt.read_up_to(rng.randint(0, tail), AT)
            case _:
                receipt = receipt.put_to(rng.randint(0, tail), tail, AT)
        receipts.append(_marked(thread_id, receipt, len(receipts) + 1))
    wanted = max(
        [receipt.read, *(sent.seq for sent in own if sent.seq > receipt.over)],
    )
    # When the two streams are folded in every possible interleaving, or only the newest marker
    for interleaving in _interleavings(own, receipts):
        async with fabric.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            for delivery in interleaving:
                handle = store_receipts if delivery.subject.startswith("rcpt") else store_events
                await handle(connection, [delivery], careful=True)
            row = await connection.fetchrow("SELECT read_seq, shown_seq FROM receipts")
            await transaction.rollback()
        # Then the marker is the same
        if row is not None:
            assert row["read_seq"] == wanted
            assert row["shown_seq"] == max([receipt.shown, *(sent.seq for sent in own)])


def _sent(thread_id: ThreadId, seq: int) -> Delivery:
    payload = encode_event(new_message(thread_id, "ava"))
    return Delivery(msg_subject(thread_id), seq, payload, b"", b"", 1, 0, 0)


def _marked(thread_id: ThreadId, receipt: Receipt, seq: int) -> Delivery:
    subject = rcpt_subject(thread_id, UserId("ava"))
    return Delivery(subject, seq, encode_receipt(receipt), b"", b"", 1, 0, 0)


def _interleavings(own: list[Delivery], marks: list[Delivery]) -> list[list[Delivery]]:
    total = len(own) + len(marks)
    made = []
    for places in itertools.combinations(range(total), len(own)):
        first, second = iter(own), iter(marks)
        made.append([next(first if place in places else second) for place in range(total)])
    return [*made, [*marks[-1:], *own], [*own, *marks[-1:]]]


async def test_a_value_folded_twice_tells_nobody_twice(fabric: Fabric) -> None:
    thread_id = await fabric.thread("ava")
    mark = _marked(thread_id, Receipt().read_up_to(5, AT), 1)
    async with fabric.pool.acquire() as connection, connection.transaction():
        await store_receipts(connection, [mark, mark], careful=False)
        await store_receipts(connection, [mark], careful=False)
    assert await fabric.count("persister_outbox") == 1


async def test_a_marker_that_nobody_can_read_is_a_dead_letter_and_blocks_nothing(
    fabric: Fabric,
) -> None:
    # Given a broken value, a foreign subject, and a good value behind them
    thread_id = await fabric.thread("ava")
    await fabric.edge.store(rcpt_subject(ThreadId(new_id()), UserId("ava")), b"{")
    await fabric.edge.store("rcpt.1.no-thread.ava", encode_receipt(Receipt(read=1)))
    await read_up_to(fabric.edge, thread_id, "ava", 5)
    async with fabric.persister(receipts=True):

        async def is_folded() -> None:
            assert await fabric.pool.fetchval("SELECT read_seq FROM receipts") == 5

        await eventually_passes(is_folded)
    assert await fabric.count("dead_letters") == 2


async def test_a_server_that_forgot_the_end_of_the_receipts_stops_nobody(fabric: Fabric) -> None:
    # Given a persister that has folded more than the stream holds now: the server crashed before it wrote its end
    thread_id = await fabric.thread("ava")
    await read_up_to(fabric.edge, thread_id, "ava", 5)
    await fabric.pool.execute(
        "INSERT INTO stream_cursors (stream, consumer, last_seq) VALUES ($1, $2, $3)",
        RCPT_STREAM,
        PERSISTER_DURABLE,
        2 * REWIND,
    )
    async with fabric.persister(receipts=True):
        # When it starts, and another marker comes at a position that was given out before
        async def is_folded(seq: int) -> None:
            assert await fabric.pool.fetchval("SELECT read_seq FROM receipts") == seq

        # Then it folds what is there, and what comes
        await eventually_passes(partial(is_folded, 5))
        await read_up_to(fabric.edge, thread_id, "ava", 6)
        await eventually_passes(partial(is_folded, 6))
        # And after a restart of the server too
        fabric.nats.restart(kill=True)

        async def moved_on() -> None:
            try:
                await read_up_to(fabric.edge, thread_id, "ava", 7)
            except BusError as error:
                raise AssertionError("the server is not back yet") from error
            await is_folded(7)

        await eventually_passes(moved_on, within_s=20)
