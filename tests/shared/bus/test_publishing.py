"""Stored publishes: order, acknowledgements, refusals, unknown outcomes."""

import asyncio
from collections.abc import Callable

import pytest

from shared.bus import (
    Bus,
    BusDisconnectedError,
    BusError,
    BusOverloadedError,
    InvalidSubjectError,
    NoRespondersError,
    OutgoingMessage,
    PubAck,
    PublishRefusedError,
    PublishTimeoutError,
)
from shared.bus.publishing import Publisher
from tests.shared.bus.server import Buses, LocalNats, create_stream, message_count
from tests.support.eventually import eventually

Outcome = PubAck | BusError


def noting(outcomes: list[Outcome]) -> Callable[[Outcome], None]:
    return outcomes.append


async def test_twenty_thousand_pipelined_messages_are_stored_in_order_and_acknowledged_once_each(
    bus: Bus,
) -> None:
    # Given a stream and 20,000 messages
    await create_stream(bus)
    count = 20_000
    outcomes: list[list[Outcome]] = [[] for _ in range(count)]
    # When they are published without waiting for each other
    for number in range(count):
        if bus.outstanding >= 2_000:
            await eventually(lambda: bus.outstanding < 1_000)
        bus.publish_stored(
            f"s.{number % 7}",
            b"%d" % number,
            noting(outcomes[number]),
            message_id=f"m-{number}",
            timeout_s=20.0,
        )
    await eventually(lambda: bus.outstanding == 0, within_s=20.0)
    # Then each was acknowledged once, at the sequence of its turn, and the log holds them in that order
    assert [outcome for (outcome,) in outcomes] == [PubAck("S", seq) for seq in range(1, count + 1)]
    page = await bus.get_range("S", "s.>", from_seq=19_001, max_messages=1_000, max_bytes=1 << 20)
    assert [int(message.payload) for message in page.messages] == list(range(19_000, 20_000))
    assert not page.more


async def test_the_same_message_id_is_a_duplicate_at_the_first_sequence(bus: Bus) -> None:
    # Given a stored message
    await create_stream(bus)
    first = await bus.store("s.1", b"one", message_id="m-1")
    # When its id is published again
    second = await bus.store("s.1", b"two", message_id="m-1")
    # Then the acknowledgement says so, with the first one's place
    assert (first.duplicate, second) == (False, PubAck("S", first.seq, duplicate=True))
    assert await message_count(bus) == 1


async def test_a_counter_stream_tells_its_total(bus: Bus) -> None:
    # Given a counter stream
    await create_stream(bus, allow_msg_counter=True)
    # When it is counted up twice
    await bus.store("s.hits", b"", headers={"Nats-Incr": "+2"})
    ack = await bus.store("s.hits", b"", headers={"Nats-Incr": "+3"})
    # Then the acknowledgement holds the total
    assert ack.value == 5


async def test_a_refused_publish_says_why_and_stores_nothing(bus: Bus) -> None:
    # Given a full stream that takes small messages only
    await create_stream(bus, max_msg_size=100, max_msgs=1, discard="new")
    await bus.store("s.1", b"only one")
    # When messages come that it cannot take
    errors: list[int] = []
    for subject, payload, headers in (
        ("s.1", b"x", {"Nats-Expected-Stream": "OTHER"}),
        ("s.1", b"x" * 101, {}),
        ("s.1", b"x" * 300_000, {}),
        ("s.1", b"x", {"Nats-Expected-Last-Subject-Sequence": "9"}),
        ("s.1", b"x", {}),
    ):
        with pytest.raises(PublishRefusedError) as refusal:
            await bus.store(subject, payload, headers=headers)
        errors.append(refusal.value.err_code)
        assert not refusal.value.soon
    # Then each is told the reason: wrong stream, too large twice (the second never left), sequence, full
    assert errors == [10060, 10054, 10054, 10071, 10077]
    assert await message_count(bus) == 1
    assert bus.connected


async def test_a_subject_without_a_stream_has_no_responders(bus: Bus) -> None:
    # Given no stream at all
    # When something is published to be stored
    # Then the answer comes at once, not at the deadline
    with pytest.raises(NoRespondersError):
        await bus.store("nobody.here", b"x", timeout_s=60.0)


async def test_after_kill_9_the_outcome_is_unknown_and_the_same_id_is_stored_once(
    bus: Bus, nats: LocalNats
) -> None:
    # Given a server that dies with 500 publishes on their way
    await create_stream(bus)
    outcomes: list[Outcome] = []
    for number in range(500):
        bus.publish_stored(
            "s.1", b"%d" % number, noting(outcomes), message_id=f"m-{number}", timeout_s=30.0
        )
    nats.kill9()
    # When the connection is lost
    await eventually(lambda: len(outcomes) == 500)
    # Then everyone is told at once, "stored" or "unknown", although the deadline is far away
    assert all(isinstance(outcome, PubAck | PublishTimeoutError) for outcome in outcomes)
    assert any(isinstance(outcome, PublishTimeoutError) for outcome in outcomes)
    # And sending all of them again stores each exactly once
    nats.start()
    await eventually(lambda: bus.connected, within_s=20.0)
    await create_stream(bus)
    for number in range(500):
        await bus.store("s.1", b"%d" % number, message_id=f"m-{number}")
    assert await message_count(bus) == 500


async def test_what_is_published_while_disconnected_fails_and_is_never_sent_later(
    bus: Bus, nats: LocalNats
) -> None:
    # Given a bus that lost its server
    await create_stream(bus)
    await bus.store("s.1", b"before")
    nats.kill9()
    await eventually(lambda: not bus.connected)
    # When it publishes in every way
    outcomes: list[Outcome] = []
    bus.publish_stored("s.1", b"zombie", noting(outcomes), message_id="z", timeout_s=5.0)
    assert outcomes == [], "done is never called before publish_stored returns"
    with pytest.raises(BusDisconnectedError):
        bus.publish("s.1", b"zombie")
    with pytest.raises(BusDisconnectedError):
        await bus.store("s.1", b"zombie")
    with pytest.raises(BusDisconnectedError):
        await bus.store_batch([OutgoingMessage("s.1", b"zombie")] * 2, timeout_s=5.0)
    with pytest.raises(BusDisconnectedError):
        await bus.request("s.1", b"zombie", timeout_s=5.0)
    assert [type(outcome) for outcome in outcomes] == [BusDisconnectedError]
    assert bus.disconnected_for_s() > 0.0
    # Then the stream does not have it after the reconnect
    nats.start()
    await eventually(lambda: bus.connected, within_s=20.0)
    await create_stream(bus)
    await bus.flush()
    assert await message_count(bus) == 1
    assert bus.disconnected_for_s() == 0.0


async def test_bytes_not_yet_written_are_dropped_with_the_connection(
    bus: Bus, nats: LocalNats
) -> None:
    # Given a publish in the same loop tick in which the connection breaks
    await create_stream(bus)
    outcomes: list[Outcome] = []
    bus.publish_stored("s.1", b"zombie", noting(outcomes), message_id="z", timeout_s=5.0)
    # When the connection is given up before the tick ends
    await bus._client.force_reconnect()
    # Then the outcome is told as unknown, and nothing is sent by the next connection
    assert [type(outcome) for outcome in outcomes] == [PublishTimeoutError]
    await eventually(lambda: bus.connected)
    await bus.flush()
    assert await message_count(bus) == 0


async def test_deadlines_are_swept_each_at_its_own_time(bus: Bus, nats: LocalNats) -> None:
    # Given a server that hangs
    await create_stream(bus)
    nats.pause()
    loop = asyncio.get_running_loop()
    started = loop.time()
    ended: dict[str, float] = {}

    def done_of(name: str) -> Callable[[Outcome], None]:
        def done(outcome: Outcome) -> None:
            assert isinstance(outcome, PublishTimeoutError)
            assert name not in ended
            ended[name] = loop.time() - started

        return done

    # When publishes wait with different deadlines, the longest first
    for name, timeout_s in (("long", 1.0), ("short", 0.2), ("middle", 0.5)):
        bus.publish_stored("s.1", b"x", done_of(name), message_id=name, timeout_s=timeout_s)
    await eventually(lambda: len(ended) == 3)
    nats.resume()
    # Then each ends soon after its own, and an acknowledgement that comes later is counted, not told
    assert 0.2 <= ended["short"] < 0.45 <= ended["middle"] < 0.95 <= ended["long"] < 1.5
    await eventually(lambda: bus._publisher.late_acks == 3)
    assert bus.callback_errors == 0


async def test_a_callback_that_raises_is_counted_and_stops_nobody(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a done that raises
    await create_stream(bus)

    def broken(_outcome: Outcome) -> None:
        raise RuntimeError("our own bug")

    # When its message is acknowledged
    bus.publish_stored("s.1", b"x", broken, message_id=None, timeout_s=5.0)
    # Then it is logged and counted, and the next message is acknowledged
    await bus.store("s.1", b"y")
    assert bus.callback_errors == 1
    assert "our own bug" in caplog.text


async def test_outstanding_publishes_are_bounded(bus: Bus) -> None:
    # Given a publisher that may have three outstanding
    await create_stream(bus)
    publisher = Publisher(bus._client, "_INBOX.test.ab12.small", outstanding_max=3)
    outcomes: list[Outcome] = []
    # When five are published at once
    for _ in range(5):
        publisher.publish("s.1", b"x", noting(outcomes), message_id=None, timeout_s=5.0)
    await eventually(lambda: len(outcomes) == 5)
    # Then two are told that nothing was sent
    assert sum(isinstance(outcome, BusOverloadedError) for outcome in outcomes) == 2
    assert await message_count(bus) == 3


async def test_unsent_bytes_are_bounded_when_the_server_stops_reading(
    bus: Bus, nats: LocalNats
) -> None:
    # Given a server that hangs
    await bus.flush()
    nats.pause()

    # When a producer does not stop
    def produce() -> int:
        sent = 0
        while sent < 10_000:
            bus.publish("s.1", b"x" * 100_000)
            sent += 1
        return sent

    # Then it is told at the bound, and memory stays within it
    with pytest.raises(BusOverloadedError):
        produce()
    await asyncio.sleep(0)
    with pytest.raises(BusOverloadedError):
        produce()
    nats.resume()

    # And when the server reads again it may go on
    def publishes_again() -> bool:
        try:
            bus.publish("s.1", b"x" * 100_000)
        except BusOverloadedError:
            return False
        return True

    await eventually(publishes_again, within_s=2.0)


async def test_a_batch_is_stored_whole_and_in_order(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a stream that takes atomic batches
    await create_stream(bus, allow_atomic=True)
    messages = [
        OutgoingMessage(f"s.{number % 3}", b"%d" % number, f"m-{number}") for number in range(1000)
    ]
    # When the largest batch is stored
    ack = await bus.store_batch(messages, timeout_s=10.0)
    # Then all are there, and the acknowledgement is the last one's
    assert ack == PubAck("S", 1000)
    page = await bus.get_range("S", "s.>", from_seq=1, max_messages=1000, max_bytes=1 << 20)
    assert [int(message.payload) for message in page.messages] == list(range(1000))
    assert bus.outstanding == 0
    assert "not an acknowledgement" not in caplog.text


async def test_a_batch_of_one_is_an_ordinary_message(bus: Bus) -> None:
    # Given a stream without atomic batches
    await create_stream(bus)
    # When a batch of one is stored
    # Then it needs no batch
    assert await bus.store_batch([OutgoingMessage("s.1", b"x")], timeout_s=5.0) == PubAck("S", 1)


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_batch_with_a_duplicate_stores_nothing(bus: Bus, place: int) -> None:
    # Given a stored message
    await create_stream(bus, allow_atomic=True)
    await bus.store("s.1", b"x", message_id="old")
    # When a batch holds it anywhere
    ids: list[str | None] = ["a", "b", "c"]
    ids[place] = "old"
    with pytest.raises(PublishRefusedError) as refusal:
        await bus.store_batch([OutgoingMessage("s.1", b"y", id_) for id_ in ids], timeout_s=5.0)
    # Then it is refused as a whole, and its other ids are not burnt
    assert refusal.value.err_code == 10201
    assert await message_count(bus) == 1
    assert (await bus.store("s.1", b"y", message_id=ids[(place + 1) % 3])).duplicate is False


async def test_a_batch_that_no_stream_takes_says_why(bus: Bus) -> None:
    # Given a stream without atomic batches and one that takes small messages only
    await create_stream(bus, "PLAIN")
    await create_stream(bus, "SMALL", allow_atomic=True, max_msg_size=200)
    # When batches go there
    reasons: list[int] = []
    for subject, first in (("plain.1", b"x"), ("small.1", b"x" * 201), ("small.1", b"x" * 300_000)):
        with pytest.raises(PublishRefusedError) as refusal:
            await bus.store_batch(
                [OutgoingMessage(subject, first), OutgoingMessage(subject, b"y")], timeout_s=5.0
            )
        reasons.append(refusal.value.err_code)
    with pytest.raises(NoRespondersError):
        await bus.store_batch([OutgoingMessage("none.1", b"x")] * 2, timeout_s=5.0)
    # Then the reason is the first message's own, and nothing stays open
    assert reasons == [10174, 10054, 10054]
    assert await message_count(bus, "SMALL") == 0
    await eventually(lambda: bus.outstanding == 0)


@pytest.mark.parametrize(("last", "bound"), [(b"x" * 300_000, 16 << 20), (b"x" * 9_000, 9_000)])
async def test_a_batch_that_cannot_be_sent_whole_leaves_nothing_open_on_the_server(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, last: bytes, bound: int
) -> None:
    # Given batches whose last message is too large, or does not fit into what may wait
    await create_stream(bus, allow_atomic=True)
    monkeypatch.setattr(bus._client.writer, "_pending_bytes_max", bound)
    # When more of them are tried than the server lets be open
    for _ in range(60):
        with pytest.raises((PublishRefusedError, BusOverloadedError)):
            await bus.store_batch(
                [OutgoingMessage("s.1", payload) for payload in (b"1", b"2", last)], timeout_s=5.0
            )
    # Then the next good one is taken
    ack = await bus.store_batch([OutgoingMessage("s.1", b"x")] * 2, timeout_s=5.0)
    assert ack == PubAck("S", 2)


@pytest.mark.parametrize("size", [0, 1001])
async def test_a_batch_has_1_to_1000_messages(bus: Bus, size: int) -> None:
    # Given a batch outside of what the server takes
    # When it is stored
    # Then that is our own bug
    with pytest.raises(ValueError, match="1 to 1000"):
        await bus.store_batch([OutgoingMessage("s.1", b"x")] * size, timeout_s=5.0)


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0", "ä", b"a\tb"])
async def test_a_subject_that_would_break_the_protocol_is_refused(
    bus: Bus, subject: str | bytes
) -> None:
    # Given a text that is no subject
    # When it is published to
    # Then nothing is sent, and it is an error of the caller, not an outcome
    with pytest.raises(InvalidSubjectError):
        bus.publish(subject, b"x")
    with pytest.raises(InvalidSubjectError):
        bus.publish_stored(subject, b"x", noting([]), message_id=None, timeout_s=1.0)


@pytest.mark.parametrize("headers", [{"A\r\nB": "c"}, {"A": "b\r\nNats-Rollup: all"}, {"A:B": "c"}])
async def test_a_header_cannot_smuggle_another(bus: Bus, headers: dict[str, str]) -> None:
    # Given a header that breaks its line
    # When a message carries it
    # Then it is refused
    with pytest.raises(InvalidSubjectError):
        await bus.store("s.1", b"x", headers=headers)


async def test_draining_waits_for_outstanding_acknowledgements(buses: Buses) -> None:
    # Given a bus with publishes on their way
    bus = await buses.connect()
    await create_stream(bus)
    outcomes: list[Outcome] = []
    for _ in range(200):
        bus.publish_stored("s.1", b"x", noting(outcomes), message_id=None, timeout_s=5.0)
    # When it is drained
    await bus.drain()
    # Then all were acknowledged, and closing on purpose is not reported as a failure
    assert [type(outcome) for outcome in outcomes] == [PubAck] * 200
    assert not bus.connected
    assert buses.reasons == []
