"""One who does not read, among two hundred who do: it is closed, and they do not notice."""

import asyncio
import time
from typing import Final

import httpx
import pytest

from lilith_client import Client
from tests.acceptance.platform import Platform
from tests.acceptance.wire import Wire, stamp

USERS: Final = 25
SESSIONS_EACH: Final = 8
PAIRS: Final = 3
PAIRS_MAX: Final = 6
"""A busy machine may need as many again to show a round without noise."""
ROUND_S: Final = 5.0
WARM_UP_S: Final = 1.0
SETTLE_S: Final = 0.3
PER_S: Final = 25
BODY_CHARS: Final = 4_000
"""Large, so that what nobody reads fills the kernel's buffers and the edge's queue within a round."""
SLOWER_MAX: Final = 1.2
_CLOSED_AS_SLOW: Final = 'messaging_edge_closes_total{code="4408"}'


async def talk(client: Client, thread_id: str, *, for_s: float) -> None:
    """Send stamped messages at a steady rate, and leave them a moment to arrive."""
    began = time.monotonic()
    sending = []
    for number in range(round(PER_S * for_s)):
        await asyncio.sleep(max(0.0, began + number / PER_S - time.monotonic()))
        sending.append(asyncio.create_task(client.send(thread_id, stamp().ljust(BODY_CHARS, "x"))))
    await asyncio.gather(*sending)
    await asyncio.sleep(SETTLE_S)


async def round_p99_ms(client: Client, thread_id: str, wires: list[Wire]) -> float:
    """Return what 99 of 100 deliveries of one round took at most."""
    for wire in wires:
        wire.delays.clear()
    await talk(client, thread_id, for_s=ROUND_S)
    delays = sorted(delay for wire in wires for delay in wire.delays)
    assert len(delays) == len(wires) * round(PER_S * ROUND_S), "a fast reader missed a message"
    return delays[len(delays) * 99 // 100] * 1000


async def fast_readers(platform: Platform, users: list[str], thread_id: str) -> list[Wire]:
    """Connect the sessions that read, all to one edge."""
    wires = [
        await Wire.open(platform, user, thread_id, edge=0)
        for user in users
        for _ in range(SESSIONS_EACH)
    ]
    for wire in wires:
        wire.measure()
    return wires


async def closed_as_slow(platform: Platform) -> int:
    """Return how many sessions the first edge has closed because they did not read."""
    async with httpx.AsyncClient() as client:
        page = (await client.get(platform.described["metrics"]["edge-0"])).text
    found = [line for line in page.splitlines() if line.startswith(_CLOSED_AS_SLOW)]
    return round(float(found[0].split()[-1])) if found else 0


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_two_hundred_fast_readers_do_not_notice_a_slow_one(platform: Platform) -> None:
    users = [f"slow-{number}" for number in range(USERS)]
    thread = await platform.rest(users[0]).create_thread(users[1:], kind="group")
    thread_id = thread["thread_id"]
    alone: list[float] = []
    together: list[float] = []
    async with platform.client(users[0], edge=1, on_event=lambda _: None) as sender:
        # Given two hundred sessions of one edge in a thread where somebody talks
        wires = await fast_readers(platform, users, thread_id)
        already = await closed_as_slow(platform)
        await talk(sender, thread_id, for_s=WARM_UP_S)
        while len(alone) < PAIRS or (
            _ratio(alone, together) > SLOWER_MAX and len(alone) < PAIRS_MAX
        ):
            # When one more session of that edge does not read, by turns with when there is none
            slow = await Wire.open(platform, users[1], thread_id, edge=0, reads=False)
            together.append(await round_p99_ms(sender, thread_id, wires))
            await slow.close()
            alone.append(await round_p99_ms(sender, thread_id, wires))
        for wire in wires:
            await wire.close()
    # Then the slow one was closed each time, before its round was over
    assert await closed_as_slow(platform) == already + len(together)
    # And the others got their messages as fast as without it
    print(  # noqa: T201 - shown by pytest -s: the figure is what this test is for
        f"p99 of {len(wires)} readers, ms: alone {[round(ms, 1) for ms in alone]}, "
        f"beside a slow one {[round(ms, 1) for ms in together]}, ratio {_ratio(alone, together):.2f}"
    )
    assert _ratio(alone, together) <= SLOWER_MAX


def _ratio(alone: list[float], together: list[float]) -> float:
    # The best rounds: what else the machine does only ever adds, and a slow session that held the others up would
    # hold them up in every round.
    return min(together) / min(alone)
