"""Resume on real servers: a client that was away gets everything after its cursor, from any edge, once, in order."""

import time
from typing import Any

import msgspec
import pytest

from edge.outbound import FRAMES_MAX
from shared.access import AccessEntry, Member
from shared.cursors import encode_cursor
from shared.events import (
    AnyThreadEvent,
    MessageDeleted,
    MessageNew,
    MessageUpdated,
    ThreadMember,
    encode_event,
)
from shared.identity import ThreadId, new_id
from shared.provision.streams import consumers, first_seq_of, message_stream
from shared.subjects import ACCESS_BUCKET, msg_subject
from tests.edge.house import Client, Edge, Frame, House, uuid7_at

EVENT_TYPES = (
    "message.new",
    "message.updated",
    "message.deleted",
    "thread.member",
    "thread.caught_up",
)


@pytest.fixture
async def edge(house: House) -> Edge:
    """One edge."""
    return await house.edge()


async def store(house: House, event: AnyThreadEvent) -> int:
    """Put an event into the log as the api does, and return its seq."""
    api = await house.bus("api")
    thread_id = ThreadId(event.thread_id)
    event_id = event.message_id if isinstance(event, MessageNew) else event.event_id
    ack = await api.store(msg_subject(thread_id), encode_event(event), message_id=event_id)
    return ack.seq


def message(thread_id: str, body: str) -> MessageNew:
    return MessageNew(
        message_id=new_id(),
        thread_id=thread_id,
        client_msg_id=new_id(),
        sender_id="ben",
        kind="text",
        body=body,
        attachments=[],
        reply_to=None,
        metadata={"n": 1},
        sent_at="2026-11-24T00:00:00.000Z",
    )


def edit(thread_id: str, message_id: str, body: str) -> MessageUpdated:
    return MessageUpdated(
        thread_id=thread_id,
        event_id=new_id(),
        message_id=message_id,
        body=body,
        edited_at="2026-11-24T01:00:00.000Z",
        editor_id="ben",
    )


def deletion(thread_id: str, message_id: str, **fields: Any) -> MessageDeleted:  # noqa: ANN401
    return MessageDeleted(
        thread_id=thread_id,
        event_id=new_id(),
        message_id=message_id,
        deleted_at="2026-11-24T02:00:00.000Z",
        by="ben",
        **fields,
    )


def membership(thread_id: str, user: str, change: Any) -> ThreadMember:  # noqa: ANN401
    return ThreadMember(
        thread_id=thread_id,
        event_id=new_id(),
        at="2026-11-24T02:00:00.000Z",
        by="ben",
        user_id=user,
        role="member",
        change=change,
    )


async def replayed(client: Client, count: int) -> list[Frame]:
    """Return the next ``count`` events of the thread."""
    return [await client.next(*EVENT_TYPES) for _ in range(count)]


def assert_chained(frames: list[Frame], after: int) -> None:
    """Make sure that these events follow ``after`` and each other without a hole."""
    for frame in frames:
        assert (frame["prev_seq"], frame["seq"] > after) == (after, True), frame
        after = frame["seq"]


@pytest.mark.slow
async def test_away_during_a_thousand_messages_edits_and_deletions(house: House) -> None:
    # Given a client that has seen a message on one edge, and goes
    first, second = await house.edge(), await house.edge()
    thread_id = await house.thread("ava", "ben")
    ava = await house.client(first, "ava")
    seen = await ava.send(thread_id, "seen")
    await ava.socket.close()
    # When there are a thousand messages, some of them edited and some deleted
    messages = [message(thread_id, f"body {number}") for number in range(1_000)]
    seqs = [await store(house, each) for each in messages]
    edits: list[AnyThreadEvent] = [
        edit(thread_id, each.message_id, "edited") for each in messages[::10]
    ]
    deletions: list[AnyThreadEvent] = [
        deletion(thread_id, each.message_id) for each in messages[::20]
    ]
    seqs += [await store(house, change) for change in (*edits, *deletions)]
    # And it comes back to the other edge
    ava = await house.client(second, "ava")
    started = time.monotonic()
    ack = await ava.subscribe(thread_id, after=seen["cursor"])
    frames = await replayed(ava, len(seqs))
    caught_up = await ava.next(*EVENT_TYPES)
    took_s = time.monotonic() - started
    # Then it is sent all of it, once, in order, as it may be seen now
    assert (ack["recovered"], ack["cursor"]) == (True, encode_cursor(thread_id, seqs[-1]))
    assert [frame["seq"] for frame in frames] == seqs
    assert_chained(frames, seen["seq"])
    assert caught_up == {
        "type": "thread.caught_up",
        "thread_id": thread_id,
        "cursor": ack["cursor"],
    }
    for number, frame in enumerate(frames[:1_000]):
        is_deleted, is_edited = number % 20 == 0, number % 10 == 0
        expected = "" if is_deleted else "edited" if is_edited else f"body {number}"
        assert (frame["body"], frame["metadata"]) == (expected, {} if is_deleted else {"n": 1})
        assert (frame["deleted_at"] is not None, frame["edited_at"] is not None) == (
            is_deleted,
            is_edited,
        )
    assert [frame["body"] for frame in frames[1_000:1_100]] == ["", "edited"] * 50
    # And live goes on from there
    sent = await ava.send(thread_id, "back")
    live = await ava.next(*EVENT_TYPES)
    assert (live["prev_seq"], live["seq"]) == (seqs[-1], sent["seq"])
    assert took_s < 5


async def test_a_client_that_reads_slowly_is_not_cut_off_by_its_own_replay(
    house: House, edge: Edge
) -> None:
    # Given four times the outbound queue of missed messages, and a client with a small window
    thread_id = await house.thread("ava", "ben")
    count = FRAMES_MAX * 4
    for number in range(count):
        await store(house, message(thread_id, f"{number} " + "x" * 900))
    ava = await house.client(edge, "ava", receive_bytes=8 * 1024, max_queue=1)
    # When it resumes, does not read for a while, and messages come meanwhile
    ack = await ava.subscribe(thread_id, after="0")
    assert ack["recovered"] is True
    ben = await house.client(edge, "ben")
    for number in range(20):
        await ben.send(thread_id, f"live {number}")
    # Then it gets everything: the past, that it has caught up, the rest
    frames = await replayed(ava, count + 1 + 20)
    assert frames[count]["type"] == "thread.caught_up"
    del frames[count]
    assert_chained(frames, 0)
    assert [frame["body"] for frame in frames[-20:]] == [f"live {n}" for n in range(20)]


async def test_more_than_the_limit_is_not_recovered_and_live_follows(
    house: House, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.replay.EVENTS_MAX", 20)
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    seqs = [await store(house, message(thread_id, f"{number}")) for number in range(21)]
    ack = await ava.subscribe(thread_id, after="0")
    assert (ack["recovered"], ack["cursor"]) == (False, encode_cursor(thread_id, seqs[-1]))
    await ava.silence(*EVENT_TYPES)
    sent = await ava.send(thread_id, "live")
    live = await ava.next(*EVENT_TYPES)
    assert (live["prev_seq"], live["seq"]) == (seqs[-1], sent["seq"])
    # One fewer is within it, at the cursor itself
    ack = await ava.subscribe(thread_id, after=encode_cursor(thread_id, seqs[1]))
    assert ack["recovered"] is True
    frames = await replayed(ava, 20)
    assert_chained(frames, seqs[1])


async def test_a_member_who_joined_late_sees_nothing_of_before(house: House, edge: Edge) -> None:
    # Given a member who may see from the third event on
    thread_id = await house.thread("ben", "ava")
    seqs = [await store(house, message(thread_id, f"{number}")) for number in range(5)]
    await rewrite_access(house, thread_id, {"ben": 0, "ava": seqs[2]})
    ava = await house.client(edge, "ava")
    # When they resume from the start, or from before the join
    for after in ("0", encode_cursor(thread_id, seqs[0])):
        ack = await ava.subscribe(thread_id, after=after)
        assert ack["recovered"] is True
        frames = await replayed(ava, 4)
        # Then the first event is the third, and follows what they named
        assert [frame["seq"] for frame in frames[:3]] == seqs[2:]
        assert frames[0]["prev_seq"] == (0 if after == "0" else seqs[0])
        assert frames[3]["type"] == "thread.caught_up"


async def test_events_for_others_are_passed_over_in_replay_and_live(
    house: House, edge: Edge
) -> None:
    thread_id = await house.thread("ava", "ben")
    first = message(thread_id, "one")
    shown = [await store(house, first)]
    await store(house, deletion(thread_id, first.message_id, visible_to=["ben"]))
    shown.append(await store(house, message(thread_id, "two")))
    ava = await house.client(edge, "ava")
    await ava.subscribe(thread_id, after="0")
    frames = await replayed(ava, 2)
    assert [frame["body"] for frame in frames] == ["one", "two"]
    await ava.next("thread.caught_up")
    await store(house, deletion(thread_id, first.message_id, visible_to=[]))
    shown.append(await store(house, message(thread_id, "three")))
    frames += await replayed(ava, 1)
    assert [frame["seq"] for frame in frames] == shown
    assert_chained(frames, 0)


async def test_reading_ends_exactly_at_the_removal_live_and_in_replay(house: House) -> None:
    # Given a member who is subscribed on one edge
    first, second = await house.edge(), await house.edge()
    thread_id = await house.thread("ben", "ava")
    ava, ben = await house.client(first, "ava"), await house.client(second, "ben")
    await ava.subscribe(thread_id)
    await ben.subscribe(thread_id)
    position = await ava.next("thread.caught_up")
    # When they are removed as the api does it: the entry, (a message that was under way,) the event, a message
    await rewrite_access(house, thread_id, {"ben": 0}, revision=2)
    await store(house, message(thread_id, "under way"))
    removed_at = await store(house, membership(thread_id, "ava", "removed"))
    await store(house, message(thread_id, "among members"))
    # Then the removal is the last they see, on that edge
    frames = await replayed(ava, 2)
    assert [frame["type"] for frame in frames] == ["message.new", "thread.member"]
    assert (frames[1]["seq"], frames[1]["change"]) == (removed_at, "removed")
    await ava.silence()
    assert len(await replayed(ben, 4)) == 4
    # And both edges know them no more
    for client in (ava, await house.client(second, "ava")):
        again = await client.ask("thread.subscribe", thread_id=thread_id, after=position["cursor"])
        assert (again["type"], again["code"]) == ("error", "not_found")


async def test_a_stale_entry_does_not_show_what_came_after_the_removal(
    house: House, edge: Edge
) -> None:
    # Given an edge whose entry still names a member who is gone: only the log knows it
    thread_id = await house.thread("ben", "ava")
    await store(house, message(thread_id, "before"))
    removed_at = await store(house, membership(thread_id, "ava", "left"))
    await store(house, message(thread_id, "after"))
    ava = await house.client(edge, "ava")
    # When they resume from before
    ack = await ava.subscribe(thread_id, after="0")
    # Then they read up to their leaving
    frames = await replayed(ava, 2)
    assert [frame["type"] for frame in frames] == ["message.new", "thread.member"]
    assert ack["cursor"] == frames[1]["cursor"] == encode_cursor(thread_id, removed_at)
    await store(house, message(thread_id, "later"))
    await ava.silence()


async def test_after_the_log_was_begun_anew_only_what_is_whole_counts_as_recovered(
    house: House,
) -> None:
    # Given threads of different age, and a log that was begun anew and holds a message of somebody else
    aged = await house.thread("ava", thread_id=ThreadId(uuid7_at(-3_600)))
    quiet = await house.thread("ava", thread_id=ThreadId(uuid7_at(-3_600)))
    old_seq = await store(house, message(aged, "lost with the log"))
    await begin_log_anew(house, generation=2)
    await store(house, message(await house.thread("ava"), "somebody else's"))
    young = await house.thread("ava", thread_id=ThreadId(uuid7_at(10)))
    edge = await house.edge()
    ava = await house.client(edge, "ava")
    # Then a young thread is whole from the start, an old one is not
    assert (await ava.subscribe(young, after="0"))["recovered"] is True
    new_seq = await store(house, message(aged, "first of the new log"))
    assert new_seq > first_seq_of(2) > old_seq
    for after in ("0", encode_cursor(aged, old_seq)):
        ack = await ava.subscribe(aged, after=after)
        assert (ack["recovered"], ack["cursor"]) == (False, encode_cursor(aged, new_seq))
    # And a thread that the log has nothing of has a position all the same: with it nothing is missed
    ack = await ava.subscribe(quiet)
    await ava.next("thread.caught_up")
    assert ack["cursor"] != "0"
    await ava.subscribe(quiet, after=ack["cursor"])
    await ava.silence("message.new")
    seq = await store(house, message(quiet, "it speaks"))
    live = await ava.next("message.new")
    assert live["seq"] == seq
    again = await ava.subscribe(quiet, after=ack["cursor"])
    assert again["recovered"] is True
    assert (await ava.next("message.new"))["seq"] == seq


async def rewrite_access(
    house: House, thread_id: ThreadId, members: dict[str, int], *, revision: int = 2
) -> None:
    """Write the entry of a thread: its members, and from which seq on each may see."""
    entry = AccessEntry(
        thread_id=thread_id,
        revision=revision,
        kind="group",
        owner_id="ben",
        archived=False,
        members={
            user: Member("member", "2026-01-01T00:00:00.000Z", visible_from)
            for user, visible_from in members.items()
        },
    )
    bus = await house.bus("api")
    await bus.kv_put(ACCESS_BUCKET, thread_id, msgspec.json.encode(entry), expected=None)


async def begin_log_anew(house: House, *, generation: int) -> None:
    """Delete the message stream and make it again, as provisioning does after a loss."""
    bus, settings = await house.bus("provision"), house.settings()
    await bus.api("STREAM.DELETE.MSG_0")
    await bus.api("STREAM.CREATE.MSG_0", message_stream(settings, 0, generation))
    for consumer in consumers(settings):
        if consumer.stream == "MSG_0":
            wanted = {"stream_name": "MSG_0", "config": consumer.config, "action": "create"}
            await bus.api(f"CONSUMER.CREATE.MSG_0.{consumer.durable}", wanted)
