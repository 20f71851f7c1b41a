"""A read marker never goes back, however many devices and nodes move it at once."""

import asyncio
import itertools
import random
import types
from collections.abc import AsyncIterator, Generator, Mapping
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus import Bus, PubAck, PublishRefusedError, PublishTimeoutError, StoredMessage
from shared.bus.errors import WRONG_LAST_SEQUENCE
from shared.identity import ThreadId, UserId, new_id
from shared.receipts import EXPECTED_LAST, Receipt, decode_receipt, encode_receipt, move_receipt
from shared.settings import Settings
from shared.subjects import RCPT_STREAM, rcpt_subject
from tests.support.nats_streams import connected, make_streams
from tests.support.servers import NatsServer

AVA = UserId("ava")
AT = "2026-01-01T00:00:00.000Z"


class Spoiled:
    """A connection on which writes fare as a test wants it."""

    def __init__(self, bus: Bus, *, blind: bool = False, lost_answers: int = 0) -> None:
        self._bus = bus
        self._blind = blind
        self._lost_answers = lost_answers
        self.get_last = bus.get_last

    async def store(
        self, subject: str, payload: bytes, *, timeout_s: float, headers: Mapping[str, str]
    ) -> PubAck:
        await asyncio.sleep(0)
        ack = await self._bus.store(
            subject, payload, timeout_s=timeout_s, headers={} if self._blind else headers
        )
        if self._lost_answers:
            self._lost_answers -= 1
            raise PublishTimeoutError(subject, waited_s=timeout_s)
        return ack


@pytest.fixture
async def buses(nats_server: NatsServer) -> AsyncIterator[tuple[Bus, Bus]]:
    """The connections of two edges to a server with every stream."""
    await make_streams(nats_server, Settings(_env_file=None))
    async with (
        connected(nats_server, "edge", "edge-0") as first,
        connected(nats_server, "edge", "edge-1") as second,
    ):
        yield first, second


async def stored(bus: Bus, thread_id: ThreadId) -> Receipt:
    """Return the stored value, which must be there."""
    message = await bus.get_last(RCPT_STREAM, rcpt_subject(thread_id, AVA))
    assert message is not None
    return decode_receipt(message.payload)


# ---------------------------------------------------------------------- the value

positions = st.integers(min_value=0, max_value=30)
moves = st.lists(st.tuples(st.booleans(), positions, positions), max_size=20)


@given(moves)
def test_what_others_are_shown_never_goes_back(made: list[tuple[bool, int, int]]) -> None:
    # Given any moves: read on, and put somewhere by hand
    receipt = Receipt()
    for number, (is_put, seq, tail) in enumerate(made):
        before = receipt
        at = f"{number}"
        receipt = receipt.put_to(seq, tail, at) if is_put else receipt.read_up_to(seq, at)
        # Then what is shown is the furthest of all, and says when that was
        assert receipt.shown == max([0, *(seq for _, seq, _ in made[: number + 1])])
        assert receipt.delivered >= receipt.shown
        assert (receipt.at == at) == (receipt.shown > before.shown)
        # And the own marker goes back by hand only
        assert receipt.read == (seq if is_put else max(before.read, seq))
        assert receipt.read <= receipt.shown
        assert receipt.over >= before.over


@given(st.permutations(list(range(8))))
def test_the_order_of_reading_does_not_matter(order: list[int]) -> None:
    receipt = Receipt()
    for seq in order:
        receipt = receipt.read_up_to(seq, AT)
    assert (receipt.read, receipt.shown) == (7, 7)


@given(positions, positions, positions, positions)
def test_a_value_survives_the_wire(read: int, shown: int, delivered: int, over: int) -> None:
    receipt = Receipt(read=read, shown=shown, delivered=delivered, over=over, at=AT)
    assert decode_receipt(encode_receipt(receipt)) == receipt


# ---------------------------------------------------------------------- every interleaving


@types.coroutine
def step(_seconds: float = 0.0) -> Generator[None, None, None]:
    """Let another writer go on."""
    yield


class Model:
    """The last value of one subject, as JetStream keeps it; writers take turns at every call."""

    def __init__(self, *, is_blind: bool) -> None:
        self.history: list[Receipt] = []
        self._is_blind = is_blind
        self._last: StoredMessage | None = None

    async def get_last(self, stream: str, subject: str) -> StoredMessage | None:
        del stream, subject
        await step()
        return self._last

    async def store(
        self, subject: str, payload: bytes, *, timeout_s: float, headers: Mapping[str, str]
    ) -> None:
        del timeout_s
        await step()
        seq = 0 if self._last is None else self._last.seq
        if not self._is_blind and headers[EXPECTED_LAST] != f"{seq}":
            raise PublishRefusedError(400, WRONG_LAST_SEQUENCE, "wrong last sequence")
        self._last = StoredMessage(RCPT_STREAM, seq + 1, subject, AT, b"", payload)
        self.history.append(decode_receipt(payload))


def interleave(seqs: list[int], turns: list[int], *, is_blind: bool = False) -> list[Receipt]:
    """Let one writer per seq move the marker, in these turns; return every value that was stored."""
    model: Any = Model(is_blind=is_blind)
    thread_id = ThreadId(new_id())
    writers = [
        move_receipt(model, thread_id, AVA, lambda seen, seq=seq: seen.read_up_to(seq, AT))  # type: ignore[misc]
        for seq in seqs
    ]
    with mock.patch("asyncio.sleep", step):
        for turn in itertools.chain(turns, itertools.count()):
            if not writers:
                break
            writer = writers[turn % len(writers)]
            try:
                writer.send(None)
            except StopIteration:
                writers.remove(writer)
    history: list[Receipt] = model.history
    return history


@given(
    st.lists(st.integers(min_value=1, max_value=9), min_size=1, max_size=5),
    st.lists(st.integers(min_value=0, max_value=59), max_size=60),
)
def test_in_no_interleaving_of_writers_a_marker_goes_back(
    seqs: list[int], turns: list[int]
) -> None:
    # Given any writers that take any turns
    history = interleave(seqs, turns)
    # Then every stored value is further than the one before, and the furthest mark stands
    reads = [receipt.read for receipt in history]
    assert reads == sorted(set(reads))
    assert reads[-1] == max(seqs)


def test_without_compare_and_set_some_interleaving_takes_it_back() -> None:
    # Given two writers that read before either has written (the guard's must-fail twin)
    history = interleave([9, 1], [0, 1, 0, 1], is_blind=True)
    assert [receipt.read for receipt in history] == [9, 1]
    # And the same turns with the guard
    assert [receipt.read for receipt in interleave([9, 1], [0, 1, 0, 1])] == [9]


# ---------------------------------------------------------------------- on real servers


async def _race(buses: tuple[Bus, Bus] | tuple[Spoiled, Spoiled], seqs: list[int]) -> ThreadId:
    """Let both edges move the same marker at once, each through its own seqs; return the thread."""
    thread_id = ThreadId(new_id())

    async def move(bus: Bus | Spoiled, seq: int) -> None:
        await move_receipt(bus, thread_id, AVA, lambda seen: seen.read_up_to(seq, AT))  # type: ignore[arg-type]

    await asyncio.gather(*(move(buses[number % 2], seq) for number, seq in enumerate(seqs)))
    return thread_id


def _seqs(seed: int) -> list[int]:
    seqs = list(range(1, 9))
    random.Random(seed).shuffle(seqs)
    return seqs


async def test_two_edges_that_move_one_marker_never_take_it_back(buses: tuple[Bus, Bus]) -> None:
    # When two edges write at the same time, in any order
    outcomes = [
        (await stored(buses[0], await _race(buses, _seqs(seed)))).read for seed in range(10)
    ]
    # Then the furthest position stands, every time
    assert outcomes == [8] * 10


async def test_without_compare_and_set_a_marker_does_go_back(buses: tuple[Bus, Bus]) -> None:
    # Given the same race, whose writes carry no condition (the guard's must-fail twin)
    blind = (Spoiled(buses[0], blind=True), Spoiled(buses[1], blind=True))
    outcomes = [
        (await stored(buses[0], await _race(blind, _seqs(seed)))).read for seed in range(10)
    ]
    # Then at least one of them ends short of the furthest position
    assert min(outcomes) < 8


async def test_a_lost_answer_is_found_out_by_reading(buses: tuple[Bus, Bus]) -> None:
    # Given a write that is stored, and whose answer never comes
    thread_id = ThreadId(new_id())
    bus = Spoiled(buses[0], lost_answers=1)
    # When a marker moves
    moved = await move_receipt(bus, thread_id, AVA, lambda seen: seen.read_up_to(5, AT))  # type: ignore[arg-type]
    # Then it is known to be stored
    assert moved.after.read == 5
    assert (await stored(buses[0], thread_id)).read == 5


async def test_nothing_is_written_when_nothing_moves(buses: tuple[Bus, Bus]) -> None:
    thread_id = ThreadId(new_id())
    await move_receipt(buses[0], thread_id, AVA, lambda seen: seen.read_up_to(5, AT))
    first = await buses[0].get_last(RCPT_STREAM, rcpt_subject(thread_id, AVA))
    moved = await move_receipt(buses[1], thread_id, AVA, lambda seen: seen.read_up_to(3, AT))
    assert moved.before == moved.after == Receipt(read=5, shown=5, delivered=5, at=AT)
    assert first == await buses[0].get_last(RCPT_STREAM, rcpt_subject(thread_id, AVA))


async def test_a_value_that_nobody_can_read_is_overwritten(buses: tuple[Bus, Bus]) -> None:
    thread_id = ThreadId(new_id())
    await buses[0].store(rcpt_subject(thread_id, AVA), b"{")
    await move_receipt(buses[0], thread_id, AVA, lambda seen: seen.read_up_to(5, AT))
    assert (await stored(buses[0], thread_id)).read == 5


def test_the_condition_is_the_header_that_jetstream_knows() -> None:
    assert EXPECTED_LAST == "Nats-Expected-Last-Subject-Sequence"
