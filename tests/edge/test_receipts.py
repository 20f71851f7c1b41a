"""Read markers: never back, at most one write a second, told to others, and refused where they must be."""

import asyncio
import itertools
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import receipts
from edge.fanout import RECENT_MAX, Event, ThreadFeed
from edge.receipts import MEMBERS_MAX, Marks
from shared.bus import PubAck
from shared.events import encode_event
from shared.identity import MessageId, ThreadId, UserId, new_id
from shared.metrics import EdgeMetrics
from shared.receipts import Receipt, decode_receipt
from shared.subjects import RCPT_STREAM, SVC_MESSAGE_POSITION, SVC_QUEUE, rcpt_subject
from tests.edge.house import Client, Edge, House
from tests.support.fabric import new_message

MARK = "message.mark_read"


@pytest.fixture
async def edge(house: House) -> Edge:
    """One edge."""
    return await house.edge()


async def stored(house: House, thread_id: str, user: str) -> Receipt:
    """Return the stored markers of a member; all zero without any."""
    bus = await house.bus("edge")
    message = await bus.get_last(RCPT_STREAM, rcpt_subject(ThreadId(thread_id), UserId(user)))
    return Receipt() if message is None else decode_receipt(message.payload)


async def writes(house: House) -> int:
    """Return how many values RCPT ever took."""
    info = await (await house.bus("edge")).api(f"STREAM.INFO.{RCPT_STREAM}")
    return int(info["state"]["last_seq"])


async def sent(client: Client, thread_id: str, count: int) -> list[dict[str, Any]]:
    """Send messages and return their acks."""
    return [await client.send(thread_id, f"{number}") for number in range(count)]


# ---------------------------------------------------------------------- the command


async def test_reading_is_stored_acknowledged_and_told_to_others(house: House, edge: Edge) -> None:
    # Given three messages of ava's, and readers on two edges
    other_edge = await house.edge()
    thread_id = await house.thread("ava", "ben", "cleo")
    ava, ben = await house.client(edge, "ava"), await house.client(other_edge, "ben")
    ben_too, cleo = await house.client(edge, "ben"), await house.client(edge, "cleo")
    for client in (ava, ben, ben_too):
        await client.subscribe(thread_id)
    acks = await sent(ava, thread_id, 3)
    # When ben reads the second one
    ack = await ben.ask(MARK, thread_id=thread_id, seq=acks[1]["seq"])
    # Then he hears where his marker is, and ava that he read it
    assert ack == {"type": "ack", "ref": ack["ref"], "read_seq": acks[1]["seq"]}
    told = await ava.next("message.read")
    assert (told["thread_id"], told["user_id"], told["seq"]) == (thread_id, "ben", acks[1]["seq"])
    receipt = await stored(house, thread_id, "ben")
    assert (receipt.read, receipt.shown, receipt.at) == (
        acks[1]["seq"],
        acks[1]["seq"],
        told["at"],
    )
    # And neither his own devices nor those who have not subscribed
    for client in (ben, ben_too, cleo):
        await client.silence("message.read", for_s=0.1)
    # And whoever subscribes later sees it
    participants = (await cleo.subscribe(thread_id))["participants"]
    assert {member["user_id"]: member["read_seq"] for member in participants} == {
        "ava": 0,
        "ben": acks[1]["seq"],
        "cleo": 0,
    }


async def test_a_marker_never_goes_back_and_never_beyond_the_end(house: House, edge: Edge) -> None:
    thread_id = await house.thread("ava", "ben")
    ava, ben = await house.client(edge, "ava"), await house.client(edge, "ben")
    first, second = await sent(ava, thread_id, 2)
    # Beyond the end is the end
    ack = await ben.ask(MARK, thread_id=thread_id, seq=2**53)
    assert ack["read_seq"] == second["seq"]
    # An older one changes nothing, and says where the marker is
    ack = await ben.ask(MARK, thread_id=thread_id, seq=first["seq"])
    assert ack["read_seq"] == second["seq"]
    assert await writes(house) == 1
    # And an empty thread has nothing to read
    empty = await house.thread("ava", "ben")
    assert (await ben.ask(MARK, thread_id=empty, seq=5))["read_seq"] == 0


@pytest.mark.parametrize("is_subscribed", [True, False])
async def test_a_position_between_messages_is_the_message_below(
    house: House, edge: Edge, *, is_subscribed: bool
) -> None:
    # Given two messages with those of another thread between them
    thread_id, other = await house.thread("ava", "ben"), await house.thread("ava", "ben")
    ava, ben = await house.client(edge, "ava"), await house.client(edge, "ben")
    if is_subscribed:
        await ben.subscribe(thread_id)
    (first,) = await sent(ava, thread_id, 1)
    await sent(ava, other, 3)
    (second,) = await sent(ava, thread_id, 1)
    if is_subscribed:
        assert [(await ben.next("message.new"))["seq"] for _ in range(2)] == [
            first["seq"],
            second["seq"],
        ]
    else:
        # A node that has not seen them asks the api.
        api = await house.bus("api")

        async def answer(_payload: bytes) -> bytes:
            return msgspec.json.encode({"status": "stored", "seq": first["seq"]})

        api.serve(SVC_MESSAGE_POSITION, SVC_QUEUE, answer, concurrency=1)
        await api.flush()
    # When ben reads up to a position between them
    ack = await ben.ask(MARK, thread_id=thread_id, seq=first["seq"] + 2)
    # Then it is the first one
    assert ack["read_seq"] == first["seq"]


async def test_with_the_api_away_a_position_is_taken_as_it_is(house: House, edge: Edge) -> None:
    thread_id, other = await house.thread("ava", "ben"), await house.thread("ava", "ben")
    ava, ben = await house.client(edge, "ava"), await house.client(edge, "ben")
    (first,) = await sent(ava, thread_id, 1)
    await sent(ava, other, 3)
    await sent(ava, thread_id, 1)
    ack = await ben.ask(MARK, thread_id=thread_id, seq=first["seq"] + 2)
    assert ack["read_seq"] == first["seq"] + 2


async def test_a_message_id_names_a_position(house: House, edge: Edge) -> None:
    # Given a reader whose node has seen the message
    thread_id = await house.thread("ava", "ben")
    ava, ben = await house.client(edge, "ava"), await house.client(edge, "ben")
    await ben.subscribe(thread_id)
    first, second = await sent(ava, thread_id, 2)
    await ben.next("message.new")
    # When he reads it by its id, in any spelling
    spelled = first["message_id"].upper()
    assert (await ben.ask(MARK, thread_id=thread_id, message_id=spelled))["read_seq"] == first[
        "seq"
    ]
    # Then a node that has not seen it asks the api, and cannot tell without it
    stranger = await house.client(await house.edge(), "ben")
    answer = await stranger.ask(MARK, thread_id=thread_id, message_id=second["message_id"])
    assert (answer["type"], answer["code"]) == ("error", "unavailable")
    api = await house.bus("api")
    asked: list[dict[str, str]] = []
    answers = [{"status": "stored", "seq": second["seq"]}, {"status": "absent"}]

    async def answer_position(payload: bytes) -> bytes:
        asked.append(msgspec.json.decode(payload))
        return msgspec.json.encode(answers[len(asked) - 1])

    api.serve(SVC_MESSAGE_POSITION, SVC_QUEUE, answer_position, concurrency=1)
    await api.flush()
    ack = await stranger.ask(MARK, thread_id=thread_id, message_id=second["message_id"])
    assert ack["read_seq"] == second["seq"]
    assert asked == [{"thread_id": thread_id, "message_id": second["message_id"]}]
    # And an unknown or impossible one is not found
    for unknown in (new_id(), "*"):
        answer = await stranger.ask(MARK, thread_id=thread_id, message_id=unknown)
        assert (answer["type"], answer["code"]) == ("error", "not_found")


async def test_what_one_may_not_see_cannot_be_marked(house: House, edge: Edge) -> None:
    foreign = await house.thread("ava")
    ben = await house.client(edge, "ben")
    for thread_id in (foreign, new_id(), "*"):
        answer = await ben.ask(MARK, thread_id=thread_id, seq=1)
        assert (answer["type"], answer["code"]) == ("error", "not_found")
    assert await writes(house) == 0


async def test_exactly_one_of_message_id_and_seq_is_given(house: House, edge: Edge) -> None:
    thread_id = await house.thread("ben")
    ben = await house.client(edge, "ben")
    for fields in ({}, {"seq": 1, "message_id": new_id()}):
        answer = await ben.ask(MARK, thread_id=thread_id, **fields)
        assert (answer["code"], answer["details"]) == (
            "invalid",
            [{"path": "", "problem": "give exactly one of message_id and seq"}],
        )
    assert await writes(house) == 0


async def test_without_the_feature_nothing_is_marked(house: House) -> None:
    edge = await house.edge(messaging_enable_read_receipts=False)
    thread_id = await house.thread("ava", "ben")
    ben = await house.client(edge, "ben")
    answer = await ben.ask(MARK, thread_id=thread_id, seq=1)
    assert (answer["type"], answer["code"]) == ("error", "feature_disabled")
    assert await writes(house) == 0


async def test_a_big_thread_is_not_told_who_has_read(house: House, edge: Edge) -> None:
    # Given one member more than are told
    crowd = [f"user-{number}" for number in range(MEMBERS_MAX - 1)]
    thread_id = await house.thread("ava", "ben", *crowd)
    ava, ben = await house.client(edge, "ava"), await house.client(edge, "ben")
    await ava.subscribe(thread_id)
    (first,) = await sent(ava, thread_id, 1)
    # When ben reads
    ack = await ben.ask(MARK, thread_id=thread_id, seq=first["seq"])
    # Then it is stored, and nobody is told
    assert ack["read_seq"] == first["seq"]
    assert (await stored(house, thread_id, "ben")).read == first["seq"]
    await ava.silence("message.read", for_s=0.2)


# ---------------------------------------------------------------------- many at once


async def test_marks_of_one_second_are_one_write_and_all_are_answered(
    house: House, edge: Edge
) -> None:
    # Given twenty messages
    thread_id = await house.thread("ava", "ben")
    ava = await house.client(edge, "ava")
    acks = await sent(ava, thread_id, 20)
    ben = await house.client(edge, "ben")
    started = time.monotonic()
    # When ben reads the first one and scrolls through the others
    answers = [await ben.ask(MARK, thread_id=thread_id, seq=acks[0]["seq"])]
    for ack in acks[1:]:
        await ben.say(type=MARK, ref=f"{ack['seq']}", thread_id=thread_id, seq=ack["seq"])
    answers += [await ben.answer(f"{ack['seq']}") for ack in acks[1:]]
    took_s = time.monotonic() - started
    # Then every mark is answered with a marker that has reached it
    assert all(answer["read_seq"] >= ack["seq"] for answer, ack in zip(answers, acks, strict=True))
    # And that took two writes: the first at once, the rest a second later
    assert await writes(house) == 2
    assert receipts.INTERVAL_S * 0.9 <= took_s <= receipts.INTERVAL_S + 1.5
    assert await edge.metric('messaging_edge_receipts_total{result="written"}') == 2


async def test_a_waiting_mark_does_not_hold_up_other_commands(house: House, edge: Edge) -> None:
    thread_id = await house.thread("ava", "ben")
    ava, ben = await house.client(edge, "ava"), await house.client(edge, "ben")
    first, second = await sent(ava, thread_id, 2)
    await ben.ask(MARK, thread_id=thread_id, seq=first["seq"])
    started = time.monotonic()
    await ben.say(type=MARK, ref="later", thread_id=thread_id, seq=second["seq"])
    assert (await ben.send(thread_id, "meanwhile"))["type"] == "ack"
    assert time.monotonic() - started < receipts.INTERVAL_S / 2
    assert (await ben.answer("later"))["read_seq"] == second["seq"]


async def test_two_edges_that_move_one_marker_never_take_it_back(house: House, edge: Edge) -> None:
    # Given two devices of ben's on two edges, and somebody who watches
    other_edge = await house.edge()
    thread_id = await house.thread("ava", "ben")
    ava = await house.client(edge, "ava")
    await ava.subscribe(thread_id)
    acks = await sent(ava, thread_id, 12)
    devices = [await house.client(edge, "ben"), await house.client(other_edge, "ben")]
    # When both mark different messages at the same time, again and again
    answers = []
    for start in range(0, 12, 4):
        group = [acks[start + place]["seq"] for place in (3, 1, 2, 0)]
        for place, seq in enumerate(group):
            await devices[place % 2].say(type=MARK, ref=f"{seq}", thread_id=thread_id, seq=seq)
        for place, seq in enumerate(group):
            answers.append(await devices[place % 2].answer(f"{seq}"))
        # Then the furthest one stands
        assert (await stored(house, thread_id, "ben")).read == max(group)
    # And nobody ever saw it go back
    await ava.silence("nothing", for_s=0.2)
    seen = [frame["seq"] for frame in ava._waiting if frame["type"] == "message.read"]
    assert seen == sorted(seen)
    assert seen[-1] == acks[-1]["seq"]
    assert all(answer["type"] == "ack" for answer in answers)


class SlowStore:
    """What ``move_receipt`` needs, without a server: one value, and the times at which it was written."""

    def __init__(self) -> None:
        self.written: list[tuple[float, Receipt]] = []
        self.told: list[bytes] = []
        self.fails = False

    async def get_last(self, _stream: str, _subject: str) -> None:
        await asyncio.sleep(0)

    async def store(self, _subject: str, payload: bytes, **_options: object) -> PubAck:
        await asyncio.sleep(0)
        self.written.append((asyncio.get_running_loop().time(), decode_receipt(payload)))
        return PubAck(RCPT_STREAM, len(self.written), duplicate=False, value=None)

    def publish(self, _subject: str, payload: bytes) -> None:
        self.told.append(payload)


def marks_on(store: SlowStore) -> tuple[Marks, set[asyncio.Task[None]]]:
    """Return lanes over a store, and the tasks that they start."""
    tasks: set[asyncio.Task[None]] = set()
    bus: Any = store
    marks = Marks(
        bus,
        spawn=lambda work: tasks.add(asyncio.ensure_future(work)),
        metrics=EdgeMetrics("test"),
    )
    return marks, tasks


async def test_no_more_than_one_write_a_second_and_nothing_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a node whose second is a tenth
    monkeypatch.setattr(receipts, "INTERVAL_S", 0.1)
    store = SlowStore()
    marks, tasks = marks_on(store)
    # When one member marks and marks
    asked = []
    for seq in range(1, 41):
        asked.append(
            asyncio.ensure_future(marks.mark(ThreadId("t" * 32), UserId("ava"), seq, is_told=True))
        )
        await asyncio.sleep(0.01)
    assert await asyncio.gather(*asked) >= list(range(1, 41))
    # Then writes are a second apart, and the last one is the last mark
    times = [at for at, _ in store.written]
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 0.099
    assert store.written[-1][1].read == 40
    # And what is quiet is forgotten
    await asyncio.gather(*tasks)
    assert len(marks) == 0


async def test_a_node_with_too_many_moving_markers_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "LANES_MAX", 1)
    store = SlowStore()
    marks, tasks = marks_on(store)
    await marks.mark(ThreadId("t" * 32), UserId("ava"), 1, is_told=False)
    with pytest.raises(receipts.MarksOverloadedError):
        await marks.mark(ThreadId("t" * 32), UserId("ben"), 1, is_told=False)
    for task in tasks:
        task.cancel()


# ---------------------------------------------------------------------- what a node remembers


@given(
    st.lists(st.booleans(), min_size=1, max_size=2 * RECENT_MAX),
    st.integers(min_value=0, max_value=3 * RECENT_MAX),
)
def test_a_remembered_message_is_the_largest_at_or_below(
    are_messages: list[bool], seq: int
) -> None:
    # Given a feed through which messages and other events came
    feed, thread_id = ThreadFeed(ThreadId("0" * 32)), ThreadId("0" * 32)
    feed.begin(0)
    feed.release()
    known: dict[int, MessageId] = {}
    for place, is_message in enumerate(are_messages, start=1):
        message = new_message(thread_id, "ava")
        payload = encode_event(message) if is_message else b'{"type":"thread.updated"}'
        feed.deliver(Event(place, place - 1, payload))
        if is_message:
            known[place] = MessageId(message.message_id)
    # When it is asked for a position
    found = feed.message_at(seq)
    # Then it names the right message, or none: never a wrong one
    below = [place for place in known if place <= seq]
    remembered = sorted(known)[-RECENT_MAX:]
    if seq > len(are_messages) or not below or below[-1] not in remembered:
        assert found is None
    else:
        assert found == below[-1]
    for place, message_id in known.items():
        assert feed.seq_of(message_id) == (place if place in remembered else None)
