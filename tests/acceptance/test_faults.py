"""An edge that hangs, a log that is killed: whoever is connected ends with exactly the thread, each change once."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import pytest

from lilith_client import Event, Sent
from tests.acceptance.board import Board, as_it_is, assert_in_order_once
from tests.acceptance.platform import Platform
from tests.acceptance.talk import Talk
from tests.acceptance.wire import Frame, Wire
from tests.support.eventually import eventually, eventually_passes

CONNECTED_BEFORE_S: Final = 16.0
"""A client pings every 20 s and waits 20 s for the pong: who is connected this long when its edge stops has left it
well before the edge wakes, who has just come has not."""
STOPPED_S: Final = 30.0
KILLS: Final = 3


@asynccontextmanager
async def in_one_thread(
    platform: Platform, name: str, edges: Sequence[int]
) -> AsyncIterator[list[Board]]:
    """Connect people who look at one thread, each at the edge named for them."""
    users = [f"{name}-{number}" for number in range(len(edges))]
    thread = await platform.rest(users[0]).create_thread(users[1:], kind="group")
    async with AsyncExitStack() as stack:
        boards = [
            Board(platform, user, thread["thread_id"], edge=edge)
            for user, edge in zip(users, edges, strict=True)
        ]
        for board in boards:
            await stack.enter_async_context(board.client)
            await board.look(after="0")
        yield boards


async def assert_everybody_has_everything(
    platform: Platform, boards: Sequence[Board], acks: Sequence[Sent], reader: str
) -> None:
    """Check that every board is the thread as it is, with every acknowledged message at its place."""
    now: dict[str, object] = {}

    async def the_same() -> None:
        nonlocal now
        now = {**await as_it_is(platform, reader, boards[0].thread_id)}
        assert len(now) >= len(acks)
        for board in boards:
            assert list(board.messages.items()) == list(now.items())

    await eventually_passes(the_same, within_s=30.0)
    for board in boards:
        assert_in_order_once(board.changes)
        places = {change.data["message_id"]: change.data["seq"] for change in board.changes}
        assert {ack.message_id: ack.seq for ack in acks}.items() <= places.items()


def assert_linked_frames(frames: Sequence[Frame], changes: Sequence[Event]) -> None:
    """Check that what one socket got of a thread is a part of it without a hole, each change once."""
    got = [frame["seq"] for frame in frames if "prev_seq" in frame]
    everything = [change.data["seq"] for change in changes]
    begin = everything.index(got[0])
    assert got == everything[begin : begin + len(got)]


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_clients_leave_an_edge_that_hangs_and_it_wakes_without_a_lie(
    own_platform: Platform,
) -> None:
    own_platform.environment["MESSAGING_THROTTLE_LIMIT"] = "0"
    own_platform.start()
    async with in_one_thread(own_platform, "hang", [0, 0, 1]) as (ava, ben, cleo):
        talk = Talk([ava, cleo])
        await asyncio.sleep(CONNECTED_BEFORE_S)
        late = Board(own_platform, "hang-1", ava.thread_id, edge=0)
        wire = await Wire.open(own_platform, "hang-1", ava.thread_id, edge=0)
        wire.collect()
        async with late.client:
            # Given four clients in a thread where people talk, three of them on one edge, one of these new
            await late.look(after="0")
            await talk.goes_on()
            assert late.nodes == ["edge-0"]
            # When that edge hangs for thirty seconds
            began = time.monotonic()
            with own_platform.suspended("edge-0"):
                await talk.goes_on()
                await eventually(lambda: ava.nodes[-1] == "edge-1", within_s=STOPPED_S)
                moved_s = time.monotonic() - began
                await talk.goes_on()
                await asyncio.sleep(max(0.0, began + STOPPED_S - time.monotonic()))
                assert late.nodes == ["edge-0"], "it did not notice: the edge hung too short"
            # Then those who waited longest have gone on elsewhere meanwhile, and the rest is told what it missed
            await talk.goes_on()
            await eventually(own_platform.ready, within_s=20.0)
            await talk.end()
            boards = [ava, ben, cleo, late]
            await assert_everybody_has_everything(own_platform, boards, talk.acks, "hang-1")
            # And nothing that the woken edge wrote was old, doubled or after a hole
            await wire.close()
            assert_linked_frames(wire.frames, cleo.changes)
            print(  # noqa: T201 - shown by pytest -s
                f"moved after {moved_s:.1f} s; those who stayed: {late.nodes[1:]}, {wire.code}"
            )
        # And a client that comes to the woken edge sees the same, live
        again = Board(own_platform, "hang-1", ava.thread_id, edge=0)
        async with again.client:
            await again.look(after="0")
            await cleo.client.send(ava.thread_id, "after all")
            await eventually(lambda: list(again.messages) == list(cleo.messages))
            assert again.nodes == ["edge-0"]


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_log_that_is_killed_under_load_costs_nobody_a_message(
    own_platform: Platform,
) -> None:
    own_platform.environment["MESSAGING_THROTTLE_LIMIT"] = "0"
    own_platform.start()
    async with in_one_thread(own_platform, "nats", [0, 1, 0, 1]) as boards:
        # Given people on both edges who talk
        talk = Talk(boards[:3])
        for _ in range(KILLS):
            await talk.goes_on()
            # When NATS is killed and comes back, again and again
            await asyncio.to_thread(own_platform.kill9, "nats")
        await talk.goes_on()
        await talk.end()
        # Then everybody, who wrote and who only read, ends with the thread as it is
        await assert_everybody_has_everything(own_platform, boards, talk.acks, "nats-3")
