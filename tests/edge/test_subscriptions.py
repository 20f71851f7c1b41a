"""``thread.subscribe``: the ack, where live begins, what a cursor may be, replacing and ending."""

import asyncio

import pytest

from edge import limits
from shared.cursors import decode_cursor, encode_cursor
from shared.identity import ThreadId, new_id
from shared.subjects import msg_subject, rcpt_subject
from tests.edge.house import Edge, House


@pytest.fixture
async def edge(house: House) -> Edge:
    """One edge."""
    return await house.edge()


async def test_the_ack_says_where_live_begins_and_who_is_there(house: House, edge: Edge) -> None:
    # Given a thread with a message, names and a receipt
    thread_id = await house.thread("ava", "ben", "cleo")
    await house.user("ava", "Ava")
    await house.user("ben", "Ben")
    ava = await house.client(edge, "ava")
    sent = await ava.send(thread_id)
    api = await house.bus("api")
    await api.store(rcpt_subject(thread_id, "ben"), b'{"read":9,"shown":7,"delivered":8}')
    # When a member subscribes
    ack = await ava.subscribe(thread_id)
    # Then the ack has it all, and caught_up follows
    assert ack.pop("ref")
    common = {"avatar_url": None, "joined_at": "2026-01-01T00:00:00.000Z", "presence": "unknown"}
    assert ack == {
        "type": "ack",
        "cursor": sent["cursor"],
        "recovered": True,
        "participant_count": 3,
        "participants": [
            {"user_id": "ava", "name": "Ava", "role": "owner", "read_seq": 0, "delivered_seq": 0, **common},
            {"user_id": "ben", "name": "Ben", "role": "member", "read_seq": 7, "delivered_seq": 8, **common},
            {"user_id": "cleo", "name": None, "role": "member", "read_seq": 0, "delivered_seq": 0, **common},
        ],
    }  # fmt: skip
    assert await ava.next() == {
        "type": "thread.caught_up",
        "thread_id": thread_id,
        "cursor": sent["cursor"],
    }
    # And the first event points at the ack's cursor
    await ava.send(thread_id, "next")
    assert (await ava.next("message.new"))["prev_seq"] == sent["seq"]


async def test_a_large_thread_shows_a_hundred_participants_the_viewer_among_them(
    house: House, edge: Edge
) -> None:
    members = [f"u{number:03}" for number in range(150)]
    thread_id = await house.thread(*members)
    last = await house.client(edge, "u149")
    ack = await last.subscribe(thread_id)
    assert ack["participant_count"] == 150
    users = [participant["user_id"] for participant in ack["participants"]]
    assert len(users) == 100
    assert "u149" in users


async def test_whatever_is_left_to_replay_a_cursor_within_the_log_is_recovered(
    house: House, edge: Edge
) -> None:
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    assert (await ava.subscribe(thread_id, after="0"))["recovered"] is True
    await ava.next("thread.caught_up")
    first, last = await ava.send(thread_id, "1"), await ava.send(thread_id, "2")
    assert [(await ava.next("message.new"))["body"] for _ in range(2)] == ["1", "2"]
    for after, bodies in ((last["cursor"], []), (first["cursor"], ["2"]), ("0", ["1", "2"])):
        ack = await ava.subscribe(thread_id, after=after)
        assert (ack["recovered"], ack["cursor"]) == (True, last["cursor"])
        frames = [await ava.next("message.new", "thread.caught_up") for _ in (*bodies, "end")]
        assert [frame.get("body") for frame in frames] == [*bodies, None]
    # And live follows from the ack's cursor
    await ava.send(thread_id, "3")
    frame = await ava.next("message.new")
    assert (frame["body"], frame["prev_seq"]) == ("3", last["seq"])


async def test_a_cursor_that_cannot_be_is_invalid_and_changes_nothing(
    house: House, edge: Edge
) -> None:
    thread_id, other = await house.thread("ava"), await house.thread("ava")
    ava = await house.client(edge, "ava")
    sent = await ava.send(thread_id)
    await ava.subscribe(thread_id)
    beyond = encode_cursor(thread_id, sent["seq"] + 1)
    foreign = encode_cursor(other, sent["seq"])
    for after in (beyond, foreign, "rubbish", "", "0x5"):
        again = await house.client(edge, "ava")
        error = await again.ask("thread.subscribe", thread_id=thread_id, after=after)
        assert (error["type"], error["code"]) == ("error", "invalid"), after
        assert error["details"][0]["path"] == "/after"
    # And a subscription that is to be replaced goes on when its successor is refused
    await ava.ask("thread.subscribe", thread_id=thread_id, after=beyond)
    await ava.send(thread_id, "still here")
    assert (await ava.next("message.new"))["body"] == "still here"


async def test_a_cursor_of_another_edge_is_accepted_before_its_event_has_come_here(
    house: House, edge: Edge
) -> None:
    # Given a thread attached here, and an event stored that was not heard here yet
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    await ava.subscribe(thread_id)
    elsewhere = await house.client(await house.edge(), "ava")
    sent = await elsewhere.send(thread_id)
    # When a session that saw it elsewhere resumes here
    ack = await ava.subscribe(thread_id, after=sent["cursor"])
    # Then the cursor is good, and the event does not come again
    assert ack["recovered"] is True
    assert decode_cursor(thread_id, ack["cursor"]) == sent["seq"]


async def test_unsubscribing_ends_it_and_twice_is_fine(house: House, edge: Edge) -> None:
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    await ava.subscribe(thread_id)
    await house.eventually(lambda: _threads(edge, 1))
    for _ in range(2):
        assert (await ava.ask("thread.unsubscribe", thread_id=thread_id))["type"] == "ack"
    await ava.send(thread_id)
    await ava.silence("message.new")
    await house.eventually(lambda: _threads(edge, 0))


async def test_a_closed_session_leaves_no_thread_behind(house: House, edge: Edge) -> None:
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    await ava.subscribe(thread_id)
    ava.socket.transport.abort()
    await house.eventually(lambda: _threads(edge, 0))


async def test_the_129th_subscription_is_one_too_many_but_replacing_one_is_not(
    house: House, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a session that may be quicker than thirty commands a second
    monkeypatch.setattr(limits, "COMMANDS_PER_S", 1_000.0)
    ava = await house.client(edge, "ava")
    threads = [await house.thread("ava") for _ in range(129)]
    for thread_id in threads[:128]:
        await ava.subscribe(thread_id)
    refused = await ava.ask("thread.subscribe", thread_id=threads[128])
    assert refused["code"] == "limit_reached"
    assert await edge.metric('messaging_edge_errors_total{code="limit_reached"}') == 1
    await ava.subscribe(threads[0])
    await ava.ask("thread.unsubscribe", thread_id=threads[1])
    await ava.subscribe(threads[128])


async def test_subscribing_while_others_send_has_neither_hole_nor_repetition(
    house: House, edge: Edge
) -> None:
    # Given somebody who sends all the time, through another edge
    thread_id = await house.thread("ava", "ben")
    ben = await house.client(await house.edge(), "ben")
    stop = asyncio.Event()

    async def keep_sending() -> None:
        while not stop.is_set():
            await ben.send(thread_id)

    sending = asyncio.create_task(keep_sending())
    # When sessions subscribe, again and again
    try:
        for _ in range(15):
            ava = await house.client(edge, "ava")
            ack = await ava.subscribe(thread_id)
            assert (await ava.next())["type"] == "thread.caught_up"
            frames = [await ava.next() for _ in range(5)]
            # Then each sees a chain that begins at its ack
            seqs = [frame["seq"] for frame in frames]
            assert [frame["prev_seq"] for frame in frames] == [
                decode_cursor(ThreadId(thread_id), ack["cursor"]),
                *seqs[:-1],
            ]
            ava.socket.transport.abort()
    finally:
        stop.set()
        await sending


async def test_a_live_event_that_was_lost_is_read_from_the_log(house: House, edge: Edge) -> None:
    # Given a subscriber, and a message that is stored but never republished
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    await ava.subscribe(thread_id)
    first = await ava.send(thread_id, "1")
    bus = await house.bus("edge")
    lost = b'{"type":"message.new","message_id":"%b","body":"lost"}' % new_id().encode()
    provisioner = await house.bus("provision")
    info = await provisioner.api("STREAM.INFO.MSG_0")
    silent = {**info["config"], "republish": None}
    await provisioner.api("STREAM.UPDATE.MSG_0", silent)
    stored = await bus.store(msg_subject(thread_id), lost)
    await provisioner.api("STREAM.UPDATE.MSG_0", info["config"])
    # When the next one comes
    third = await ava.send(thread_id, "3")
    # Then nothing is missing
    frames = [await ava.next("message.new") for _ in range(3)]
    assert [frame["body"] for frame in frames] == ["1", "lost", "3"]
    assert [frame["seq"] for frame in frames] == [first["seq"], stored.seq, third["seq"]]
    assert [frame["prev_seq"] for frame in frames] == [0, first["seq"], stored.seq]
    assert await edge.metric("messaging_edge_repairs_total") == 1


async def _threads(edge: Edge, count: int) -> bool:
    return await edge.metric("messaging_edge_threads") == count
