"""The small REST part: addresses, errors, answers that are none."""

from typing import Any

import pytest

from lilith_client import Client, Rest, RestError, Synced, SyncedThread
from tests.sdk.scripted import platform


async def test_a_page_of_history_carries_token_and_position() -> None:
    async with platform() as (fabric, _edges, api):
        fabric.store("t", "hello")
        rest = Rest(f"{api.address}/", "token")
        [message] = await rest.messages("t", after=0, up_to="c3")
        assert message["body"] == "hello"
        [head] = fabric.reads
        assert "GET /api/messages?thread_id=t&limit=200&after=0 " in head
        assert "Authorization: Bearer token" in head
        assert "Messaging-Cursor: c3" in head


async def test_a_problem_says_its_code_and_whether_to_try_again() -> None:
    async with platform() as (fabric, _edges, api):
        rest = Rest(api.address, "token")
        fabric.refuse_reads = 1
        with pytest.raises(RestError) as refused:
            await rest.messages("t")
        assert (refused.value.status, refused.value.code) == (503, "unavailable")
        assert refused.value.retryable
        assert refused.value.retry_after_s == 0.0
        api.status = 404
        with pytest.raises(RestError) as missing:
            await rest.thread("t")
        assert not missing.value.retryable


async def test_nobody_there_is_an_error_that_may_be_tried_again() -> None:
    with pytest.raises(RestError) as unreachable:
        await Rest("http://127.0.0.1:9", "token").me()
    assert unreachable.value.status == 0
    assert unreachable.value.retryable


@pytest.mark.parametrize("address", ["127.0.0.1:8080", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused_at_once(address: str) -> None:
    with pytest.raises(ValueError, match="no http address"):
        Rest(address, "token")


async def test_every_page_of_a_sync_is_read_and_its_cursor_kept() -> None:
    async with platform() as (fabric, [edge], api):
        pages = [[_synced("a")], [_synced("b"), _synced("c", removed=True)]]
        fabric.synced = {
            None: {"items": pages[0], "next_cursor": "p2", "cursor": "s1"},
            "p2": {"items": pages[1], "next_cursor": None, "cursor": "s1"},
            "s1": {"items": [_synced("b")], "next_cursor": None, "cursor": "s2"},
        }
        async with Client([edge.address], "token", api=api.address) as client:
            # Given a first sync, which tells all threads
            first = await client.sync()
            assert [thread.thread_id for thread in first.threads] == ["a", "b", "c"]
            assert first.threads[2].removed
            assert first.complete
            # Then the next one tells what changed since
            second = await client.sync()
            assert [thread.thread_id for thread in second.threads] == ["b"]
            assert not second.complete
            assert client.sync_cursor == "s2"


async def test_a_sync_cursor_that_says_nothing_any_more_means_all_threads() -> None:
    async with platform() as (fabric, _edges, api):
        fabric.synced = {None: {"items": [_synced("a")], "next_cursor": None, "cursor": "s9"}}
        synced = await Rest(api.address, "token").sync("of another generation")
        assert synced == Synced([SyncedThread("a", "c1", 0, removed=False)], "s9", complete=True)


async def test_without_an_api_there_is_no_sync() -> None:
    async with platform() as (_fabric, [edge], _api), Client([edge.address], "token") as client:
        with pytest.raises(RestError):
            await client.sync()


def _synced(thread_id: str, *, removed: bool = False) -> dict[str, Any]:
    return {"thread_id": thread_id, "cursor": "c1", "unread": 0, "removed": removed}
