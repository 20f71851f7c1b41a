"""Edits, deletions and members: each event has its effect once, and deleted is final."""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from persister.history import store_events
from shared.bus import Delivery
from shared.events import (
    AnyThreadEvent,
    MessageDeleted,
    MessageNew,
    MessageUpdated,
    ThreadMember,
    encode_event,
    timestamp,
)
from shared.identity import ThreadId, new_id
from shared.subjects import msg_subject
from tests.support.eventually import eventually_passes
from tests.support.fabric import Fabric, new_message


def edit(message: MessageNew, body: str, **fields: Any) -> MessageUpdated:  # noqa: ANN401
    """Return an edit of a message by its sender."""
    made = {
        "thread_id": message.thread_id,
        "event_id": new_id(),
        "message_id": message.message_id,
        "body": body,
        "edited_at": timestamp(),
        "editor_id": message.sender_id,
    }
    return MessageUpdated(**{**made, **fields})


def deletion(message: MessageNew) -> MessageDeleted:
    """Return the deletion of a message by its sender."""
    return MessageDeleted(
        thread_id=message.thread_id,
        event_id=new_id(),
        message_id=message.message_id,
        deleted_at=timestamp(),
        by=message.sender_id,
    )


async def versions(fabric: Fabric) -> list[tuple[int, str, str]]:
    """Return (version, body, editor) of every stored version."""
    rows = await fabric.pool.fetch(
        "SELECT version, body, editor_id FROM message_edits ORDER BY message_id, version"
    )
    return [(row["version"], row["body"], row["editor_id"]) for row in rows]


async def test_an_edit_changes_the_message_and_keeps_every_version(fabric: Fabric) -> None:
    # Given a message that was edited twice, in batches of their own
    thread_id = await fabric.thread("ava", "ben")
    message = new_message(thread_id, "ava", "one", sent_at="2026-01-01T00:00:00.000Z")
    second = edit(message, "two", edited_at="2026-01-01T00:00:01.000Z")
    third = edit(message, "three", edited_at="2026-01-01T00:00:02.000Z")
    async with fabric.persister():
        seqs = []
        for event in (message, second, third):
            seqs += await fabric.store([event])
            await fabric.reached(seqs[-1])
    seq = seqs[-1]
    # Then it shows the last body, where it was, and knows what changed it
    row = await fabric.pool.fetchrow("SELECT body, seq, changed_seq, edited_at FROM messages")
    assert row is not None
    assert (row["body"], row["changed_seq"]) == ("three", seq)
    assert row["seq"] < seq
    assert timestamp(row["edited_at"]) == third.edited_at
    # And every version is there, the one that was sent included
    assert await versions(fabric) == [(1, "one", "ava"), (2, "two", "ava"), (3, "three", "ava")]
    # And the thread's end moved, but not its last message nor its activity
    tail = await fabric.pool.fetchrow("SELECT * FROM thread_tails")
    assert tail is not None
    assert (tail["last_seq"], tail["last_message_seq"]) == (seq, row["seq"])
    assert timestamp(tail["last_activity_at"]) == message.sent_at


async def test_the_same_edit_twice_has_one_effect_whatever_came_between(fabric: Fabric) -> None:
    # Given an edit that the relay publishes again, after a later one
    thread_id = await fabric.thread("ava")
    message = new_message(thread_id, "ava", "one")
    first, later = edit(message, "two"), edit(message, "three")
    seqs = await fabric.store([message, first, first, later, first])
    async with fabric.persister():
        await fabric.reached(seqs[-1])
        # And once more, in another batch
        (again,) = await fabric.store([first])
        await fabric.reached(again)
    # Then the later one stands
    assert await fabric.bodies(thread_id) == ["three"]
    assert [body for _, body, _ in await versions(fabric)] == ["one", "two", "three"]
    assert await fabric.pool.fetchval("SELECT changed_seq FROM messages") == seqs[3]


async def test_a_deletion_leaves_the_place_and_nothing_of_the_content(fabric: Fabric) -> None:
    # Given a message with everything, edited and then deleted
    thread_id = await fabric.thread("ava", "ben")
    message = new_message(
        thread_id,
        "ava",
        "secret",
        attachments=[{"clip_id": new_id()}],
        metadata={"secret": True},
        reply_to=new_id(),
    )
    gone = deletion(message)
    async with fabric.persister():
        (_, _, seq) = await fabric.store([message, edit(message, "also secret"), gone])
        await fabric.reached(seq)
        digest = await fabric.pool.fetchval("SELECT content_digest FROM messages")
        # When it is edited and deleted after that
        (last, _) = await fabric.store([edit(message, "back"), deletion(message)])
        await fabric.reached(last + 1)
    # Then nothing brings it back
    row = await fabric.pool.fetchrow("SELECT * FROM messages")
    assert row is not None
    assert (row["body"], row["attachments"], row["metadata"]) == ("", "[]", "{}")
    assert (timestamp(row["deleted_at"]), row["edited_at"]) == (gone.deleted_at, None)
    assert row["changed_seq"] == seq
    assert await fabric.count("message_edits") == 0
    # And a retry of it is still known as the same message
    assert row["content_digest"] == digest
    assert len(digest) == 16


async def test_changes_of_unknown_messages_are_ignored_and_counted(fabric: Fabric) -> None:
    # Given changes of a message that nobody ever stored, and of one of another thread
    thread_id, foreign = await fabric.thread("ava"), await fabric.thread("ben")
    other = new_message(foreign, "ben", "mine")
    ghost = new_message(thread_id, "ava", "never stored")
    stolen = edit(other, "stolen", thread_id=thread_id)
    seqs = await fabric.store([other, edit(ghost, "x"), deletion(ghost), stolen])
    # When they arrive
    async with fabric.persister() as persister:
        await fabric.reached(seqs[-1])
        ignored = {
            kind: persister.metrics.registry.get_sample_value(
                "messaging_persister_events_ignored_total", {"type": kind}
            )
            for kind in ("message.updated", "message.deleted")
        }
    # Then nothing is changed, nothing is poison, and the counter names them
    assert await fabric.bodies(foreign) == ["mine"]
    assert await fabric.count("dead_letters") == 0
    assert ignored == {"message.updated": 2, "message.deleted": 1}
    # And whoever saw them live has a cursor that history reaches
    assert (
        await fabric.pool.fetchval(
            "SELECT last_seq FROM thread_tails WHERE thread_id = $1", thread_id
        )
        == seqs[-1]
    )


async def test_a_deleted_message_is_unread_no_more_and_lists_follow(fabric: Fabric) -> None:
    # Given two messages that ben has not read
    thread_id = await fabric.thread("ava", "ben")
    first, last = new_message(thread_id, "ava", "first"), new_message(thread_id, "ava", "last")
    frames: list[dict[str, Any]] = []
    edge = await fabric.bus("edge")
    edge.subscribe("user.ben", lambda *parts: frames.append(msgspec.json.decode(parts[3])))
    await edge.flush()
    async with fabric.persister():
        await fabric.store([first, last])

        async def has_unread(unread: int, preview: str) -> None:
            assert frames
            assert frames[-1]["unread"] == unread
            assert frames[-1]["last_message"]["preview"] == preview

        await eventually_passes(partial(has_unread, 2, "last"))
        # When the last one is edited, his list shows it
        await fabric.store([edit(last, "edited")])
        await eventually_passes(partial(has_unread, 2, "edited"))
        # And when it is deleted, it is still the last one, and unread no more
        await fabric.store([deletion(last)])
        await eventually_passes(partial(has_unread, 1, ""))
    await edge.close()


async def test_a_change_of_members_is_a_thread_event(fabric: Fabric) -> None:
    # Given ben's removal, which the relay published twice
    thread_id = await fabric.thread("ava", "ben")
    removal = ThreadMember(
        thread_id=thread_id,
        event_id=new_id(),
        at=timestamp(),
        by="ava",
        user_id="ben",
        role="member",
        change="removed",
    )
    seqs = await fabric.store([removal, removal])
    async with fabric.persister():
        await fabric.reached(seqs[-1])
    # Then it is there once
    (row,) = await fabric.pool.fetch("SELECT seq, type, payload FROM thread_events")
    assert (row["seq"], row["type"]) == (seqs[0], "thread.member")
    assert msgspec.json.decode(row["payload"])["change"] == "removed"


async def test_the_outcome_does_not_depend_on_where_batches_end(fabric: Fabric) -> None:
    # Given any history of a few messages, edits (some twice) and deletions
    rng = random.Random(7)
    for _ in range(12):
        thread_id = await fabric.thread("ava")
        events = _history(rng, thread_id)
        deliveries = [
            Delivery(msg_subject(thread_id), seq, encode_event(event), b"", b"", 1, 0, 0)
            for seq, event in enumerate(events, start=1)
        ]
        # When it comes as one batch, and cut into small ones
        outcomes = []
        for size in (len(deliveries), 3, 1):
            async with fabric.pool.acquire() as connection:
                transaction = connection.transaction()
                await transaction.start()
                for start in range(0, len(deliveries), size):
                    await store_events(connection, deliveries[start : start + size], careful=True)
                outcomes.append(
                    [
                        await connection.fetch(
                            "SELECT seq, body, edited_at, deleted_at, changed_seq FROM messages "
                            "WHERE thread_id = $1 ORDER BY seq",
                            thread_id,
                        ),
                        await connection.fetch(
                            "SELECT message_id, version, body FROM message_edits WHERE thread_id = $1 "
                            "ORDER BY message_id, version",
                            thread_id,
                        ),
                        await connection.fetch(
                            "SELECT last_seq, last_message_seq FROM thread_tails WHERE thread_id = $1",
                            thread_id,
                        ),
                    ]
                )
                await transaction.rollback()
        # Then PostgreSQL holds the same
        assert outcomes[0] == outcomes[1] == outcomes[2]


def _history(rng: random.Random, thread_id: ThreadId) -> Sequence[AnyThreadEvent]:
    messages = [new_message(thread_id, "ava", f"m{number}") for number in range(4)]
    events: list[AnyThreadEvent] = list(messages)
    for number in range(10):
        message = rng.choice(messages)
        events.append(deletion(message) if rng.random() < 0.2 else edit(message, f"e{number}"))
        if rng.random() < 0.3:
            events.append(
                rng.choice([event for event in events if not isinstance(event, MessageNew)])
            )
    # Some changes come before their message, as nothing of ours would write them.
    place = rng.randrange(len(events))
    events.insert(place, events.pop(rng.randrange(len(events))))
    return events
