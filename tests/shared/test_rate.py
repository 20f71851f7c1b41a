"""The rate limit on a real counter stream: never more than the limit, whoever asks, and rarely a round trip."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared import subjects
from shared.bus import Bus, BusError
from shared.identity import UserId
from shared.metrics import EdgeMetrics
from shared.rate import BLOCK_MAX, GRANTED, Rate
from shared.settings import load_settings
from tests.support.eventually import eventually, eventually_passes
from tests.support.nats_streams import connected, make_streams
from tests.support.servers import NatsServer

AVA = UserId("ava")
WINDOW_MS = 60_000
START_MS = 30_000_000 * WINDOW_MS
"""The beginning of a window. Tests choose the time, so that none straddles a border by accident."""


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    await make_streams(nats_server, load_settings())
    async with connected(nats_server, "edge") as bus:
        yield bus


def limited(bus: Bus, limit: int = 100) -> Rate:
    settings = load_settings(messaging_throttle_limit=limit, messaging_throttle_ttl=WINDOW_MS)
    return Rate(bus, settings, metrics=EdgeMetrics("test").sending)


async def granted(rate: Rate, wanted: int, *, now_ms: int = START_MS) -> int:
    answers = await asyncio.gather(*(rate.acquire(AVA, now_ms) for _ in range(wanted)))
    return sum(answer == GRANTED for answer in answers)


async def counter(bus: Bus, window: int = START_MS // WINDOW_MS) -> bytes:
    stored = await bus.get_last(subjects.RATE_STREAM, subjects.rate_subject(AVA, window))
    return stored.payload if stored is not None else b""


async def test_three_nodes_that_want_six_hundred_get_exactly_one_hundred(
    nats_server: NatsServer, bus: Bus
) -> None:
    # Given two edges and an api, each with 200 commands of one user
    async with connected(nats_server, "edge", "b") as other, connected(nats_server, "api") as api:
        rates = [limited(bus), limited(other), limited(api)]
        # When all are asked at once
        counts = await asyncio.gather(*(granted(rate, 200) for rate in rates))
    # Then exactly the limit is granted
    assert sum(counts) == 100


async def test_a_unit_costs_no_round_trip_while_a_block_is_leased(bus: Bus) -> None:
    # Given a block leased by the first command
    rate = limited(bus)
    assert rate.take(AVA, START_MS) is None
    assert await rate.acquire(AVA, START_MS) == GRANTED
    # When the rest of the block is used without giving the loop a chance
    answers = [rate.take(AVA, START_MS) for _ in range(BLOCK_MAX)]
    # Then only the last one has to ask
    assert answers == [GRANTED] * (BLOCK_MAX - 1) + [None]


async def test_the_next_block_is_there_before_the_last_unit_is_gone(bus: Bus) -> None:
    # Given a user who sends at a human pace
    rate = limited(bus)
    await rate.acquire(AVA, START_MS)
    for _ in range(60):
        # When the next command comes
        # Then it never waits
        assert rate.take(AVA, START_MS) == GRANTED
        await asyncio.sleep(0.005)


async def test_what_is_refused_says_when_to_come_back_and_then_passes(bus: Bus) -> None:
    # Given a user who has used all, thirty seconds into the window
    rate = limited(bus)
    now_ms = START_MS + 30_000
    assert await granted(rate, 101, now_ms=now_ms) == 100
    # When another command comes
    wait_ms = rate.take(AVA, now_ms)
    # Then it is refused without a round trip until the first unit of the next window
    assert wait_ms == 30_000 + WINDOW_MS // 100
    assert rate.take(AVA, now_ms + 20_000) == wait_ms - 20_000
    # And exactly one passes then
    assert await granted(rate, 2, now_ms=now_ms + wait_ms) == 1


async def test_around_the_border_of_two_windows_no_more_passes_than_the_limit_allows(
    bus: Bus,
) -> None:
    # Given a user who used all at the end of a window
    rate = limited(bus)
    assert await granted(rate, 100, now_ms=START_MS + WINDOW_MS - 1) == 100
    # When they go on right behind the border, and in the middle of the next window
    behind = await granted(rate, 100, now_ms=START_MS + WINDOW_MS + 1)
    middle = await granted(rate, 100, now_ms=START_MS + WINDOW_MS * 3 // 2)
    # Then what they used still counts, by its share
    assert (behind, middle) == (0, 50)


async def test_the_commands_of_one_user_are_answered_in_the_order_asked(bus: Bus) -> None:
    # Given commands that have to wait for a block
    rate = limited(bus)
    order: list[int] = []

    async def ask(number: int) -> None:
        await rate.acquire(AVA, START_MS)
        order.append(number)

    # When they are asked one after another, without waiting
    async with asyncio.TaskGroup() as tasks:
        for number in range(30):
            tasks.create_task(ask(number))
    # Then none overtook another
    assert order == list(range(30))


async def test_nobody_overtakes_those_who_wait(bus: Bus) -> None:
    # Given a command that waits for a block
    rate = limited(bus)
    waiting = asyncio.create_task(rate.acquire(AVA, START_MS))
    await asyncio.sleep(0)
    # When another one comes
    # Then it has to wait behind it
    assert rate.take(AVA, START_MS) is None
    assert await waiting == GRANTED


async def test_a_user_who_leaves_gives_the_rest_of_the_block_back(bus: Bus) -> None:
    # Given a user who used one unit of a block and left
    rate = limited(bus)
    await rate.acquire(AVA, START_MS)
    rate.release(AVA)
    # When the server has heard of it
    await eventually(lambda: _counts(bus, b'{"val":"1"}'))
    # Then another node can still grant everything else
    assert await granted(limited(bus), 200) == 99


async def _counts(bus: Bus, value: bytes) -> bool:
    return await counter(bus) == value


async def test_units_that_were_not_granted_are_given_back(bus: Bus) -> None:
    # Given a limit that is no multiple of the block
    rate = limited(bus, limit=25)
    # When more is wanted
    assert await granted(rate, 40) == 25

    # Then the counter says what was granted, not what was asked for
    async def says_25() -> None:
        assert await counter(bus) == b'{"val":"25"}'

    await eventually_passes(says_25)


@pytest.mark.parametrize("limit", [1, 3, 9, 10, 11])
async def test_small_limits_are_exact_too(bus: Bus, limit: int) -> None:
    assert await granted(limited(bus, limit=limit), 30) == limit


async def test_two_users_do_not_share_their_units(bus: Bus) -> None:
    # Given a user who has used all
    rate = limited(bus, limit=1)
    assert await granted(rate, 2) == 1
    # When another user comes
    # Then they have their own
    assert await rate.acquire(UserId("ben"), START_MS) == GRANTED


async def test_a_limit_of_zero_is_none(bus: Bus) -> None:
    rate = limited(bus, limit=0)
    assert {rate.take(AVA, START_MS) for _ in range(1_000)} == {GRANTED}


async def test_without_a_server_nothing_is_granted_and_nobody_waits_for_ever(
    nats_server: NatsServer, bus: Bus
) -> None:
    # Given a server that is gone
    rate = limited(bus)
    nats_server.kill9()
    await eventually(lambda: not bus.connected)
    # When units are asked for
    answers = await asyncio.gather(
        *(rate.acquire(AVA, START_MS) for _ in range(3)), return_exceptions=True
    )
    # Then all fail at once, and it works again when the server is back
    assert all(isinstance(answer, BusError) for answer in answers)
    nats_server.start()
    await eventually(lambda: bus.connected, within_s=10)


async def test_leases_of_past_windows_are_forgotten(bus: Bus) -> None:
    # Given leases of three users
    rate = limited(bus)
    for name in ("ava", "ben", "cid"):
        await rate.acquire(UserId(name), START_MS)
    # When one of them comes back two windows later
    await rate.acquire(AVA, START_MS + 2 * WINDOW_MS)
    # Then the others take no memory any more
    assert list(rate._leases) == [AVA]


async def test_a_bug_in_the_middle_of_a_fetch_leaves_nobody_waiting(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a counter that cannot be read
    rate = limited(bus)
    monkeypatch.setattr(rate, "_used_in", None)
    # When a unit is asked for
    # Then the question ends, and so does the next one
    for _ in range(2):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(rate.acquire(AVA, START_MS), 2)
