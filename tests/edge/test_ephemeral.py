"""Typing dots and thread activity: what passes, to whom, how often."""

import asyncio
import json
import time

import pytest

from edge import typists
from shared.identity import new_id
from shared.protocol import TYPING_REFRESH_S
from shared.subjects import user_subject
from tests.edge.house import Client, Edge, House


@pytest.fixture
async def edge(house: House) -> Edge:
    """One edge."""
    return await house.edge()


async def test_typing_reaches_subscribed_others_on_every_edge_and_never_the_typist(
    house: House, edge: Edge
) -> None:
    # Given a typist with two devices, a reader elsewhere, and one who has not subscribed
    thread_id = await house.thread("ava", "ben", "cleo")
    ava, ava_too = await house.client(edge, "ava"), await house.client(edge, "ava")
    ben = await house.client(await house.edge(), "ben")
    cleo = await house.client(edge, "cleo")
    for client in (ava, ava_too, ben):
        await client.subscribe(thread_id)
    # When ava types and stops
    assert (await ava.ask("typing.start", thread_id=thread_id))["type"] == "ack"
    active = await ben.next("typing.active")
    assert (await ava.ask("typing.stop", thread_id=thread_id))["type"] == "ack"
    stopped = await ben.next("typing.active")
    # Then only ben saw it
    assert active == {
        "type": "typing.active",
        "thread_id": thread_id,
        "user_id": "ava",
        "active": True,
        "expires_in_ms": 6_000,
    }
    assert stopped == {**active, "active": False}
    for client in (ava, ava_too, cleo):
        await client.silence("typing.active", for_s=0.1)


async def test_a_refresh_passes_at_most_every_three_seconds(
    house: House, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an edge for which a second is three
    assert TYPING_REFRESH_S == 3.0
    monkeypatch.setattr(typists, "TYPING_REFRESH_S", 1.0)
    thread_id = await house.thread("ava", "ben")
    ava, ben = await house.client(edge, "ava"), await house.client(edge, "ben")
    await ben.subscribe(thread_id)
    seen = []
    started = time.monotonic()
    while time.monotonic() - started < 1.5:
        await ava.ask("typing.start", thread_id=thread_id)
        await asyncio.sleep(0.1)
    while True:
        try:
            seen.append(await ben.next("typing.active", within_s=0.2))
        except TimeoutError:
            break
    assert len(seen) == 2


async def test_a_message_ends_the_dot_so_the_next_start_is_news(house: House, edge: Edge) -> None:
    thread_id = await house.thread("ava", "ben")
    ava, ben = await house.client(edge, "ava"), await house.client(edge, "ben")
    await ben.subscribe(thread_id)
    await ava.ask("typing.start", thread_id=thread_id)
    await ava.send(thread_id)
    await ava.ask("typing.start", thread_id=thread_id)
    for _ in range(2):
        assert (await ben.next("typing.active"))["active"] is True


async def test_typing_is_dropped_above_a_hundred_members(house: House, edge: Edge) -> None:
    for count, shown in ((100, True), (101, False)):
        thread_id = await house.thread(*(f"u{number}" for number in range(count)))
        typist, reader = await house.client(edge, "u0"), await house.client(edge, "u1")
        await reader.subscribe(thread_id)
        assert (await typist.ask("typing.start", thread_id=thread_id))["type"] == "ack"
        if shown:
            await reader.next("typing.active")
        else:
            await reader.silence("typing.active")


async def test_typing_that_is_switched_off_says_so(house: House) -> None:
    edge = await house.edge(messaging_enable_typing_indicators=False)
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    assert (await ava.ask("typing.start", thread_id=thread_id))["code"] == "feature_disabled"


async def feed(house: House, user: str, **frame: object) -> None:
    """Publish on a user's feed, as the persister does."""
    bus = await house.bus("persister")
    bus.publish(user_subject(user), json.dumps(frame).encode())  # type: ignore[arg-type]
    await bus.flush()


async def test_activity_reaches_every_session_of_its_user_and_nobody_else(
    house: House, edge: Edge
) -> None:
    phone, laptop = await house.client(edge, "ava"), await house.client(await house.edge(), "ava")
    ben = await house.client(edge, "ben")
    await feed(house, "ava", type="thread.activity", thread_id=new_id(), unread=1)
    await feed(house, "ava", type="thread.created", thread={"thread_id": "x"})
    for client in (phone, laptop):
        assert (await client.next())["unread"] == 1
        assert (await client.next())["type"] == "thread.created"
    await ben.silence()


async def test_activity_comes_once_a_second_and_the_latest_wins(house: House, edge: Edge) -> None:
    # Given a busy thread and a quiet one
    busy, quiet = new_id(), new_id()
    ava = await house.client(edge, "ava")
    started = time.monotonic()
    for number in range(30):
        await feed(house, "ava", type="thread.activity", thread_id=busy, unread=number)
        await asyncio.sleep(0.05)
    await feed(house, "ava", type="thread.activity", thread_id=quiet, unread=0)
    # Then the quiet one was not held up, and the busy one came about once a second, the last state in the end
    unread: list[int] = []
    while not unread or unread[-1] != 29:
        frame = await ava.next("thread.activity")
        if frame["thread_id"] == busy:
            unread.append(frame["unread"])
    assert unread[0] == 0
    assert 3 <= len(unread) <= 2 + time.monotonic() - started
    await ava.silence("thread.activity", for_s=1.2)


async def test_what_nobody_can_read_on_a_feed_is_dropped(house: House, edge: Edge) -> None:
    ava = await house.client(edge, "ava")
    bus = await house.bus("persister")
    bus.publish(user_subject("ava"), b"rubbish")  # type: ignore[arg-type]
    await feed(house, "ava", type="thread.activity", thread_id=new_id(), unread=1)
    assert (await ava.next())["unread"] == 1


async def test_the_last_session_of_a_user_ends_listening(house: House, edge: Edge) -> None:
    first, second = await house.client(edge, "ava"), await house.client(edge, "ava")
    await leave(house, edge, first, 1)
    await feed(house, "ava", type="thread.activity", thread_id=new_id(), unread=1)
    assert (await second.next())["unread"] == 1
    await leave(house, edge, second, 0)
    await feed(house, "ava", type="thread.activity", thread_id=new_id(), unread=2)
    await asyncio.sleep(0.1)
    assert await edge.metric('messaging_edge_events_in_total{kind="user"}') == 1


async def leave(house: House, edge: Edge, client: Client, left: int) -> None:
    await client.socket.close()

    async def is_gone() -> bool:
        return await edge.metric("messaging_edge_sessions") == left

    await house.eventually(is_gone)
