"""Repair on real servers: live events that are lost on the way, the last one too; a log that stops or is begun anew."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from edge import fanout, outbound
from shared.bus import Bus, Callback, Subscription
from shared.cursors import encode_cursor
from shared.events import encode_event
from shared.identity import ThreadId, UserId
from shared.protocol import LastMessage, ThreadActivity
from shared.subjects import msg_subject, user_subject
from tests.edge.house import Client, Edge, Frame, House
from tests.edge.test_replay import (
    assert_chained,
    begin_log_anew,
    membership,
    message,
    rewrite_access,
    store,
)
from tests.support.eventually import eventually

EVENT = "message.new"


class Loss:
    """Drops messages on their way into an edge: those of ``kind`` that ``is_lost`` names by their headers."""

    def __init__(self) -> None:
        self.kind = b"live."
        self.is_lost: Callable[[bytes], bool] = lambda _headers: False
        self.lost = 0

    def wrap(self, callback: Callback) -> Callback:
        def receive(subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
            if subject.startswith(self.kind) and self.is_lost(headers):
                self.lost += 1
            else:
                callback(subject, reply, headers, payload)

        return receive


@pytest.fixture
def loss(monkeypatch: pytest.MonkeyPatch) -> Loss:
    """What is lost between the bus and the edges of this test."""
    loss = Loss()
    subscribe = Bus.subscribe

    def lossy(bus: Bus, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        return subscribe(bus, subject, loss.wrap(callback), queue=queue)

    monkeypatch.setattr(Bus, "subscribe", lossy)
    return loss


@pytest.fixture
async def edge(loss: Loss, house: House) -> Edge:
    """One edge, to which events may be lost."""
    del loss
    return await house.edge()


async def subscribed(house: House, edge: Edge, thread_id: ThreadId, user: str = "ava") -> Client:
    client = await house.client(edge, user)
    await client.subscribe(thread_id)
    await client.next("thread.caught_up")
    return client


async def received(client: Client, count: int) -> list[Frame]:
    return [await client.next(EVENT) for _ in range(count)]


async def under_loss(house: House, edge: Edge, loss: Loss) -> tuple[list[Frame], list[int]]:
    """Send 1,000 messages into ten threads while 1 % of the live events is lost; return what one client saw."""
    chance = random.Random(3)
    threads = [await house.thread("ava", "ben") for _ in range(10)]
    ava = await house.client(edge, "ava", max_queue=None)  # Reads on while the test stores.
    for thread_id in threads:
        await ava.subscribe(thread_id)
    loss.is_lost = lambda _headers: chance.random() < 0.01
    stored = [await store(house, message(threads[n % 10], f"{n}")) for n in range(1_000)]
    loss.is_lost = lambda _headers: False
    # One more for each thread, or a lost last event would be another test.
    stored += [await store(house, message(thread_id, "end")) for thread_id in threads]
    frames: list[Frame] = []
    ends = 0
    while ends < len(threads):
        frame = await ava.next(EVENT)
        frames.append(frame)
        ends += frame["body"] == "end"
    return frames, stored


@pytest.mark.slow
async def test_dropped_live_events_are_repaired_once_and_in_order(
    house: House, edge: Edge, loss: Loss
) -> None:
    # When one in a hundred live events is lost
    frames, stored = await under_loss(house, edge, loss)
    assert loss.lost > 3
    # Then the client has seen them all, those of each thread in order, none twice
    assert sorted(frame["seq"] for frame in frames) == stored
    for thread_id in {frame["thread_id"] for frame in frames}:
        chain = [frame for frame in frames if frame["thread_id"] == thread_id]
        assert_chained(chain, 0)
    assert await edge.metric("messaging_edge_repairs_total") >= 3


@pytest.mark.slow
async def test_without_the_gap_check_the_same_loss_shows(
    house: House, edge: Edge, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The twin of the test before: what it proves is the gap check's work.
    receive = fanout.ThreadFeed.receive

    def blind(feed: fanout.ThreadFeed, event: fanout.Event) -> int | fanout.Verdict:
        return receive(feed, event._replace(before=0))

    monkeypatch.setattr(fanout.ThreadFeed, "receive", blind)
    frames, stored = await under_loss(house, edge, loss)
    assert loss.lost > 3
    assert sorted(frame["seq"] for frame in frames) != stored


async def lose_the_last(house: House, thread_id: ThreadId, loss: Loss) -> int:
    """Store an event that no edge hears of."""
    loss.is_lost = lambda _headers: True
    lost = loss.lost
    seq = await store(house, message(thread_id, "lost on its way"))
    await eventually(lambda: loss.lost > lost)
    loss.is_lost = lambda _headers: False
    return seq


async def test_the_feed_of_a_member_shows_a_lost_last_event(
    house: House, edge: Edge, loss: Loss
) -> None:
    # Given a last event that was lost
    thread_id = await house.thread("ava", "ben")
    ava = await subscribed(house, edge, thread_id)
    await house.client(edge, "ben")
    started = time.monotonic()
    seq = await lose_the_last(house, thread_id, loss)
    # When the persister tells another member's feed how far the thread goes
    activity = ThreadActivity(
        thread_id=thread_id,
        cursor=encode_cursor(thread_id, seq),
        unread=1,
        unread_total=1,
        last_message=LastMessage("m", "ava", "lost", "2026-11-24T00:00:00.000Z"),
        me={},
    )
    api = await house.bus("api")
    api.publish(user_subject(UserId("ben")), msgspec.json.encode(activity))
    # Then whoever is subscribed gets it
    assert (await ava.next(EVENT))["seq"] == seq
    assert time.monotonic() - started < 3


async def test_the_audit_shows_a_lost_last_event(
    house: House, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.tails.AUDIT_S", 1.0)
    edge = await house.edge()
    threads = [await house.thread("ava") for _ in range(20)]
    ava = await house.client(edge, "ava")
    for thread_id in threads:
        await ava.subscribe(thread_id)
    started = time.monotonic()
    seqs = {await lose_the_last(house, thread_id, loss) for thread_id in threads}
    assert {frame["seq"] for frame in await received(ava, 20)} == seqs
    assert time.monotonic() - started < 3


@pytest.mark.slow
async def test_a_restart_of_nats_loses_nothing_and_says_that_activity_may_be_missing(
    house: House, edge: Edge, loss: Loss
) -> None:
    # Given a subscribed client, an idle one, and a last event that was lost just before NATS is killed
    thread_id = await house.thread("ava", "ben")
    ava, ben = await subscribed(house, edge, thread_id), await house.client(edge, "ben")
    first = await ava.send(thread_id, "before")
    assert (await ava.next(EVENT))["seq"] == first["seq"]
    seq = await lose_the_last(house, thread_id, loss)
    await asyncio.to_thread(house.nats.restart, kill=True)
    started = time.monotonic()
    # Then both are told to ask for what they may have missed, and the lost event comes
    assert (await ben.next("sync.required")) == {"type": "sync.required", "reason": "reconnect"}
    await ava.next("sync.required")
    frame = await ava.next(EVENT)
    assert (frame["prev_seq"], frame["seq"]) == (first["seq"], seq)
    assert time.monotonic() - started < 3
    # And the thread goes on
    sent = await ava.send(thread_id, "after")
    frame = await ava.next(EVENT)
    assert (frame["prev_seq"], frame["seq"]) == (seq, sent["seq"])


async def test_a_log_that_is_begun_anew_resets_and_drops_nothing(house: House, edge: Edge) -> None:
    # Given a thread with events, and one without any
    used, unused = await house.thread("ava", "ben"), await house.thread("ava", "ben")
    ava = await subscribed(house, edge, used)
    await ava.subscribe(unused)
    old = await store(house, message(used, "of the first life"))
    assert (await ava.next(EVENT))["seq"] == old
    # When the stream is deleted and made again
    await begin_log_anew(house, generation=2)
    first = await store(house, message(used, "of the second life"))
    await store(house, message(unused, "goes on"))
    # Then the one is reset, as nobody knows what was between; the other one goes on
    reset = await ava.next("thread.reset")
    assert reset == {"type": "thread.reset", "thread_id": used, "reason": "generation"}
    assert (await ava.next(EVENT))["body"] == "goes on"
    # And after a new subscription everything comes again
    ack = await ava.subscribe(used, after=encode_cursor(used, old))
    assert (ack["recovered"], ack["cursor"]) == (False, encode_cursor(used, first))
    second = await store(house, message(used, "and on"))
    frame = await ava.next(EVENT)
    assert (frame["prev_seq"], frame["seq"]) == (first, second)


async def test_the_audit_notices_a_log_that_was_begun_anew_before_its_first_event(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.tails.AUDIT_S", 0.5)
    edge = await house.edge()
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    await ava.subscribe(thread_id)
    await store(house, message(thread_id, "of the first life"))
    await ava.next(EVENT)
    await begin_log_anew(house, generation=2)
    assert (await ava.next("thread.reset"))["reason"] == "generation"


async def test_an_entry_that_was_not_heard_of_is_forgotten_with_the_removal(
    house: House, edge: Edge, loss: Loss
) -> None:
    # Given an edge that has not heard of the entry without ava
    thread_id = await house.thread("ben", "ava")
    ava = await subscribed(house, edge, thread_id)
    loss.kind, loss.is_lost = b"inv.access.", lambda _headers: True
    await rewrite_access(house, thread_id, {"ben": 0})
    await eventually(lambda: loss.lost)
    # When the removal comes
    await store(house, membership(thread_id, "ava", "removed"))
    assert (await ava.next("thread.member"))["change"] == "removed"
    # Then the edge reads the entry anew
    again = await ava.ask("thread.subscribe", thread_id=thread_id)
    assert (again["type"], again["code"]) == ("error", "not_found")


async def test_a_flood_during_a_repair_is_whole_and_in_order(
    house: House, edge: Edge, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given room for the whole flood: the client shares this loop, and being slow is not what is tested here
    monkeypatch.setattr(outbound, "FRAMES_MAX", 100_000)
    monkeypatch.setattr(outbound, "BYTES_MAX", 64 * 1024 * 1024)
    # And more events than a thread holds, the first of which are lost
    thread_id = await house.thread("ava")
    ava = await subscribed(house, edge, thread_id)
    api = await house.bus("api")
    loss.is_lost = lambda _headers: loss.lost < 50
    stores: list[Any] = []
    for number in range(fanout.HELD_MAX + 200):
        payload = encode_event(message(thread_id, f"{number}"))
        stores.append(api.store(msg_subject(thread_id), payload, timeout_s=20))
    await asyncio.gather(*stores)
    frames = await received(ava, fanout.HELD_MAX + 200)
    assert_chained(frames, 0)
