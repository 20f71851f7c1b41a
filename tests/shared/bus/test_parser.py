"""The parser: any split of the bytes gives the same messages."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.errors import ProtocolError

from shared.bus.parser import CONTROL_LINE_BYTES_MAX, Parser

Event = tuple[object, ...]


@dataclass
class Recorder:
    """Stands for the client and notes what the parser calls."""

    events: list[Event] = field(default_factory=list)
    subscriptions: dict[bytes, Any] = field(default_factory=dict)
    on_ping: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.subscriptions[b"1"] = SimpleNamespace(callback=self.heard)
        self.subscriptions[b"2"] = SimpleNamespace(callback=self.fails)

    def heard(self, *message: bytes) -> None:
        self.events.append(("heard", *message))

    def fails(self, *message: bytes) -> None:
        raise RuntimeError(*message)

    def callback_failed(self, sid: bytes, error: Exception) -> None:
        self.events.append(("failed", sid, *error.args))

    async def _process_msg(self, *message: object) -> None:
        self.events.append(("nats-py", *message))

    async def _process_ping(self) -> None:
        self.events.append(("ping",))
        if self.on_ping is not None:
            self.on_ping()

    async def _process_pong(self) -> None:
        self.events.append(("pong",))

    async def _process_err(self, err_msg: str) -> None:
        self.events.append(("error", err_msg))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.events.append(("info", info))


payloads = st.binary(max_size=40) | st.sampled_from(
    [b"\r\n", b"MSG a 1 3\r\n", b"PING\r\n", b"\r", b"\n"]
)
subjects = st.sampled_from([b"a", b"live.7.0123", b"$JS.ACK.S.d.1.2.3.4.5"])
replies = st.sampled_from([b"", b"_INBOX.x.y"])
header_blocks = st.sampled_from(
    [b"NATS/1.0\r\n\r\n", b"NATS/1.0 503\r\n\r\n", b"NATS/1.0\r\nA: b\r\n\r\n"]
)


@st.composite
def lines(draw: st.DrawFn) -> tuple[bytes, Event]:
    """A piece of protocol and what must come of it."""
    kind = draw(st.sampled_from(["msg", "hmsg", "ping", "pong", "ok", "error", "info"]))
    if kind in ("msg", "hmsg"):
        subject, reply, payload = draw(subjects), draw(replies), draw(payloads)
        sid = draw(st.sampled_from([b"1", b"2", b"33"]))
        headers = draw(header_blocks) if kind == "hmsg" else b""
        middle = b" " + reply + b" " if reply else b" "
        if kind == "hmsg":
            sizes = b"%d %d" % (len(headers), len(headers) + len(payload))
            line = b"HMSG " + subject + b" " + sid + middle + sizes
        else:
            line = b"MSG " + subject + b" " + sid + middle + b"%d" % len(payload)
        message = (subject, reply, headers, payload)
        event: Event = ("heard", *message)
        if sid == b"2":
            event = ("failed", sid, *message)
        elif sid == b"33":
            event = ("nats-py", 33, subject, reply, payload, headers)
        return line + b"\r\n" + headers + payload + b"\r\n", event
    simple: dict[str, tuple[bytes, Event]] = {
        "ping": (b"PING\r\n", ("ping",)),
        "pong": (b"PONG\r\n", ("pong",)),
        "ok": (b"+OK\r\n", ()),
        "error": (b"-ERR 'Slow Consumer'\r\n", ("error", "'slow consumer'")),
        "info": (b'INFO {"max_payload": 5}\r\n', ("info", {"max_payload": 5})),
    }
    return simple[kind]


def parse(chunks: list[bytes]) -> list[Event]:
    async def run() -> list[Event]:
        recorder = Recorder()
        parser = Parser(cast("Any", recorder))
        for chunk in chunks:
            await parser.parse(chunk)
        return recorder.events

    return asyncio.run(run())


@settings(max_examples=300, deadline=None)
@given(st.lists(lines(), max_size=12), st.data())
def test_bytes_split_at_any_boundary_give_the_same_messages(
    pieces: list[tuple[bytes, Event]], data: st.DataObject
) -> None:
    # Given a conversation and any places to cut it
    stream = b"".join(piece for piece, _ in pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    chunks = [
        stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    ]
    # When it is parsed
    # Then the same events come of it, in order
    assert parse(chunks) == [event for _, event in pieces if event]


@settings(max_examples=30, deadline=None)
@given(st.lists(lines(), max_size=6))
def test_byte_by_byte_is_the_same(pieces: list[tuple[bytes, Event]]) -> None:
    # Given a conversation
    stream = b"".join(piece for piece, _ in pieces)
    # When it arrives byte by byte
    # Then the same events come of it
    assert parse([stream[at : at + 1] for at in range(len(stream))]) == [
        event for _, event in pieces if event
    ]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_a_protocol_error_or_waits_for_more(noise: bytes) -> None:
    # Given any bytes
    # When they are parsed
    # Then nothing but a protocol error comes of it
    try:
        parse([noise])
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "line",
    [
        b"HELLO\r\n",
        b"MSG a 1 x\r\n",
        b"MSG a\r\n",
        b"MSG a 1 -5\r\nxx\r\n",
        b"HMSG a 1 9 5\r\nNATS/1.0\r\n",
        b"HMSG a 1 x 5\r\n",
        b"INFO {\r\n",
        b"x" * (CONTROL_LINE_BYTES_MAX + 1),
    ],
)
def test_what_is_not_the_protocol_is_an_error(line: bytes) -> None:
    # Given a malformed line
    # When it is parsed
    # Then the connection must be made anew
    with pytest.raises(ProtocolError):
        parse([line])


async def test_a_reset_in_the_middle_forgets_the_rest() -> None:
    # Given a PING on which the connection is given up, with a half message behind it
    recorder = Recorder()
    parser = Parser(cast("Any", recorder))
    recorder.on_ping = parser.reset
    # When the bytes of the old connection and then those of a new one come
    await parser.parse(b"PING\r\nMSG a 1 3\r\nold\r\nMSG a 1 10\r\nxx")
    await parser.parse(b"MSG a 1 3\r\nnew\r\n")
    # Then nothing of the old one is heard after the reset
    assert recorder.events == [("ping",), ("heard", b"a", b"", b"", b"new")]


async def test_a_large_message_in_many_reads_is_joined_once() -> None:
    # Given a message of a megabyte that arrives in pieces of a kilobyte
    recorder = Recorder()
    parser = Parser(cast("Any", recorder))
    payload = bytes(1 << 20)
    stream = b"MSG a 1 %d\r\n" % len(payload) + payload + b"\r\n"
    # When it is parsed
    for at in range(0, len(stream), 1024):
        await parser.parse(stream[at : at + 1024])
    # Then it comes whole
    assert recorder.events == [("heard", b"a", b"", b"", payload)]
