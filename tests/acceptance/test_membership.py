"""Members come and go while people talk: reading begins and ends at exactly one place, wherever one looks."""

import operator
from functools import partial
from typing import Final

import pytest

from lilith_client import SUBSCRIPTION_ENDED, CommandError, RestError
from tests.acceptance.board import Board, as_it_is, assert_in_order_once
from tests.acceptance.platform import Platform
from tests.acceptance.talk import Talk
from tests.support.eventually import eventually

ROUNDS: Final = 3


async def test_a_removed_member_reads_up_to_the_removal_and_not_a_message_further(
    platform: Platform,
) -> None:
    ava, ben, cleo = ("gone-ava", "gone-ben", "gone-cleo")
    owner = platform.rest(ava)
    thread = await owner.create_thread([ben, cleo], kind="group", title="moving")
    thread_id, members = thread["thread_id"], f"/api/threads/{thread['thread_id']}/members"
    first, second = (Board(platform, ava, thread_id, edge=n) for n in (0, 1))
    async with first.client, second.client:
        # Given people who talk on both edges
        for board in (first, second):
            await board.look(after="0")
        talk = Talk([first, second])
        for turn in range(ROUNDS):
            # When one who reads on the other edge is removed in the middle of it
            leaving = Board(platform, ben, thread_id, edge=turn % 2)
            async with leaving.client:
                await leaving.look()
                await leaving.client.sync()
                await talk.goes_on()
                await owner.request("DELETE", f"{members}/{ben}")
                # Then the removal is the last thing they hear of the thread
                await eventually(partial(operator.contains, leaving.kinds, SUBSCRIPTION_ENDED))
                await talk.goes_on()
                last = leaving.changes[-1]
                assert (last.data["change"], last.data["user_id"]) == ("removed", ben)
                assert leaving.kinds.count("thread.member") == 1
                # And what they saw is what was there, without a hole, up to exactly there
                now = await as_it_is(platform, ava, thread_id)
                assert len(now) > len(leaving.messages)
                begin, end = leaving.changes[0].data["seq"], last.data["seq"]
                everything = [change.data["seq"] for change in first.changes]
                expected = [seq for seq in everything if begin <= seq <= end]
                assert [change.data["seq"] for change in leaving.changes] == expected
                assert leaving.messages.items() <= now.items()
                # And every door says the same
                with pytest.raises(CommandError) as refused:
                    await leaving.look()
                assert refused.value.code == "not_found"
                with pytest.raises(RestError) as missing:
                    await platform.rest(ben).changes(thread_id, after="0")
                assert missing.value.code == "not_found"
                synced = await leaving.client.sync()
                assert [thread.removed for thread in synced.threads] == [True]
            # And let in again, they read from there on, and nothing of what was said meanwhile
            joined = await owner.request("POST", members, body={"user_id": ben})
            assert joined["user_id"] == ben
            back = Board(platform, ben, thread_id, edge=(turn + 1) % 2)
            async with back.client:
                await back.look(after="0")
                await talk.goes_on()
                assert back.changes[0].data["prev_seq"] == 0, "for them the thread begins here"
                assert "joined" in {change.data.get("change") for change in back.changes}
                assert_in_order_once(back.changes)
                visible, shown = list(await as_it_is(platform, ben, thread_id)), [*back.messages]
                common = min(len(visible), len(shown))  # Each may be a moment ahead of the other.
                assert visible[:common] == shown[:common]
                assert not back.messages.keys() & leaving.messages.keys()
        await talk.end()
