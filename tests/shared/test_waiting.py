"""The one bounded wait."""

import asyncio

from shared.waiting import is_set_within


async def test_an_event_that_comes_in_time_is_told() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await is_set_within(event, 5)


async def test_one_that_does_not_come_ends_the_wait() -> None:
    assert not await is_set_within(asyncio.Event(), 0.01)


async def test_one_that_is_set_already_is_told_even_without_time() -> None:
    event = asyncio.Event()
    event.set()
    assert await is_set_within(event, 0)
