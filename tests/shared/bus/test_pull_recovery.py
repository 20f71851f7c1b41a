"""The puller in bad weather: crashes, restarts, silence, lost deliveries. Nothing is lost, doubled or reordered."""

import asyncio
import contextlib

import pytest

import shared.bus
from shared.bus import Bus, ConsumerMissingError, Delivery, Puller
from shared.bus.messages import header_status, read_delivery
from shared.bus.pull import _Pull
from tests.shared.bus.reading import numbers, prepare, pull, read, store
from tests.shared.bus.server import Buses, LocalNats, create_stream
from tests.support.eventually import eventually


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


async def test_after_a_restart_it_pulls_at_once_and_not_after_a_silence(
    bus: Bus, nats: LocalNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a waiting puller that would bear silence for long
    monkeypatch.setattr("shared.bus.pull.SILENT_S_MAX", 60.0)
    await prepare(bus, 1)
    puller = pull(bus)
    await read(puller, 1)
    # When the server has forgotten its pulls and a message comes
    nats.kill9()
    await eventually(lambda: not bus.connected)
    nats.start()
    await eventually(lambda: bus.connected, within_s=20.0)
    await create_stream(bus)
    await bus.store("s.1", b"1")
    # Then it is there at once
    assert numbers(await read(puller, 1, within_s=5.0)) == [1]


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
