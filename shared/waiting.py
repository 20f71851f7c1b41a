"""Waiting with a bound. Every wait of this system has one."""

import asyncio


async def is_set_within(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for ``event``, at most ``timeout_s`` seconds; return whether it is set.

    ``while not await is_set_within(stop, 5): …`` does something every five seconds until ``stop`` is set.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
