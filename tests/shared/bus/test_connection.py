"""The connection: subscriptions, reconnects, hanging servers, permissions, closing."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import shared.bus
from shared.bus import (
    Bus,
    BusDisconnectedError,
    BusUnauthorizedError,
    InvalidSubjectError,
    RequestTimeoutError,
    header_block,
)
from tests.shared.bus.server import Buses, LocalNats, create_stream
from tests.support.eventually import eventually

USERS = """
authorization {
  users: [
    { user: edge, password: secret, permissions: {
        publish: ["ok.>", "$JS.API.>"], subscribe: ["ok.>", "_INBOX.edge.>"] } }
  ]
}
"""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[LocalNats]:
    """A nats-server that knows one user with few permissions."""
    server = LocalNats(tmp_path, more=USERS)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def guests(guarded: LocalNats) -> AsyncIterator[Buses]:
    """Connects buses to ``guarded``."""
    made = Buses(guarded)
    yield made
    await made.close()


class Heard:
    """What a subscription received."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bytes, bytes, bytes]] = []

    def __call__(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        self.messages.append((subject, reply, headers, payload))

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, _, _, payload in self.messages]


async def test_a_message_arrives_with_subject_reply_raw_headers_and_payload(bus: Bus) -> None:
    # Given a subscription
    heard = Heard()
    bus.subscribe("a.*", heard)
    # When messages with and without headers and reply are published in one tick
    headers = header_block({"K": "v"})
    bus.publish("a.1", b"one")
    bus.publish(b"a.2", b"two\r\n\r\nMSG a.1 1 5\r\n", reply=b"r.1", headers=headers)
    bus.publish("a.3", b"")
    await bus.flush()
    # Then they come in order, byte for byte
    assert heard.messages == [
        (b"a.1", b"", b"", b"one"),
        (b"a.2", b"r.1", b"NATS/1.0\r\nK: v\r\n\r\n", b"two\r\n\r\nMSG a.1 1 5\r\n"),
        (b"a.3", b"", b"", b""),
    ]


async def test_all_publishes_of_a_tick_are_one_write(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a bus whose writes are counted
    writes: list[bytes] = []
    monkeypatch.setattr(bus._client.writer._wire, "write", writes.append, raising=False)
    # When a hundred messages are published in one tick
    for _ in range(100):
        bus.publish("a.1", b"x")
    await asyncio.sleep(0)
    # Then the socket was written to once
    assert writes == [b"PUB a.1  1\r\nx\r\n" * 100]


async def test_a_closed_subscription_hears_nothing_more(bus: Bus) -> None:
    # Given two subscriptions, one of them closed, twice
    closed, open_ = Heard(), Heard()
    subscription = bus.subscribe("a.1", closed)
    bus.subscribe("a.1", open_)
    subscription.close()
    subscription.close()
    # When a message comes
    bus.publish("a.1", b"x")
    await bus.flush()
    # Then only the other hears it
    assert (closed.payloads, open_.payloads) == ([], [b"x"])


async def test_members_of_a_queue_share_the_messages(buses: Buses) -> None:
    # Given two members of one queue
    one, two, sender = [await buses.connect() for _ in range(3)]
    first, second = Heard(), Heard()
    one.subscribe("a.1", first, queue="q")
    two.subscribe("a.1", second, queue="q")
    await one.flush()
    await two.flush()
    # When a hundred messages come
    for number in range(100):
        sender.publish("a.1", b"%d" % number)
    await sender.flush()
    # Then each is heard by one of them
    await eventually(lambda: len(first.payloads) + len(second.payloads) == 100)
    assert set(first.payloads).isdisjoint(second.payloads)


@pytest.mark.parametrize("subject", ["", "a..b", ".a", "a.", "a*.b", "a.>.b", "a b", "a\r\nb"])
async def test_a_malformed_interest_is_refused_before_the_server_closes_the_connection(
    bus: Bus, subject: str
) -> None:
    # Given a subject on which the server would end the connection for ever
    # When it is subscribed to
    with pytest.raises(InvalidSubjectError):
        bus.subscribe(subject, Heard())
    # Then the bus lives on
    await bus.flush()


async def test_a_callback_that_raises_is_logged_once_counted_and_stops_nobody(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a callback with a bug beside a good one
    def broken(*_message: bytes) -> None:
        raise RuntimeError("our own bug")

    heard = Heard()
    bus.subscribe("a.1", broken)
    bus.subscribe("a.1", heard)
    # When ten messages come
    for _ in range(10):
        bus.publish("a.1", b"x")
    await bus.flush()
    # Then the other hears all, the count says ten and the log has one entry
    assert len(heard.payloads) == 10
    assert bus.callback_errors == 10
    assert caplog.text.count("RuntimeError: our own bug") == 1


async def test_subscriptions_are_replayed_after_a_restart_before_the_hooks_are_called(
    buses: Buses, nats: LocalNats
) -> None:
    # Given a subscription, one made while disconnected and one closed while disconnected
    bus = await buses.connect()
    early, late, closed = Heard(), Heard(), Heard()
    bus.subscribe("a.early", early)
    to_close = bus.subscribe("a.early", closed)
    await bus.flush()
    calls: list[bool] = []

    def hook() -> None:
        # A message published by the hook itself must already be heard.
        calls.append(bus.connected)
        bus.publish("a.early", b"from the hook")

    bus.on_reconnect.append(hook)
    nats.kill9()
    await eventually(lambda: not bus.connected)
    bus.subscribe("a.late", late)
    to_close.close()
    # When the server is back
    nats.start()
    await eventually(lambda: bus.connected, within_s=20.0)
    other = await buses.connect()
    other.publish("a.early", b"1")
    other.publish("a.late", b"2")
    await other.flush()
    await bus.flush()
    # Then both hear, nobody else, and the hook was called once
    assert early.payloads == [b"from the hook", b"1"]
    assert late.payloads == [b"2"]
    assert closed.payloads == []
    assert calls == [True]
    assert buses.reasons == []


async def test_a_reconnect_hook_that_raises_does_not_stop_the_others(
    bus: Bus, nats: LocalNats
) -> None:
    # Given a broken hook before a good one
    calls: list[str] = []

    def broken() -> None:
        raise RuntimeError("our own bug")

    bus.on_reconnect.extend([broken, lambda: calls.append("good")])
    # When the server restarts
    nats.stop()
    nats.start()
    # Then the good one is called and the failure counted
    await eventually(lambda: calls == ["good"], within_s=20.0)
    assert bus.callback_errors == 1


async def test_a_hanging_server_is_noticed_and_the_connection_made_anew(
    buses: Buses, nats: LocalNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a bus whose watchdog looks ten times a second, and a server that stops in the middle of a large write
    monkeypatch.setattr(shared.bus, "WATCH_INTERVAL_S", 0.1)
    bus = await buses.connect()
    heard = Heard()
    bus.subscribe("a.1", heard)
    await bus.flush()
    nats.pause()
    for _ in range(80):
        bus.publish("b.1", b"x" * 100_000)
    # When two round trips stay unanswered
    await eventually(lambda: not bus.connected, within_s=3.0)
    # Then the bus comes back as soon as the server does
    nats.resume()
    await eventually(lambda: bus.connected, within_s=20.0)
    bus.publish("a.1", b"x")
    await bus.flush()
    assert heard.payloads == [b"x"]


async def test_a_hanging_server_is_left_for_another_one(
    buses: Buses, nats: LocalNats, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Given a second server, and a first one that hangs with bytes that it will never read
    (tmp_path / "second").mkdir()
    second = LocalNats(tmp_path / "second")
    second.start()
    monkeypatch.setattr(shared.bus, "WATCH_INTERVAL_S", 0.1)
    bus = await buses.connect(nats.url)
    bus._client._setup_server_pool([second.url])
    calls: list[bool] = []
    bus.on_reconnect.append(lambda: calls.append(True))
    nats.pause()
    for _ in range(80):
        bus.publish("b.1", b"x" * 100_000)
    # When the silence is noticed
    # Then the bus goes to the other one without waiting for those bytes
    try:
        await eventually(lambda: calls == [True], within_s=10.0)
        await bus.flush()
        await bus.close()
    finally:
        nats.resume()
        second.stop()


async def test_an_attempt_that_failed_half_way_leaves_no_socket_open(
    buses: Buses, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server that serves one connection and greets later ones without ever going on
    monkeypatch.setattr("shared.bus.client.CONNECT_TIMEOUT_S", 0.1)
    opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append((reader, writer))
        writer.write(b'INFO {"headers": true, "max_payload": 1000}\r\n')
        while len(opened) == 1 and (line := await reader.readline()):
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        bus = await buses.connect(f"nats://127.0.0.1:{port}", timeout_s=5.0)
        # When the connection breaks and the bus tries several times
        opened[0][1].close()
        await eventually(lambda: len(opened) >= 4)
        # Then the earlier attempts are over, for the server, too
        for reader, _ in opened[1:3]:
            await asyncio.wait_for(reader.read(), 2.0)
        await bus.close()
        for _, writer in opened:
            writer.close()


@pytest.mark.parametrize("words", ["'Slow Consumer'", "'Stale Connection'", "'Server Shutdown'"])
async def test_a_passing_error_of_the_server_ends_in_a_reconnect(buses: Buses, words: str) -> None:
    # Given a connected bus
    bus = await buses.connect()
    calls: list[bool] = []
    bus.on_reconnect.append(lambda: calls.append(True))
    # When the server ends the connection for a reason that passes
    await bus._client._process_err(words)
    # Then the bus is not closed for ever
    await eventually(lambda: calls == [True])
    await bus.flush()
    assert buses.reasons == []


async def test_a_flush_is_not_answered_by_the_pong_of_somebody_else(bus: Bus) -> None:
    # Given a subscription of our own
    heard = Heard()
    bus.subscribe("a.1", heard)
    await bus.flush()

    async def publish_flush_and_count() -> int:
        for _ in range(1_000):
            bus.publish("a.1", b"x" * 1_000)
        await bus.flush()
        return len(heard.messages)

    # When nats-py sends its own PING in the tick in which we publish and flush
    count, _ = await asyncio.gather(publish_flush_and_count(), bus._client._send_ping())
    # Then the flush returns behind all of the messages
    assert count == 1_000


async def test_a_ping_that_timed_out_does_not_end_the_reading(bus: Bus, nats: LocalNats) -> None:
    # Given a flush that gave up while the server hung
    nats.pause()
    with pytest.raises(RequestTimeoutError):
        await bus.flush(timeout_s=0.1)
    # When the late PONG comes
    nats.resume()
    # Then the same connection goes on
    await bus.flush()
    assert bus.connected
    assert bus.disconnected_for_s() == 0.0


async def test_an_unexpected_failure_of_the_read_loop_ends_in_a_reconnect(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a parser that fails once, as nats-py's did on an acknowledgement of another version
    parser = bus._client._ps
    parse = parser.parse
    failures: list[bytes] = []

    async def fail_once(data: bytes) -> None:
        if not failures:
            failures.append(data)
            raise ValueError("our own bug")
        await parse(data)

    monkeypatch.setattr(parser, "parse", fail_once)
    calls: list[bool] = []
    bus.on_reconnect.append(lambda: calls.append(True))
    # When data arrives
    with pytest.raises(BusDisconnectedError):
        await bus.flush()
    # Then the bus does not stay connected and deaf: it connects anew
    await eventually(lambda: calls == [True])
    await bus.flush()


@pytest.mark.parametrize("act", ["publish", "subscribe"])
async def test_a_permissions_violation_is_reported_exactly_once(
    guests: Buses, guarded: LocalNats, act: str
) -> None:
    # Given a user who may do little
    bus = await guests.connect(guarded.url_of("edge"), inbox_prefix="_INBOX.edge.ab12")
    # When it does what it may not, twice
    for _ in range(2):
        if act == "publish":
            bus.publish("secret.1", b"x")
        else:
            bus.subscribe("secret.>", Heard())
    await bus.flush()
    # Then the process is told to end, once, and why
    await eventually(lambda: len(guests.reasons) == 1)
    await bus.flush()
    assert len(guests.reasons) == 1
    assert "secret." in guests.reasons[0]


async def test_everything_answers_under_the_own_inbox_prefix_alone(
    guests: Buses, guarded: LocalNats
) -> None:
    # Given a user who may subscribe to answers under its prefix only
    bus = await guests.connect(guarded.url_of("edge"), inbox_prefix="_INBOX.edge.ab12")
    # When it asks
    await create_stream(bus, "OK")
    ack = await bus.store("ok.1", b"x")
    # Then it is answered and nothing is a violation
    assert ack.seq == 1
    assert guests.reasons == []


async def test_another_prefix_is_a_violation(guests: Buses, guarded: LocalNats) -> None:
    # Given the inbox prefix of somebody else
    await guests.connect(guarded.url_of("edge"), inbox_prefix="_INBOX.api.ab12")
    # When the bus subscribes to its answers
    # Then the process is told to end
    await eventually(lambda: len(guests.reasons) == 1)


async def test_a_wrong_password_is_refused_at_once(guests: Buses, guarded: LocalNats) -> None:
    # Given a wrong password
    url = guarded.url_of("edge").replace("secret", "wrong")
    # When the bus connects
    # Then it does not try for ever
    with pytest.raises(BusUnauthorizedError):
        await guests.connect(url, timeout_s=10.0)
    assert guests.reasons == []


async def test_nobody_listening_is_told_within_the_timeout(buses: Buses) -> None:
    # Given a port where nothing listens
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # When the bus connects
    # Then it gives up in time
    with pytest.raises(BusDisconnectedError):
        await buses.connect(f"nats://127.0.0.1:{port}", timeout_s=0.5)


async def test_a_list_of_servers_may_hold_dead_ones(buses: Buses, nats: LocalNats) -> None:
    # Given a list whose first server does not exist
    bus = await buses.connect(f"nats://127.0.0.1:1, {nats.url}")
    # When the bus is used
    # Then it has found the other
    await bus.flush()


async def test_a_protocol_error_closes_for_ever_and_is_reported_once(
    buses: Buses,
) -> None:
    # Given a connected bus
    bus = await buses.connect()
    # When the server calls what it sent nonsense
    bus._client.writer.write_control(b"NONSENSE\r\n")
    # Then the process is told to end
    await eventually(lambda: len(buses.reasons) == 1)
    assert not bus.connected
    with pytest.raises(BusDisconnectedError):
        bus.publish("a.1", b"x")


async def test_closing_on_purpose_is_not_reported_and_leaves_no_task_behind(
    buses: Buses, nats: LocalNats
) -> None:
    # Given a bus whose server hangs with unsent bytes
    before = asyncio.all_tasks()
    bus = await buses.connect()
    nats.pause()
    for _ in range(80):
        bus.publish("b.1", b"x" * 100_000)
    # When it is closed
    await bus.close()
    # Then it ends within seconds, silently, and every task is gone
    await eventually(lambda: asyncio.all_tasks() <= before)
    assert buses.reasons == []
    nats.resume()
