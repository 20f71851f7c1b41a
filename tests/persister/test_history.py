"""What the log holds is what PostgreSQL holds: once, in order, whatever happens in between."""

import msgspec

from shared.events import ThreadArchived, ThreadChanged, timestamp
from shared.identity import new_id
from shared.subjects import msg_subject
from tests.support.fabric import Fabric, new_message


async def test_messages_of_many_threads_are_stored_once_in_the_order_of_the_log(
    fabric: Fabric,
) -> None:
    # Given 600 messages over three threads, interleaved
    threads = [await fabric.thread("ava", "ben") for _ in range(3)]
    seqs = await fabric.store(
        [new_message(threads[number % 3], "ava", f"{number}") for number in range(600)]
    )
    # When a persister runs
    async with fabric.persister():
        await fabric.reached(seqs[-1])
    # Then each thread has its own, at the seq that the log gave
    for place, thread_id in enumerate(threads):
        expected = [(seqs[number], f"{number}") for number in range(place, 600, 3)]
        assert await fabric.history(thread_id) == expected
    assert await fabric.count("messages") == 600


async def test_every_field_arrives_as_it_was_sent(fabric: Fabric) -> None:
    # Given a message that uses every field, and text at the edges of Unicode
    thread_id = await fabric.thread("ava", "ben")
    clip = {"kind": "clip", "clip_id": new_id(), "name": "a.mp4", "bytes": 2**40}
    sent = new_message(
        thread_id,
        "ava",
        'é 👩‍👩‍👧 \\ " \u2028 \x01',
        attachments=[clip],
        reply_to=new_id(),
        metadata={"a": [1, 2.5, None, True], "π": {"deep": "x"}},
    )
    (seq,) = await fabric.store([sent])
    # When it is stored
    async with fabric.persister():
        await fabric.reached(seq)
    # Then nothing of it changed
    row = await fabric.pool.fetchrow("SELECT * FROM messages")
    assert row is not None
    assert (row["thread_id"].hex, row["seq"], row["message_id"].hex) == (
        thread_id,
        seq,
        sent.message_id,
    )
    assert (row["client_msg_id"].hex, row["sender_id"], row["kind"]) == (
        sent.client_msg_id,
        "ava",
        "text",
    )
    assert row["body"] == sent.body
    assert msgspec.json.decode(row["attachments"]) == [clip]
    assert msgspec.json.decode(row["metadata"]) == sent.metadata
    assert row["reply_to"].hex == sent.reply_to
    assert timestamp(row["sent_at"]) == sent.sent_at
    assert (row["edited_at"], row["deleted_at"], row["changed_seq"]) == (None, None, seq)
    assert len(row["content_digest"]) == 16


async def test_a_second_copy_of_a_message_keeps_the_lowest_seq(fabric: Fabric) -> None:
    # Given a message that is in the log twice, because its retry came after the dedupe window
    thread_id = await fabric.thread("ava", "ben")
    twin = new_message(thread_id, "ava", "once")
    first, between, copy, last = await fabric.store(
        [twin, new_message(thread_id, "ben", "b"), twin, new_message(thread_id, "ben", "c")]
    )
    # When both are in one batch, and a third copy comes later
    async with fabric.persister():
        await fabric.reached(last)
        (late,) = await fabric.store([twin])
        await fabric.reached(late)
    # Then history has it once, where it was first, and nothing else is missing
    assert await fabric.history(thread_id) == [(first, "once"), (between, "b"), (last, "c")]
    assert copy not in [seq for seq, _ in await fabric.history(thread_id)]
    assert await fabric.count("dead_letters") == 0
    # And the copies are no news: the last message is still the last one, and nobody heard of them
    tail = await fabric.pool.fetchrow("SELECT last_message_seq FROM thread_tails")
    assert tail is not None
    assert tail["last_message_seq"] == last
    provision = await fabric.bus("provision")
    state = (await provision.api("STREAM.INFO.EVENTS"))["state"]
    await provision.close()
    assert state["messages"] == 3


async def test_another_message_at_the_same_place_is_a_dead_letter_and_does_not_vanish(
    fabric: Fabric,
) -> None:
    # Given a log that gave a position out again, as a restored store does without a new generation
    thread_id = await fabric.thread("ava")
    async with fabric.persister():
        (seq,) = await fabric.send(thread_id, "ava", "first")
        await fabric.reached(seq)
    await fabric.pool.execute("UPDATE stream_cursors SET last_seq = last_seq - 1")
    await fabric.pool.execute("UPDATE messages SET message_id = gen_random_uuid()")
    # When the persister meets it
    async with fabric.persister():
        await fabric.reached(seq)
    # Then it is kept for a person to look at
    assert await fabric.bodies(thread_id) == ["first"]
    assert "duplicate key" in await fabric.pool.fetchval("SELECT error FROM dead_letters")


async def test_the_tail_and_the_senders_marker_move_with_the_messages(fabric: Fabric) -> None:
    # Given two senders who take turns
    thread_id = await fabric.thread("ava", "ben", "cid")
    seqs = await fabric.store(
        [
            new_message(thread_id, sender, sent_at=f"2026-01-01T00:00:0{place}.000Z")
            for place, sender in enumerate(["ava", "ben", "ava"])
        ]
    )
    # When a thread event follows, which is no message
    (event_seq,) = await fabric.store(
        [
            ThreadChanged(
                thread_id=thread_id,
                event_id=new_id(),
                at="2026-02-02T00:00:00.000Z",
                by="ava",
                changed={"title": "t"},
            )
        ]
    )
    async with fabric.persister():
        await fabric.reached(event_seq)
    # Then the tail names both positions, and lists are sorted by the message
    tail = await fabric.pool.fetchrow("SELECT * FROM thread_tails")
    assert tail is not None
    assert (tail["last_seq"], tail["last_message_seq"]) == (event_seq, seqs[2])
    assert timestamp(tail["last_activity_at"]) == "2026-01-01T00:00:02.000Z"
    # And each sender has read up to their own last message, the silent member nothing
    rows = await fabric.pool.fetch("SELECT user_id, read_seq, delivered_seq FROM receipts")
    assert {(row["user_id"], row["read_seq"], row["delivered_seq"]) for row in rows} == {
        ("ava", seqs[2], seqs[2]),
        ("ben", seqs[1], seqs[1]),
    }


async def test_thread_events_are_kept_and_a_repeated_one_is_ignored(fabric: Fabric) -> None:
    # Given the api's relay, which published one event twice
    thread_id = await fabric.thread("ava", "ben")
    changed = ThreadChanged(
        thread_id=thread_id, event_id=new_id(), at=timestamp(), by="ava", changed={"title": "new"}
    )
    archived = ThreadArchived(
        thread_id=thread_id, event_id=new_id(), at=timestamp(), by="ava", reason="user"
    )
    first, second, _copy = await fabric.store([changed, archived, changed])
    # When they are stored
    async with fabric.persister():
        await fabric.reached(_copy)
    # Then each is there once, with its whole payload
    rows = await fabric.pool.fetch("SELECT seq, type, payload FROM thread_events ORDER BY seq")
    assert [(row["seq"], row["type"]) for row in rows] == [
        (first, "thread.updated"),
        (second, "thread.archived"),
    ]
    assert msgspec.json.decode(rows[0]["payload"])["changed"] == {"title": "new"}
    assert await fabric.count("messages") == 0


async def test_an_event_on_the_subject_of_another_thread_is_a_dead_letter(fabric: Fabric) -> None:
    # Given an event that claims to be of a thread on whose subject it is not
    mine, foreign = await fabric.thread("ava"), await fabric.thread("ben")
    payload = msgspec.json.encode(new_message(foreign, "ava", "smuggled"))
    (seq,) = await fabric.store_raw([(msg_subject(mine), payload)])
    # When it arrives
    async with fabric.persister():
        await fabric.reached(seq)
    # Then it is in neither thread
    assert await fabric.count("messages") == 0
    assert await fabric.count("dead_letters") == 1
