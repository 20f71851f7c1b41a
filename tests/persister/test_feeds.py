"""After a message is stored: its members' lists move, platform services hear of it, nobody else does."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import pytest

from persister.announcements import Member
from persister.feeds import Feeds
from shared.bus import Bus, PublishTimeoutError, header_value
from shared.cursors import encode_cursor
from shared.identity import ThreadId, new_id
from shared.outbox import OutboxRow
from shared.protocol import UNREAD_MAX
from tests.support.eventually import eventually, eventually_passes
from tests.support.fabric import Fabric, new_message


class Listener:
    """Everything that sessions and platform services would hear."""

    def __init__(self) -> None:
        self.frames: list[tuple[str, dict[str, Any]]] = []
        self.events: list[dict[str, Any]] = []
        self.headers: list[bytes] = []

    def on_frame(self, subject: bytes, _reply: bytes, _headers: bytes, payload: bytes) -> None:
        self.frames.append((subject.decode().removeprefix("user."), msgspec.json.decode(payload)))

    def on_event(self, subject: bytes, _reply: bytes, headers: bytes, payload: bytes) -> None:
        event = msgspec.json.decode(payload)
        assert event["type"] == subject.decode()
        self.events.append(event)
        self.headers.append(headers)

    def last(self, user: str, thread_id: ThreadId) -> dict[str, Any]:
        """Return the last frame that a user got about a thread; empty when none."""
        of_user = [
            frame for to, frame in self.frames if to == user and frame.get("thread_id") == thread_id
        ]
        return of_user[-1] if of_user else {}


@pytest.fixture
async def listener(fabric: Fabric) -> AsyncIterator[Listener]:
    """Listens to every user's feed and to all domain events."""
    made = Listener()
    edge, platform = await fabric.bus("edge"), await fabric.bus("platform")
    edge.subscribe("user.*", made.on_frame)
    platform.subscribe("messaging.>", made.on_event)
    await edge.flush()
    await platform.flush()
    yield made
    await edge.close()
    await platform.close()


async def settled(fabric: Fabric) -> None:
    """Wait until nothing is left to publish."""

    async def outbox_is_empty() -> None:
        assert await fabric.count("persister_outbox") == 0

    await eventually_passes(outbox_is_empty, within_s=20)


async def told(listener: Listener, thread_id: ThreadId, seq: int) -> None:
    """Wait until ben's sessions know that the thread has come to ``seq``."""
    cursor = encode_cursor(thread_id, seq)
    await eventually(lambda: listener.last("ben", thread_id).get("cursor") == cursor)


async def stored_events(fabric: Fabric) -> list[int]:
    """Return the seqs that the events in stream EVENTS name, in the stream's order."""
    provision = await fabric.bus("provision")
    info = await provision.api("STREAM.INFO.EVENTS")
    seqs = []
    for position in range(info["state"]["first_seq"], info["state"]["last_seq"] + 1):
        stored = await provision.get_seq("EVENTS", position)
        assert stored is not None
        seqs.append(msgspec.json.decode(stored.payload)["data"]["seq"])
    await provision.close()
    return seqs


# ---------------------------------------------------------------------- thread.activity


async def test_every_member_hears_of_a_message_the_sender_too_and_nobody_else(
    fabric: Fabric, listener: Listener
) -> None:
    # Given a thread of three, one of whom was removed, and a user of another thread
    thread_id = await fabric.thread("ava", "ben", "gone")
    await fabric.thread("stranger", "ben")
    await fabric.pool.execute("UPDATE thread_members SET removed_at = now() WHERE user_id = 'gone'")
    # When a long message is stored
    body = "ä" * 150
    message = new_message(thread_id, "ava", body)
    async with fabric.persister():
        (seq,) = await fabric.store([message])
        await fabric.reached(seq)
        await settled(fabric)
        await eventually(lambda: listener.last("ben", thread_id))
        await eventually(lambda: listener.last("ava", thread_id))
    # Then each present member got the state of the thread, with their own counts
    assert listener.last("ben", thread_id) == {
        "type": "thread.activity",
        "thread_id": thread_id,
        "cursor": encode_cursor(thread_id, seq),
        "unread": 1,
        "unread_total": 1,
        "last_message": {
            "message_id": message.message_id,
            "sender_id": "ava",
            "preview": "ä" * 100,
            "sent_at": message.sent_at,
        },
        "me": {},
    }
    assert listener.last("ava", thread_id)["unread"] == 0
    # And nobody else heard anything
    assert {user for user, _ in listener.frames} == {"ava", "ben"}


async def test_who_leaves_while_the_frames_are_on_their_way_ends_without_the_thread(
    fabric: Fabric, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a member who is removed after the members were read and before they are told
    thread_id = await fabric.thread("ava", "ben")
    count_members = Feeds._count_members

    async def removed_meanwhile(
        feeds: Feeds, threads: Sequence[str], members: Mapping[str, Sequence[Member]]
    ) -> dict[str, int]:
        await fabric.pool.execute(
            "UPDATE thread_members SET removed_at = now() WHERE user_id = 'ben'"
        )
        return await count_members(feeds, threads, members)

    monkeypatch.setattr(Feeds, "_count_members", removed_meanwhile)
    # When a message is told
    async with fabric.persister():
        (seq,) = await fabric.send(thread_id, "ava", "hello")
        await fabric.reached(seq)
        await settled(fabric)
        # Then the last that they hear of the thread is that it is theirs no longer
        await eventually(lambda: listener.last("ben", thread_id).get("me") == {"removed": True})
    assert listener.last("ben", thread_id) == {
        "type": "thread.activity",
        "thread_id": thread_id,
        "cursor": encode_cursor(thread_id, seq),
        "unread": 0,
        "unread_total": 0,
        "last_message": None,
        "me": {"removed": True},
    }
    # And for those who stay nothing changed
    assert listener.last("ava", thread_id)["me"] == {}


async def test_unread_counts_only_visible_messages_of_others(
    fabric: Fabric, listener: Listener
) -> None:
    # Given 2 messages of ava, one of them deleted, a system message, and one of ben's own
    thread_id = await fabric.thread("ava", "ben", "cid")
    async with fabric.persister(relays=False):
        first = await fabric.store(
            [
                new_message(thread_id, "ben", "own"),
                new_message(thread_id, "ava", "deleted"),
                new_message(thread_id, "ava", "joined", kind="system"),
            ]
        )
        await fabric.reached(first[-1])
        await fabric.pool.execute("UPDATE messages SET deleted_at = now() WHERE body = 'deleted'")
        await fabric.pool.execute(
            "UPDATE thread_members SET visible_from = $1 WHERE user_id = 'cid'", first[-1] + 2
        )
        # When two more arrive
        await fabric.send(thread_id, "ava", "before cid may see", "counted by all")
        await fabric.reached(first[-1] + 2)
    async with fabric.persister():
        await settled(fabric)
        await eventually(lambda: listener.last("cid", thread_id))
    # Then ben has not read two of the five, and cid one: the others were before their time
    assert listener.last("ben", thread_id)["unread"] == 2
    assert listener.last("cid", thread_id)["unread"] == 1
    assert listener.last("ava", thread_id)["unread"] == 0


async def test_a_member_who_may_not_see_the_last_message_gets_no_preview(
    fabric: Fabric, listener: Listener
) -> None:
    thread_id = await fabric.thread("ava", "late")
    await fabric.pool.execute(
        "UPDATE thread_members SET visible_from = $1 WHERE user_id = 'late'", 2**50
    )
    async with fabric.persister():
        await fabric.send(thread_id, "ava", "secret")
        await eventually(lambda: listener.last("late", thread_id))
    assert listener.last("late", thread_id)["last_message"] is None
    assert listener.last("late", thread_id)["unread"] == 0
    await eventually(lambda: listener.events)
    assert listener.events[0]["data"]["recipients"] == []


async def test_unread_is_exact_below_a_thousand_and_stops_there(
    fabric: Fabric, listener: Listener
) -> None:
    # Given 999 unread messages
    thread_id = await fabric.thread("ava", "ben")
    async with fabric.persister():
        seqs = await fabric.send(thread_id, "ava", *["x"] * (UNREAD_MAX - 1))
        await fabric.reached(seqs[-1])
        await eventually(
            lambda: listener.last("ben", thread_id).get("unread") == UNREAD_MAX - 1, within_s=10
        )
        # When more arrive, then the count says 1,000, and stays there
        for number in range(3):
            (seq,) = await fabric.send(thread_id, "ava", "more")
            await told(listener, thread_id, seq)
            assert listener.last("ben", thread_id)["unread"] == UNREAD_MAX, number


async def test_the_total_is_the_sum_over_all_threads(fabric: Fabric, listener: Listener) -> None:
    # Given three threads of ben, of which they left one and have read another
    one, two, left = [await fabric.thread("ava", "ben") for _ in range(3)]
    async with fabric.persister():
        await fabric.send(one, "ava", "a", "b")
        await fabric.send(left, "ava", "c")
        await fabric.send(two, "ava", "d")
        (seq,) = await fabric.send(two, "ben", "read, because answered")
        await fabric.reached(seq)
        await settled(fabric)
        await fabric.pool.execute(
            "UPDATE thread_members SET removed_at = now() WHERE user_id = 'ben' AND thread_id = $1",
            left,
        )
        # When the next message comes
        await fabric.send(two, "ava", "e")
        await eventually(lambda: listener.last("ben", two).get("unread") == 1)
    # Then the badge is what the list adds up to
    assert listener.last("ben", two)["unread_total"] == 3


async def test_many_messages_of_a_thread_become_few_frames(
    fabric: Fabric, listener: Listener
) -> None:
    # Given 400 messages that a persister finds at once
    thread_id = await fabric.thread("ava", "ben")
    seqs = await fabric.send(thread_id, "ava", *["x"] * 400)
    async with fabric.persister():
        # When it is done
        await fabric.reached(seqs[-1])
        await settled(fabric)
        await told(listener, thread_id, seqs[-1])
    # Then ben's sessions were told a few times, of the newest state
    assert len([user for user, _ in listener.frames if user == "ben"]) < 20
    assert listener.last("ben", thread_id)["unread"] == 400


async def test_a_thread_of_more_than_500_members_has_no_feed_and_a_count_of_recipients(
    fabric: Fabric, listener: Listener
) -> None:
    big = await fabric.thread(*(f"user{number}" for number in range(503)))
    small = await fabric.thread("ava", "ben")
    async with fabric.persister():
        await fabric.send(big, "user0", "to all")
        await fabric.send(small, "ava", "to ben")
        await eventually(lambda: listener.last("ben", small))
        await eventually(lambda: len(listener.events) == 2)
    assert not listener.last("user1", big)
    data = listener.events[0]["data"]
    assert data["recipient_count"] == 502
    assert "recipients" not in data


# ---------------------------------------------------------------------- messaging.message.sent


async def test_a_message_is_told_to_platform_services_without_its_body(
    fabric: Fabric, listener: Listener
) -> None:
    # Given a message with an attachment
    thread_id = await fabric.thread("ava", "ben", "cid")
    clip = {"kind": "clip", "clip_id": new_id()}
    message = new_message(thread_id, "ben", "top secret", attachments=[clip])
    # When it is stored
    async with fabric.persister():
        (seq,) = await fabric.store([message])
        await eventually(lambda: listener.events)
    # Then the event is a CloudEvent of the documented shape
    (event,) = listener.events
    assert event == {
        "specversion": "1.0",
        "id": f"{message.message_id}.sent",
        "source": "/lilith/persister",
        "type": "messaging.message.sent",
        "subject": thread_id,
        "time": message.sent_at,
        "datacontenttype": "application/json",
        "data": {
            "message_id": message.message_id,
            "thread_id": thread_id,
            "sender_id": "ben",
            "recipients": ["ava", "cid"],
            "seq": seq,
            "sent_at": message.sent_at,
            "kind": "text",
            "attachments": [clip],
        },
    }
    (headers,) = listener.headers
    assert header_value(headers, b"content-type") == b"application/cloudevents+json"
    assert header_value(headers, b"Nats-Msg-Id") == event["id"].encode()
    assert "top secret" not in msgspec.json.encode(listener.events).decode()


async def test_events_keep_the_order_of_the_log(fabric: Fabric, listener: Listener) -> None:
    thread_id = await fabric.thread("ava", "ben")
    seqs = await fabric.send(thread_id, "ava", *map(str, range(1_200)))
    async with fabric.persister():
        await fabric.reached(seqs[-1])
        await eventually(lambda: len(listener.events) == 1_200, within_s=20)
    assert [event["data"]["seq"] for event in listener.events] == seqs


# ---------------------------------------------------------------------- until published


async def test_what_a_killed_persister_left_is_published_by_the_next(
    fabric: Fabric, listener: Listener
) -> None:
    # Given a persister that committed and died before it told anybody
    thread_id = await fabric.thread("ava", "ben")
    seqs = await fabric.send(thread_id, "ava", "one", "two")
    persister = await fabric.start_persister(relays=False)
    await fabric.reached(seqs[-1])
    await persister.die()
    assert await fabric.count("persister_outbox") == 2
    assert not listener.events
    # When the next one starts
    async with fabric.persister():
        await settled(fabric)
    # Then both events and the feed are out
    await eventually(lambda: len(listener.events) == 2)
    await eventually(lambda: listener.last("ben", thread_id).get("unread") == 2)


async def test_an_event_that_was_published_before_the_crash_is_stored_once(
    fabric: Fabric,
) -> None:
    # Given rows that were published, by a process that died before it deleted them
    thread_id = await fabric.thread("ava", "ben")
    seqs = await fabric.send(thread_id, "ava", "one", "two", "three")
    async with fabric.persister(relays=False) as persister:
        await fabric.reached(seqs[-1])
        feeds = Feeds(persister.pool, persister.bus)
        rows = await fabric.pool.fetch(
            "SELECT id, kind, subject, message_id, payload FROM persister_outbox ORDER BY id"
        )
        await feeds.publish([OutboxRow(*row) for row in rows[:2]])
    # When its successor publishes all of them
    async with fabric.persister():
        await settled(fabric)
    # Then the stream has each once, in order
    assert await stored_events(fabric) == seqs


async def test_an_unknown_outcome_of_the_batch_is_repeated_one_by_one(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a batch that was stored although its acknowledgement never came
    honest = Bus.store_batch

    async def deaf(bus: Bus, messages: Sequence[Any], *, timeout_s: float) -> Any:  # noqa: ANN401
        await honest(bus, messages, timeout_s=timeout_s)
        if messages[0].subject.startswith("messaging."):
            raise PublishTimeoutError("messaging.message.sent", waited_s=timeout_s)

    thread_id = await fabric.thread("ava", "ben")
    seqs = await fabric.send(thread_id, "ava", "one", "two", "three")
    monkeypatch.setattr(Bus, "store_batch", deaf)
    # When the persister goes on
    async with fabric.persister():
        await fabric.reached(seqs[-1])
        await settled(fabric)
    # Then nothing is doubled
    assert await stored_events(fabric) == seqs


async def test_feeds_wait_for_nats_and_messages_do_not(fabric: Fabric) -> None:
    # Given a persister that stores, while its events cannot be published
    thread_id = await fabric.thread("ava", "ben")
    provision = await fabric.bus("provision")
    info = await provision.api("STREAM.INFO.EVENTS")
    await provision.api("STREAM.DELETE.EVENTS")
    async with fabric.persister() as persister:
        seqs = await fabric.send(thread_id, "ava", "stored", "all the same")
        await fabric.reached(seqs[-1])
        assert await fabric.count("persister_outbox") == 2
        await eventually(lambda: persister.metrics.outbox.failures._value.get() > 0, within_s=10)
        # When the stream is there again
        await provision.api("STREAM.CREATE.EVENTS", info["config"])
        # Then they are published
        await settled(fabric)
    await provision.close()
    assert await stored_events(fabric) == seqs
    assert await fabric.bodies(thread_id) == ["stored", "all the same"]
