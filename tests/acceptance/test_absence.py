"""A client that was away: on whichever edge it comes back, it gets all of it, in order, once."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

import pytest

from lilith_client import Client, Rest
from tests.acceptance.board import Board, as_it_is, assert_in_order_once, assert_linked
from tests.acceptance.platform import Platform
from tests.support.eventually import eventually, eventually_passes

SEEN: Final = 40
CHANGED: Final = 40
"""So many of the messages seen before the absence are edited or deleted in it, and as many of those sent in it."""
AT_ONCE: Final = 8


class Written(NamedTuple):
    """A stored message and who wrote it."""

    seq: int
    message_id: str
    user: str


async def write(writers: Mapping[str, Client], thread_id: str, count: int) -> list[Written]:
    """Send numbered messages, by turns; return them in the order of the thread."""

    async def send(user: str, number: int) -> Written:
        sent = await writers[user].send(thread_id, f"message {number}")
        return Written(sent.seq, sent.message_id, user)

    users = list(writers)
    turns = (send(users[number % len(users)], number) for number in range(count))
    return sorted(await asyncio.gather(*turns))


async def change(writers: Mapping[str, Rest], messages: Sequence[Written]) -> None:
    """Edit every other one of the messages, twice, and delete the rest."""
    room = asyncio.Semaphore(AT_ONCE)

    async def change_one(number: int, message: Written) -> None:
        rest, path = writers[message.user], f"/api/messages/{message.message_id}"
        async with room:
            if number % 2:
                await rest.request("DELETE", path)
                return
            for version in ("first", "second"):
                await rest.request("PUT", path, body={"body": f"{version} edit of {number}"})

    await asyncio.gather(*(change_one(*one) for one in enumerate(messages)))


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("missed", "replayed"), [(1_000, True), (2_100, False)], ids=["replayed", "read over REST"]
)
async def test_who_was_away_during_messages_edits_and_deletions_misses_nothing(
    platform: Platform, missed: int, replayed: bool
) -> None:
    ava, ben, cleo = (f"away-{missed}-{name}" for name in ("ava", "ben", "cleo"))
    thread = await platform.rest(ava).create_thread([ben, cleo], kind="group")
    thread_id = thread["thread_id"]
    async with (
        platform.client(ava, on_event=lambda _: None) as first,
        platform.client(cleo, edge=1, on_event=lambda _: None) as second,
    ):
        writers = {ava: first, cleo: second}
        # Given Ben, who has seen forty messages on one edge
        before = Board(platform, ben, thread_id, edge=0)
        async with before.client:
            await before.look(after="0")
            seen = await write(writers, thread_id, SEEN)
            await eventually(lambda: len(before.messages) == SEEN)
            position = before.position()
        # When he is away during many messages, edits and deletions, of those he saw and of others
        sent = await write(writers, thread_id, missed)
        rest = {user: platform.rest(user) for user in writers}
        await change(rest, [*seen[:CHANGED], *sent[10 : 10 + CHANGED]])
        # And comes back on the other edge
        board = Board(platform, ben, thread_id, edge=1)
        board.messages |= before.messages
        async with board.client:
            assert await board.look(after=position) is replayed
            await eventually(lambda: board.caught_up == 1, within_s=20.0)
            # Then everything came, in order, once: exactly as the thread is now
            now = await as_it_is(platform, ben, thread_id)
            assert list(now) == [message.message_id for message in (*seen, *sent)]
            assert board.messages == now
            assert list(board.messages) == list(now)
            assert_in_order_once(board.changes)
            assert board.nodes == ["edge-1"]
            if replayed:
                assert_linked(board.changes)
            # And what comes next is live, to the last change
            [last] = await write({ava: first}, thread_id, 1)
            await rest[ava].request("DELETE", f"/api/messages/{last.message_id}")
            await eventually_passes(partial(_last_is_deleted, board, last.message_id))
            assert_in_order_once(board.changes)
            assert board.caught_up == 1


def _last_is_deleted(board: Board, message_id: str) -> None:
    assert list(board.messages)[-1] == message_id
    assert board.messages[message_id].deleted
