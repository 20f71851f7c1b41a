"""Messages between clients: acknowledged when stored, seen by everybody in one order, linked by ``prev_seq``."""

from typing import Any

import pytest

from shared.identity import ClientMessageId, UserId, message_id, new_id
from shared.subjects import msg_subject
from tests.edge.house import Edge, House
from tests.edge.test_replay import membership, store


@pytest.fixture
async def edge(house: House) -> Edge:
    """One edge."""
    return await house.edge()


async def test_two_clients_on_two_edges_see_the_same_order(house: House, edge: Edge) -> None:
    # Given a thread with a subscriber on each of two edges
    thread_id = await house.thread("ava", "ben")
    ava = await house.client(edge, "ava")
    ben = await house.client(await house.edge(), "ben")
    start = await ava.subscribe(thread_id)
    assert (await ben.subscribe(thread_id))["cursor"] == start["cursor"] == "0"
    # When both send at once
    count = 100
    for number in range(count):
        for client in (ava, ben):
            name = f"{client.user}{number}"
            await client.say(
                type="message.send",
                ref=name,
                thread_id=thread_id,
                client_msg_id=new_id(),
                body=name,
            )
    seen = {
        client.user: [await client.next("message.new") for _ in range(2 * count)]
        for client in (ava, ben)
    }
    # Then both see the same frames, in seq order, without a hole, and each sender's in the order sent
    assert seen["ava"] == seen["ben"]
    seqs = [frame["seq"] for frame in seen["ava"]]
    assert seqs == sorted(seqs)
    assert [frame["prev_seq"] for frame in seen["ava"]] == [0, *seqs[:-1]]
    for user in ("ava", "ben"):
        bodies = [frame["body"] for frame in seen["ava"] if frame["sender_id"] == user]
        assert bodies == [f"{user}{number}" for number in range(count)]
    # And every ack names the place of its message
    by_id = {frame["message_id"]: frame for frame in seen["ava"]}
    for number in range(count):
        ack = await ava.answer(f"ava{number}")
        frame = by_id[ack["message_id"]]
        assert all(ack[name] == frame[name] for name in ("seq", "cursor", "sent_at", "thread_id"))
        assert ack["duplicate"] is False


async def test_a_message_on_the_wire_has_every_field_of_the_protocol(
    house: House, edge: Edge
) -> None:
    thread_id = await house.thread("ava", "ben")
    ava = await house.client(edge, "ava")
    await ava.subscribe(thread_id)
    client_msg_id, answered = new_id(), new_id()
    ack = await ava.send(
        thread_id,
        "hé \U0001f600",
        client_msg_id=client_msg_id,
        reply_to=answered,
        metadata={"a": [1]},
    )
    frame = await ava.next("message.new")
    assert frame == {
        "type": "message.new",
        "message_id": message_id(thread_id, UserId("ava"), ClientMessageId(client_msg_id)),
        "thread_id": thread_id,
        "client_msg_id": client_msg_id,
        "sender_id": "ava",
        "kind": "text",
        "body": "hé \U0001f600",
        "attachments": [],
        "reply_to": answered,
        "quote": None,
        "metadata": {"a": [1]},
        "sent_at": ack["sent_at"],
        "edited_at": None,
        "deleted_at": None,
        "reactions": [],
        "pinned": False,
        "seq": ack["seq"],
        "prev_seq": 0,
        "cursor": ack["cursor"],
    }
    assert set(ack) == {
        "type", "ref", "message_id", "thread_id", "client_msg_id", "seq", "cursor", "sent_at", "duplicate",
    }  # fmt: skip


async def test_ids_are_accepted_with_hyphens_and_capitals(house: House, edge: Edge) -> None:
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")

    def loose(text: str) -> str:
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}".upper()

    client_msg_id = new_id()
    await ava.subscribe(loose(thread_id))
    ack = await ava.send(loose(thread_id), client_msg_id=loose(client_msg_id))
    assert (ack["thread_id"], ack["client_msg_id"]) == (thread_id, client_msg_id)
    assert (await ava.next("message.new"))["thread_id"] == thread_id
    again = await ava.send(thread_id, client_msg_id=client_msg_id)
    assert (again["duplicate"], again["message_id"]) == (True, ack["message_id"])


async def test_a_retry_is_the_same_message_and_never_seen_twice(house: House, edge: Edge) -> None:
    # Given a message that its sender sends again, through another edge
    thread_id = await house.thread("ava", "ben")
    ava = await house.client(edge, "ava")
    elsewhere = await house.client(await house.edge(), "ava")
    ben = await house.client(edge, "ben")
    await ben.subscribe(thread_id)
    client_msg_id = new_id()
    first = await ava.send(thread_id, "once", client_msg_id=client_msg_id)
    again = await elsewhere.send(thread_id, "once", client_msg_id=client_msg_id)
    # Then it is told the first one's place
    same = ("message_id", "seq", "cursor", "sent_at")
    assert [again[name] for name in same] == [first[name] for name in same]
    assert again["duplicate"] is True
    # And with another content it is a conflict
    other = await ava.send(thread_id, "twice", client_msg_id=client_msg_id)
    assert (other["type"], other["code"], other["retryable"]) == ("error", "conflict", False)
    # And the others have seen one message, and see the next one right behind it
    assert (await ben.next("message.new"))["body"] == "once"
    await ava.send(thread_id, "next")
    following = await ben.next("message.new")
    assert (following["body"], following["prev_seq"]) == ("next", first["seq"])
    assert await house.stored() == 2


async def test_a_publish_that_the_log_refuses_is_never_seen_live(house: House, edge: Edge) -> None:
    # Given a subscriber, and a publish on the thread's subject that the stream refuses
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    await ava.subscribe(thread_id)
    bus = await house.bus("edge")
    refused = b'{"type":"message.new","message_id":"%b"}' % (b"a" * 32)
    with pytest.raises(Exception, match="wrong last sequence"):
        await bus.store(
            msg_subject(thread_id),
            refused,
            headers={"Nats-Expected-Last-Subject-Sequence": "77"},
        )
    # Then only what was stored is seen
    await ava.send(thread_id, "stored")
    assert (await ava.next("message.new"))["body"] == "stored"


async def test_without_ref_success_is_silent_and_errors_come_without_it(
    house: House, edge: Edge
) -> None:
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    command: dict[str, Any] = {"type": "message.send", "body": "hi", "client_msg_id": new_id()}
    await ava.say(**command, thread_id=thread_id)
    await ava.say(**command, thread_id=new_id())
    error = await ava.next()
    assert (error["type"], error["code"]) == ("error", "not_found")
    assert "ref" not in error
    await ava.silence()
    assert await house.stored() == 1


async def test_commands_of_one_session_take_effect_in_order(house: House, edge: Edge) -> None:
    # Given commands sent without waiting, the first of which needs NATS
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    await ava.say(type="thread.subscribe", ref="1", thread_id=thread_id)
    for number in range(5):
        await ava.say(
            type="message.send",
            ref=f"s{number}",
            thread_id=thread_id,
            client_msg_id=new_id(),
            body=str(number),
        )
    await ava.say(type="thread.unsubscribe", ref="2", thread_id=thread_id)
    # Then all of them are acknowledged, and the last one won: there is no subscription any more
    for ref in ("1", "s0", "s1", "s2", "s3", "s4", "2"):
        assert (await ava.answer(ref))["type"] == "ack"
    await ava.send(thread_id, "not seen")
    while True:
        try:
            assert (await ava.next("message.new", within_s=0.2))["body"] != "not seen"
        except TimeoutError:
            break


async def test_a_session_has_at_most_64_commands_unanswered_and_all_are_answered_in_the_end(
    house: House, edge: Edge
) -> None:
    # Given far more sends than that, while NATS confirms nothing
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    await ava.send(thread_id)
    house.nats.pause()
    for number in range(300):
        await ava.say(
            type="message.send",
            ref=f"s{number}",
            thread_id=thread_id,
            client_msg_id=new_id(),
            body=str(number),
        )
    # Then reading is paused
    await house.eventually(lambda: _waiting(edge, 64))
    await ava.silence(for_s=0.2)
    assert await edge.metric("messaging_sends_waiting") == 64
    house.nats.resume()
    # And goes on, and each is answered once, in order
    seqs = [(await ava.answer(f"s{number}"))["seq"] for number in range(300)]
    assert seqs == sorted(seqs)
    assert len(set(seqs)) == 300
    await ava.silence()


async def test_an_archived_thread_takes_nothing_and_a_broadcast_only_from_its_owner(
    house: House, edge: Edge
) -> None:
    archived = await house.thread("ava", "ben", archived=True)
    broadcast = await house.thread("ava", "ben", kind="broadcast")
    ava, ben = await house.client(edge, "ava"), await house.client(edge, "ben")
    assert (await ava.send(archived))["code"] == "thread_archived"
    assert (await ben.send(broadcast))["code"] == "forbidden"
    assert (await ava.send(broadcast))["type"] == "ack"


async def test_a_changed_entry_acts_at_once(house: House, edge: Edge) -> None:
    # Given a thread whose entry the edge has cached
    thread_id = await house.thread("ava", "ben")
    ava, ben = await house.client(edge, "ava"), await house.client(edge, "ben")
    await ben.subscribe(thread_id)
    assert (await ava.send(thread_id, "1"))["type"] == "ack"
    assert (await ben.next("message.new"))["body"] == "1"
    # When the api writes one without ben
    await house.thread("ava", thread_id=thread_id, revision=2)

    # Then ben writes no more
    async def is_foreign() -> bool:
        return (await ben.send(thread_id)).get("code") == "not_found"

    await house.eventually(is_foreign)
    # And reads no more, from the event of the removal on
    await store(house, membership(thread_id, "ben", "removed"))
    assert (await ben.next("thread.member", "message.new"))["type"] == "thread.member"
    await ava.send(thread_id, "2")
    await ben.silence("message.new")
    # And an older entry that arrives late changes nothing
    await house.thread("ava", "ben", thread_id=thread_id, revision=1)
    await ben.silence("message.new", for_s=0.2)
    assert (await ben.send(thread_id))["code"] == "not_found"


async def _waiting(edge: Edge, count: int) -> bool:
    return await edge.metric("messaging_sends_waiting") == count
