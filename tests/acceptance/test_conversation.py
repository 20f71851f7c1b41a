"""Two people on two edges: the same messages in the same order, live, over REST and in PostgreSQL."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

import pytest

from lilith_client import CommandError
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

USERS: Final = 10
THREADS: Final = 50
MEMBERS: Final = 4
EACH: Final = 50
SENT_WITHIN_S: Final = 60.0
"""50 threads x 4 members x 50 messages = 10,000 messages, 40,000 deliveries."""


@asynccontextmanager
async def connected(platform: Platform, users: Sequence[str]) -> AsyncIterator[list[Member]]:
    """Connect the users, every other one at the other edge."""
    async with AsyncExitStack() as stack:
        members = [Member(platform, user, edge=n % 2) for n, user in enumerate(users)]
        for member in members:
            await stack.enter_async_context(member.client)
        yield members


async def thread_of(platform: Platform, users: Sequence[str]) -> str:
    """Make a thread of these users."""
    kind = "direct" if len(users) == 2 else "group"
    thread = await platform.rest(users[0]).create_thread(users[1:], kind=kind)
    return str(thread["thread_id"])


async def test_two_people_on_two_edges_see_one_conversation(platform: Platform) -> None:
    async with connected(platform, ["two-ava", "two-ben"]) as (ava, ben):
        # Given two clients on different edges in one thread
        assert (ava.nodes, ben.nodes) == (["edge-0"], ["edge-1"])
        thread_id = await thread_of(platform, ["two-ava", "two-ben"])
        for member in (ava, ben):
            await member.client.subscribe(thread_id, after="0")
        # When both talk at once
        sent = await asyncio.gather(
            *(
                member.client.send(thread_id, f"{member.user} {number}")
                for number in range(20)
                for member in (ava, ben)
            )
        )
        # Then both see the same forty messages in the same order
        await eventually(lambda: len(ava.seen[thread_id]) == len(ben.seen[thread_id]) == 40)
        assert ava.seen[thread_id] == ben.seen[thread_id]
        assert_once_and_ascending(ava.seen[thread_id])
        assert_everyone_keeps_their_order(ava.seen[thread_id])
        assert {ack.message_id for ack in sent} == {m.message_id for m in ava.seen[thread_id]}

        # And so do history and the database
        seen = ava.seen[thread_id]
        await eventually_passes(partial(stored_as, platform, "two-ben", thread_id, seen))


async def test_a_message_sent_again_through_the_other_edge_is_the_same_message(
    platform: Platform,
) -> None:
    async with connected(platform, ["again-ava", "again-ben"]) as (ava, ben):
        thread_id = await thread_of(platform, ["again-ava", "again-ben"])
        await ben.client.subscribe(thread_id, after="0")
        # Given a message whose sender does not know that it was stored
        message_id = ava.client.new_message_id()
        first = await ava.client.send(thread_id, "once", client_msg_id=message_id)
        # When it is sent again through the other edge
        async with platform.client("again-ava", edge=1, on_event=lambda _event: None) as second:
            again = await second.send(thread_id, "once", client_msg_id=message_id)
            # Then it is the same one
            assert (again.message_id, again.seq, again.sent_at) == (
                first.message_id,
                first.seq,
                first.sent_at,
            )
            assert again.duplicate
            # And another text under the same id is refused
            with pytest.raises(CommandError) as refused:
                await second.send(thread_id, "twice", client_msg_id=message_id)
            assert refused.value.code == "conflict"
            await second.send(thread_id, "end")
        # And nobody saw it twice
        await eventually(lambda: len(ben.seen[thread_id]) >= 2)
        assert [item.body for item in ben.seen[thread_id]] == ["once", "end"]


async def test_a_stranger_sees_and_writes_nothing(platform: Platform) -> None:
    thread_id = await thread_of(platform, ["closed-ava", "closed-ben"])
    async with platform.client("closed-eve", on_event=lambda _event: None) as eve:
        for attempt in (eve.subscribe(thread_id), eve.send(thread_id, "hi")):
            with pytest.raises(CommandError) as refused:
                await attempt
            assert refused.value.code == "not_found"


async def test_typing_reaches_the_other_edge_and_nobody_else(platform: Platform) -> None:
    async with connected(platform, ["type-ava", "type-ben"]) as (ava, _ben):
        thread_id = await thread_of(platform, ["type-ava", "type-ben"])
        typists: list[str] = []
        async with platform.client(
            "type-ben",
            edge=1,
            on_event=lambda e: (
                typists.append(e.data["user_id"]) if e.type == "typing.active" else None
            ),
        ) as watcher:
            await watcher.subscribe(thread_id)
            await ava.client.typing(thread_id)
            await eventually(lambda: typists == ["type-ava"])


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_ten_thousand_messages_in_fifty_threads_are_the_same_everywhere(
    platform: Platform,
) -> None:
    users = [f"many-{number}" for number in range(USERS)]
    async with connected(platform, users) as members:
        # Given fifty threads of four, everybody subscribed, half of them on each edge
        in_thread = await threads_among(platform, members)
        # When everybody writes into all their threads at once
        began = time.monotonic()
        acks = await asyncio.gather(
            *(
                member.client.send(thread_id, f"{member.user} {number}")
                for number in range(EACH)
                for thread_id, chosen in in_thread.items()
                for member in chosen
            )
        )
        assert time.monotonic() - began < SENT_WITHIN_S
        assert len({ack.message_id for ack in acks}) == THREADS * MEMBERS * EACH

        # Then every member's live list is complete
        def all_arrived() -> None:
            for thread_id, chosen in in_thread.items():
                assert {len(member.seen[thread_id]) for member in chosen} == {MEMBERS * EACH}

        await eventually_passes(all_arrived, within_s=30.0)
        # And all of them, history and the database are one list
        for thread_id, chosen in in_thread.items():
            first = chosen[0].seen[thread_id]
            assert_once_and_ascending(first)
            assert_everyone_keeps_their_order(first)
            assert all(member.seen[thread_id] == first for member in chosen)
            await eventually_passes(partial(stored_as, platform, chosen[-1].user, thread_id, first))


async def threads_among(platform: Platform, members: list[Member]) -> dict[str, list[Member]]:
    """Make the threads, subscribe every member, and return who is in which."""
    in_thread: dict[str, list[Member]] = {}
    for number in range(THREADS):
        chosen = random.Random(number).sample(members, MEMBERS)
        in_thread[await thread_of(platform, [member.user for member in chosen])] = chosen
    await asyncio.gather(
        *(
            member.client.subscribe(thread_id, after="0")
            for thread_id, chosen in in_thread.items()
            for member in chosen
        )
    )
    return in_thread


async def stored_as(platform: Platform, user: str, thread_id: str, seen: list[Seen]) -> None:
    """Check that history over REST and the rows of the database are exactly what was seen live."""
    assert await over_rest(platform, user, thread_id) == seen
    assert await in_postgres(platform, thread_id) == seen
