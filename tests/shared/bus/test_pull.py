"""The puller in calm weather: order, bounds, acknowledgements, resets, refusals."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.bus import Bus, ConsumerMissingError, Delivery, JetStreamApiError
from shared.bus.messages import read_delivery
from tests.shared.bus.reading import numbers, prepare, pull, read, store
from tests.shared.bus.server import Buses, LocalNats, create_consumer, create_stream


@pytest.fixture
def nats_v2(tmp_path: Path) -> Iterator[LocalNats]:
    """A nats-server with acknowledgement subjects of version 2."""
    server = LocalNats(tmp_path, ack_v2=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def buses_v2(nats_v2: LocalNats) -> AsyncIterator[Buses]:
    """Connects buses to ``nats_v2``."""
    made = Buses(nats_v2)
    yield made
    await made.close()


async def test_everything_comes_once_and_in_order_and_what_is_acknowledged_stays_so(
    buses: Buses,
) -> None:
    # Given 2,000 messages
    bus = await buses.connect()
    await prepare(bus, 2_000)
    puller = pull(bus)
    # When they are read in batches, each acknowledged
    found: list[Delivery] = []
    while len(found) < 2_000:
        batch = await puller.next_batch(wait_s=5.0)
        assert 0 < len(batch) <= 100
        found.extend(batch)
        await puller.ack(batch[-1])
    # Then each came once, in order, and a successor gets only what is new
    assert numbers(found) == list(range(2_000))
    assert [delivery.seq for delivery in found] == list(range(1, 2_001))
    assert found[0].subject == "s.1"
    assert (found[0].delivered, found[0].pending) == (1, 1_999)
    assert abs(found[0].time_ns / 1e9 - found[-1].time_ns / 1e9) < 60
    info = await puller.info()
    assert (info.ack_floor_seq, info.num_ack_pending, info.num_pending) == (2_000, 0, 0)
    puller.close()
    successor = await buses.connect()
    await store(successor, range(2_000, 2_001))
    assert numbers(await read(pull(successor), 1)) == [2_000]
    assert puller.lives == 1


async def test_a_first_message_ends_the_wait_and_none_ends_it_in_time(bus: Bus) -> None:
    # Given an empty stream
    await prepare(bus, 0)
    puller = pull(bus)
    loop = asyncio.get_running_loop()
    # When nothing comes
    started = loop.time()
    assert await puller.next_batch(wait_s=0.2) == []
    # Then the wait ends in time; and when one comes, it ends at once
    assert 0.15 < loop.time() - started < 1.0
    waiting = asyncio.create_task(puller.next_batch(wait_s=10.0))
    await asyncio.sleep(0.1)
    started = loop.time()
    await bus.store("s.1", b"7")
    assert numbers(await waiting) == [7]
    assert loop.time() - started < 0.5


async def test_fetching_ahead_is_bounded_and_goes_on_when_the_reader_does(bus: Bus) -> None:
    # Given far more messages than are fetched ahead
    await prepare(bus, 1_000)
    puller = pull(bus, batch_max=50)
    # When the reader takes one batch and rests
    first = await puller.next_batch(wait_s=5.0)
    await asyncio.sleep(0.5)
    # Then three batches wait at most, and nothing is lost when it goes on
    assert len(puller._fetched) <= 150
    assert numbers(first + await read(puller, 1_000 - len(first))) == list(range(1_000))


async def test_a_batch_is_bounded_by_bytes_and_a_message_larger_than_that_still_comes(
    bus: Bus,
) -> None:
    # Given messages of which one is larger than a pull may be
    await prepare(bus, 10, size=1_000)
    await bus.store("s.1", b"10".ljust(9_000))
    await store(bus, range(11, 20), size=1_000)
    puller = pull(bus, bytes_max=4_000)
    # When they are read
    found: list[Delivery] = []
    async with asyncio.timeout(10):
        while len(found) < 20:
            batch = await puller.next_batch(wait_s=1.0)
            assert len(batch) <= 5
            found.extend(batch)
    # Then all come
    assert numbers(found) == list(range(20))
    assert puller.lives == 1


async def test_a_message_that_comes_again_while_its_reader_is_slow_is_dropped(bus: Bus) -> None:
    # Given a consumer that delivers again after half a second, and a reader that needs longer
    await create_stream(bus)
    await create_consumer(bus, ack_wait=500_000_000)
    await store(bus, range(20))
    puller = pull(bus)
    found = await read(puller, 20)
    # When it is delivered again meanwhile
    assert await puller.next_batch(wait_s=1.5) == []
    await puller.ack(found[-1])
    await store(bus, range(20, 25))
    # Then the reader does not see it twice, and its acknowledgement covers it
    assert numbers(await read(puller, 5)) == list(range(20, 25))
    assert (await puller.info()).ack_floor_seq >= 20


async def test_two_pulls_are_outstanding_and_never_more(bus: Bus) -> None:
    # Given a reader whose pulls end with every message, and whose next ones leave before the old one's status comes
    await prepare(bus, 50)
    puller = pull(bus, batch_max=1)
    assert numbers(await read(puller, 50)) == list(range(50))
    # When the stream is quiet
    await bus.flush()
    answer = await bus.api("CONSUMER.INFO.S.d")
    # Then the server holds two pulls, although a status of each earlier one came late
    assert answer["num_waiting"] == 2


@pytest.mark.parametrize("seq", [51, 151, 251])
async def test_a_reset_goes_back_or_forward_and_drops_what_was_fetched_ahead(
    bus: Bus, seq: int
) -> None:
    # Given a reader at 150 with more fetched ahead
    await prepare(bus, 300)
    puller = pull(bus, batch_max=50)
    found = await read(puller, 150)
    await puller.ack(found[99])
    # When it is reset
    await puller.reset_to(seq)
    # Then that is the next message, and the floor stands before it
    assert (await puller.info()).ack_floor_seq == seq - 1
    assert [delivery.seq for delivery in await read(puller, 301 - seq)] == list(range(seq, 301))


async def test_a_missing_consumer_or_stream_is_told_and_found_when_it_appears(bus: Bus) -> None:
    # Given no stream, then no consumer
    puller = pull(bus)
    await create_stream(bus, "OTHER")
    with pytest.raises(ConsumerMissingError):
        await read(puller, 1, within_s=10.0)
    await create_stream(bus)
    with pytest.raises(ConsumerMissingError):
        await read(puller, 1, within_s=10.0)
    with pytest.raises(ConsumerMissingError):
        await puller.info()
    # When it appears
    await create_consumer(bus)
    await store(bus, range(3))
    # Then the same puller goes on
    assert numbers(await read(puller, 3)) == [0, 1, 2]


async def test_a_consumer_deleted_under_the_puller_is_told(bus: Bus) -> None:
    # Given a waiting puller
    await prepare(bus, 1)
    puller = pull(bus)
    await read(puller, 1)
    # When the consumer is deleted
    await bus.api("CONSUMER.DELETE.S.d")
    # Then the reader is told
    with pytest.raises(ConsumerMissingError):
        await read(puller, 1, within_s=10.0)


async def test_a_consumer_that_refuses_such_pulls_is_told(bus: Bus) -> None:
    # Given a consumer that gives ten messages a pull at most
    await create_stream(bus)
    await create_consumer(bus, max_batch=10)
    # When more are asked for
    # Then the reader is told instead of pulling for ever
    with pytest.raises(JetStreamApiError):
        await read(pull(bus), 1, within_s=10.0)


async def test_closing_ends_a_waiting_reader(bus: Bus) -> None:
    # Given a reader that waits
    await prepare(bus, 0)
    puller = pull(bus)
    waiting = asyncio.create_task(puller.next_batch(wait_s=60.0))
    await asyncio.sleep(0.1)
    # When the puller is closed
    puller.close()
    # Then it returns, with nothing
    assert await asyncio.wait_for(waiting, 2.0) == []


async def test_acknowledgement_subjects_of_version_2_are_understood(buses_v2: Buses) -> None:
    # Given a server that names domain and account in them
    bus = await buses_v2.connect()
    await prepare(bus, 100)
    puller = pull(bus)
    # When messages are read and acknowledged
    found = await read(puller, 100)
    await puller.ack(found[-1])
    # Then the numbers are right
    assert found[0].reply.count(b".") >= 10
    assert [delivery.seq for delivery in found] == list(range(1, 101))
    assert (await puller.info()).ack_floor_seq == 100


@pytest.mark.parametrize(
    "reply",
    [
        b"$JS.ACK.S.d.2.7.5.1700000000000000000.9",
        b"$JS.ACK._.hash.S.d.2.7.5.1700000000000000000.9",
        b"$JS.ACK._.hash.S.d.2.7.5.1700000000000000000.9.random",
    ],
)
def test_every_form_of_an_acknowledgement_subject_gives_the_same_numbers(reply: bytes) -> None:
    # Given an acknowledgement subject of 9, 11 or 12 tokens
    # When it is read
    number, delivery = read_delivery(b"s.1", reply, b"", b"x", life=3)
    # Then the numbers are in their places
    assert number == 5
    assert delivery == Delivery("s.1", 7, b"x", b"", reply, 2, 1_700_000_000_000_000_000, 9, 3)
