"""The puller: in order, once, without holes, through everything that a server does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import shared.bus
from shared.bus import Bus, ConsumerMissingError, Delivery, JetStreamApiError, Puller
from shared.bus.messages import header_status, read_delivery
from shared.bus.pull import _Pull
from tests.shared.bus.server import Buses, LocalNats, create_consumer, create_stream
from tests.support.eventually import eventually


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


def pull(bus: Bus, *, batch_max: int = 100, bytes_max: int = 1 << 20) -> Puller:
    return bus.puller("S", "d", batch_max=batch_max, bytes_max=bytes_max)


async def prepare(bus: Bus, count: int, *, size: int = 0) -> None:
    await create_stream(bus)
    await create_consumer(bus)
    await store(bus, range(count), size=size)


async def store(bus: Bus, numbers: range, *, size: int = 0) -> None:
    await asyncio.gather(*(bus.store("s.1", (b"%d" % number).ljust(size)) for number in numbers))


async def read(puller: Puller, count: int, *, within_s: float = 15.0) -> list[Delivery]:
    """Read ``count`` deliveries without acknowledging."""
    found: list[Delivery] = []
    async with asyncio.timeout(within_s):
        while len(found) < count:
            found.extend(await puller.next_batch(wait_s=0.5))
    return found


def numbers(deliveries: list[Delivery]) -> list[int]:
    return [int(delivery.payload) for delivery in deliveries]


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


async def test_what_was_not_acknowledged_comes_again_to_the_successor_of_a_dead_reader(
    buses: Buses,
) -> None:
    # Given a reader that fetched everything, acknowledged 300, and dies
    bus = await buses.connect()
    await prepare(bus, 1_000)
    dying = pull(bus)
    found = await read(dying, 400)
    await dying.ack(found[299])
    await bus.close()
    # When its successor starts at once, long before the acknowledgements time out
    successor_bus = await buses.connect()
    successor = pull(successor_bus)
    again = await read(successor, 700)
    await successor.ack(again[-1])
    # Then it gets all that follows the acknowledged, in order: not the newest first
    assert numbers(again) == list(range(300, 1_000))
    assert (await successor.info()).ack_floor_seq == 1_000


@pytest.mark.parametrize("kill", [True, False])
async def test_a_restart_of_the_server_loses_doubles_and_reorders_nothing(
    bus: Bus, nats: LocalNats, kill: bool
) -> None:
    # Given a reader in the middle of the stream, with messages in hand and some fetched ahead
    await prepare(bus, 1_000)
    puller = pull(bus)
    found = await read(puller, 200)
    await puller.ack(found[99])
    # When the server restarts and more is stored
    if kill:
        nats.kill9()
    else:
        nats.stop()
    await eventually(lambda: not bus.connected)
    while batch := await puller.next_batch(wait_s=0.1):
        found.extend(batch)  # What was fetched ahead is whole and in order, so it is handed out.
    nats.start()
    await eventually(lambda: bus.connected, within_s=20.0)
    await create_stream(bus)
    await store(bus, range(1_000, 1_100))
    # Then the rest follows in order, and the acknowledgement of what was in hand before counts
    rest = await read(puller, 1_100 - len(found))
    assert numbers(found + rest) == list(range(1_100))
    await puller.ack(found[-1])
    assert (await puller.info()).ack_floor_seq == found[-1].seq
    await puller.ack(rest[-1])
    assert (await puller.info()).ack_floor_seq == 1_100


async def test_a_hanging_server_is_noticed_by_silence_and_nothing_is_lost(
    bus: Bus, nats: LocalNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a reader with a short patience
    monkeypatch.setattr("shared.bus.pull.HEARTBEAT_S", 0.2)
    monkeypatch.setattr("shared.bus.pull.SILENT_S_MAX", 0.4)
    await prepare(bus, 300)
    puller = pull(bus)
    found = await read(puller, 300)
    await puller.ack(found[149])
    # When the server hangs until the puller calls it dead
    nats.pause()
    assert await puller.next_batch(wait_s=1.0) == []
    assert not puller._alive
    nats.resume()
    await bus.flush()
    await store(bus, range(300, 400))
    # Then a new life goes on where the old one was
    assert numbers(await read(puller, 100)) == list(range(300, 400))
    assert puller.lives >= 2
    assert bus.connected


async def test_a_lost_delivery_is_noticed_and_comes_again_in_its_place(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a connection that loses one delivery, as a full server buffer does
    await prepare(bus, 300)
    lost: list[bytes] = []

    def lossy(*arguments: bytes, life: int) -> tuple[int, Delivery]:
        number, delivery = read_delivery(*arguments, life=life)
        if number == 120 and not lost:
            lost.append(arguments[3])
            return number - 1_000, delivery
        return number, delivery

    monkeypatch.setattr("shared.bus.pull.read_delivery", lossy)
    puller = pull(bus)
    # When everything is read and acknowledged
    found = await read(puller, 300)
    await puller.ack(found[-1])
    # Then nothing is missing, doubled or out of place
    assert lost
    assert numbers(found) == list(range(300))
    assert (await puller.info()).ack_floor_seq == 300


async def test_a_lost_last_delivery_is_noticed_by_the_heartbeat(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a puller to which the last delivery never comes
    monkeypatch.setattr("shared.bus.pull.HEARTBEAT_S", 0.5)
    await prepare(bus, 10)
    deliver = Puller._deliver
    lost: list[bytes] = []

    def lossy(self: Puller, *arguments: object) -> None:
        payload = arguments[-1]
        assert isinstance(payload, bytes)
        if payload == b"9" and not lost:
            lost.append(payload)
            return
        deliver(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Puller, "_deliver", lossy)
    # When the stream falls silent
    found = await read(pull(bus), 10)
    # Then the heartbeat tells of it
    assert lost
    assert numbers(found) == list(range(10))


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


async def test_an_acknowledgement_of_an_earlier_life_counts(bus: Bus) -> None:
    # Given deliveries in hand from before a reconnect, most of them acknowledged
    await prepare(bus, 300)
    puller = pull(bus)
    found = await read(puller, 200)
    await puller.ack(found[149])
    await bus._client.force_reconnect()
    await eventually(lambda: bus.connected)
    # When later ones are fetched and then the earlier ones are acknowledged
    later = await read(puller, 300 - len(found))
    await puller.ack(found[-1])
    # Then the floor is exact, and so is the next acknowledgement, although its deliveries count anew
    assert (await puller.info()).ack_floor_seq == found[-1].seq
    await puller.ack(later[-1])
    info = await puller.info()
    assert (info.ack_floor_seq, info.num_ack_pending) == (300, 0)
    assert numbers(found + later) == list(range(300))


async def test_after_a_reconnect_it_pulls_at_once_and_not_after_a_silence(bus: Bus) -> None:
    # Given a waiting puller
    await prepare(bus, 1)
    puller = pull(bus)
    await read(puller, 1)
    # When the connection is made anew and a message comes
    await bus._client.force_reconnect()
    await eventually(lambda: bus.connected)
    await bus.store("s.1", b"1")
    # Then it is there long before two heartbeats have been missed
    assert numbers(await read(puller, 1, within_s=1.0)) == [1]


async def test_two_pulls_are_outstanding_and_never_more(bus: Bus) -> None:
    # Given a reader that has used many pulls up
    await prepare(bus, 500)
    puller = pull(bus, batch_max=10)
    await read(puller, 500)
    # When the stream is quiet
    await bus.flush()
    answer = await bus.api("CONSUMER.INFO.S.d")
    # Then the server holds two pulls, although a status of each earlier one arrived late
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


async def test_a_reset_that_fails_is_made_up_before_anything_else_is_returned(
    bus: Bus, nats: LocalNats
) -> None:
    # Given a reader at the end of the stream
    await prepare(bus, 100)
    puller = pull(bus)
    found = await read(puller, 100)
    await puller.ack(found[-1])
    # When it is reset without a connection
    nats.kill9()
    await eventually(lambda: not bus.connected)
    with pytest.raises(shared.bus.BusDisconnectedError):
        await puller.reset_to(11)
    nats.start()
    await eventually(lambda: bus.connected, within_s=20.0)
    # Then the reset holds afterwards
    assert [delivery.seq for delivery in await read(puller, 90)] == list(range(11, 101))


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


async def test_two_pullers_by_mistake_lose_nothing_of_what_each_acknowledges(
    buses: Buses,
) -> None:
    # Given a reader that hangs with an open pull, and its successor on the same consumer
    hung_bus, bus = await buses.connect(), await buses.connect()
    await prepare(bus, 0)
    hung = pull(hung_bus, batch_max=5)
    assert await hung.next_batch(wait_s=0.1) == []
    successor = pull(bus, batch_max=5)
    assert await successor.next_batch(wait_s=0.1) == []
    # When messages come, of which the hung one's pull takes some
    await store(bus, range(30))
    hung.close()
    found = await read(successor, 30)
    # Then the successor sees the hole and gets everything in order
    assert numbers(found) == list(range(30))
    assert successor.lives > 1


async def test_a_pull_that_the_server_forgot_is_noticed_beside_one_that_lives(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two short pulls of which one never ends, while the other's heartbeats go on
    monkeypatch.setattr("shared.bus.pull.HEARTBEAT_S", 0.2)
    monkeypatch.setattr("shared.bus.pull.SILENT_S_MAX", 0.5)
    monkeypatch.setattr("shared.bus.pull.EXPIRES_S", 1.0)
    await prepare(bus, 0)
    puller = pull(bus)
    note_status = puller._note_status
    forgotten: list[object] = []

    def forget_one(place: _Pull, headers: bytes) -> None:
        if header_status(headers) == 408 and forgotten in ([], [place]):
            forgotten[:] = [place]
            return
        note_status(place, headers)

    monkeypatch.setattr(puller, "_note_status", forget_one)
    # When it is over its time
    await puller.next_batch(wait_s=2.5)
    # Then a new life begins
    assert forgotten
    assert puller.lives == 2


async def test_attempts_to_find_a_missing_consumer_are_spaced(bus: Bus) -> None:
    # Given a reader that asks again and again, and no consumer
    await create_stream(bus)
    puller = pull(bus)
    before = bus._requests._count
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + 1.0
    while loop.time() < give_up_at:
        with contextlib.suppress(ConsumerMissingError):
            await puller.next_batch(wait_s=1.0)
    # When a second has passed
    # Then the server was asked a few times, not thousands
    assert 2 <= bus._requests._count - before <= 8


async def test_pulls_that_nobody_answers_are_spaced(bus: Bus) -> None:
    # Given a consumer that exists, and pulls that find nobody, as between two leaders
    await prepare(bus, 1)
    puller = pull(bus)
    puller._next_subject = b"nobody.here"
    # When a reader waits a second
    assert await puller.next_batch(wait_s=1.0) == []
    # Then it tried again and again, not thousands of times, and goes on when somebody is there
    assert 2 <= puller.lives <= 12
    puller._next_subject = b"$JS.API.CONSUMER.MSG.NEXT.S.d"
    assert numbers(await read(puller, 1)) == [0]


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
