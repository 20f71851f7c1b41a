"""Processes killed with -9 in the middle of sending: nothing acknowledged is lost, doubled or moved."""

import asyncio
from functools import partial
from typing import Final

import pytest

from lilith_client import Sent
from tests.acceptance.conversation import (
    Member,
    Seen,
    assert_everyone_keeps_their_order,
    assert_once_and_ascending,
    in_postgres,
    over_rest,
)
from tests.acceptance.platform import Platform
from tests.support.eventually import eventually, eventually_passes

EACH: Final = 300
PAUSE_S: Final = 0.02


async def talk(member: Member, thread_id: str) -> list[Sent]:
    """Send numbered messages with a pause, so that the kills hit the middle."""
    sent = []
    for number in range(EACH):
        sent.append(await member.client.send(thread_id, f"{member.user} {number}"))
        await asyncio.sleep(PAUSE_S)
    return sent


async def more_arrive(seen: list[Seen]) -> None:
    """Wait until the conversation is going on."""
    already = len(seen)
    await eventually(lambda: len(seen) > already + 20, within_s=20.0)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("victims", [("edge-0", "edge-1"), ("persister", "api")], ids="+".join)
async def test_a_kill_in_the_middle_of_sending_changes_nothing_that_anybody_sees(
    platform: Platform, victims: tuple[str, ...]
) -> None:
    # Given two people on two edges who talk without a break
    users = [f"kill-{victims[0]}-{name}" for name in ("ava", "ben")]
    ava, ben = (Member(platform, user, edge=edge) for edge, user in enumerate(users))
    async with ava.client, ben.client:
        thread = await platform.rest(users[0]).create_thread([users[1]])
        thread_id = thread["thread_id"]
        for member in (ava, ben):
            await member.client.subscribe(thread_id, after="0")
        talking = [asyncio.create_task(talk(member, thread_id)) for member in (ava, ben)]
        # When processes are killed meanwhile, one after the other
        for victim in victims:
            await more_arrive(ava.seen[thread_id])
            await asyncio.to_thread(platform.kill9, victim)
        acks = [ack for sent in await asyncio.gather(*talking) for ack in sent]
        # Then everything was acknowledged in the end, and both see all of it once, in one order
        await eventually(
            lambda: len(ava.seen[thread_id]) >= 2 * EACH <= len(ben.seen[thread_id]), within_s=20.0
        )
        seen = ava.seen[thread_id]
        assert ben.seen[thread_id] == seen
        assert_once_and_ascending(seen)
        assert_everyone_keeps_their_order(seen)
        assert {ack.message_id: ack.seq for ack in acks} == {m.message_id: m.seq for m in seen}
        if victims[0].startswith("edge"):
            assert len(ava.nodes) > 1, "its edge was killed, so it must have come back"

        # And history and the database have exactly that
        async def stored() -> None:
            assert await over_rest(platform, users[1], thread_id) == seen
            assert await in_postgres(platform, thread_id) == seen

        await eventually_passes(partial(stored), within_s=30.0)
