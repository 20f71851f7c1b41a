"""The queue of events: bounded, and it says when it has room again."""

import asyncio

import pytest

from lilith_client.errors import ClosedError
from lilith_client.inbox import OWN_EVENTS_MAX, Inbox
from lilith_client.objects import Event


async def test_room_is_told_once_when_a_full_queue_is_half_empty() -> None:
    # Given a full queue of four, noticed by the reader of the socket
    inbox = Inbox(4, None)
    told: list[int] = []
    inbox.on_room = lambda: told.append(1)
    for number in range(4):
        inbox.put(Event(f"{number}", {}))
    assert not inbox.has_room
    # When the program takes events
    await inbox.get()
    assert told == [], "not at the first free place, or every event would cost a subscription"
    assert (await inbox.get()).type == "1"
    # Then it is told once
    assert told == [1]
    await inbox.get()
    assert told == [1]


async def test_the_clients_own_events_cannot_fill_the_memory() -> None:
    inbox = Inbox(2, None)
    for number in range(10_000):
        inbox.put(Event(f"{number}", {}))
    inbox.end(ClosedError())
    for _ in range(2 + OWN_EVENTS_MAX):
        await inbox.get()
    with pytest.raises(ClosedError):
        await inbox.get()


async def test_a_writer_waits_for_room() -> None:
    inbox = Inbox(1, None)
    inbox.put(Event("a", {}))
    waiting = asyncio.create_task(inbox.wait_for_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await inbox.get()
    await asyncio.wait_for(waiting, 1.0)


async def test_a_callback_takes_every_event_at_once() -> None:
    taken: list[str] = []
    inbox = Inbox(1, lambda event: taken.append(event.type))
    for name in "abc":
        assert inbox.has_room
        inbox.put(Event(name, {}))
    assert taken == ["a", "b", "c"]
