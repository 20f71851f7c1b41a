"""The small REST part: addresses, errors, answers that are none."""

import pytest

from lilith_client import Rest, RestError
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
