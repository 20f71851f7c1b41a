"""``Idempotency-Key`` on making threads: once, whatever happens in between."""

import asyncio

import pytest

from shared.provision import provision
from tests.api.support import Api, make_thread, running_api
from tests.support.fabric import Fabric

GROUP = {"kind": "group", "participants": ["ben"], "title": "once"}


async def test_the_same_key_gets_the_same_answer_and_makes_one_thread(api: Api) -> None:
    # Given a thread made with a key
    ava = api.client("ava")
    key = {"Idempotency-Key": "key-1"}
    first = await ava.post("/api/threads", json=GROUP, headers=key)
    # When the same request comes again, even after the thread has changed
    await ava.patch(first.headers["location"], json={"title": "changed"})
    again = await ava.post("/api/threads", json=GROUP, headers=key)
    # Then the answer is the first one, and says that it is
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert await api.fabric.count("threads") == 1


async def test_a_key_belongs_to_one_user_and_one_body(api: Api) -> None:
    ava, ben = api.client("ava"), api.client("ben")
    key = {"Idempotency-Key": "key-1"}
    await ava.post("/api/threads", json=GROUP, headers=key)
    other = await ava.post("/api/threads", json={**GROUP, "title": "other"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "conflict")
    assert (await ben.post("/api/threads", json=GROUP, headers=key)).status_code == 201
    assert await api.fabric.count("threads") == 2


async def test_the_same_key_at_the_same_moment_makes_one_thread(api: Api) -> None:
    ava = api.client("ava")
    key = {"Idempotency-Key": "key-1"}
    answers = await asyncio.gather(
        *(ava.post("/api/threads", json=GROUP, headers=key) for _ in range(6))
    )
    statuses = {answer.status_code for answer in answers}
    assert statuses <= {201, 409}
    assert await api.fabric.count("threads") == 1
    for answer in answers:
        if answer.status_code == 409:
            assert answer.json()["code"] == "conflict"
            assert answer.headers["retry-after"]


async def test_a_refused_request_gives_its_key_back(api: Api) -> None:
    ava = api.client("ava")
    key = {"Idempotency-Key": "key-1"}
    # Given a request that failed after it had taken the key
    await api.fabric.pool.execute("ALTER TABLE thread_members RENAME TO elsewhere")
    failed = await ava.post("/api/threads", json=GROUP, headers=key)
    assert failed.status_code == 500
    await api.fabric.pool.execute("ALTER TABLE elsewhere RENAME TO thread_members")
    # Then the same key may be used again
    assert (await ava.post("/api/threads", json=GROUP, headers=key)).status_code == 201


async def test_a_key_ends_after_a_day_and_an_abandoned_one_after_a_minute(api: Api) -> None:
    ava = api.client("ava")
    old, abandoned = {"Idempotency-Key": "old"}, {"Idempotency-Key": "abandoned"}
    first = await ava.post("/api/threads", json=GROUP, headers=old)
    await ava.post("/api/threads", json=GROUP, headers=abandoned)
    # Given a key of yesterday, and one whose process died before it answered
    await api.fabric.pool.execute(
        "UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key = 'old'"
    )
    await api.fabric.pool.execute(
        "UPDATE idempotency_keys SET status = NULL, created_at = now() - interval '10 seconds' "
        "WHERE key = 'abandoned'"
    )
    assert (await ava.post("/api/threads", json=GROUP, headers=abandoned)).status_code == 409
    await api.fabric.pool.execute(
        "UPDATE idempotency_keys SET created_at = now() - interval '2 minutes' WHERE key = 'abandoned'"
    )
    # Then both run anew
    again = await ava.post("/api/threads", json=GROUP, headers=old)
    assert (again.status_code, "idempotency-replayed" in again.headers) == (201, False)
    assert again.json()["thread_id"] != first.json()["thread_id"]
    assert (await ava.post("/api/threads", json=GROUP, headers=abandoned)).status_code == 201


async def test_an_impossible_key_is_refused(api: Api) -> None:
    ava = api.client("ava")
    for key in ("", "k" * 256, "two words", "k\u00e9y"):
        headers = {b"Idempotency-Key": key.encode("latin-1")}
        answer = await ava.post("/api/threads", json=GROUP, headers=headers)
        assert (answer.status_code, answer.json()["errors"][0]["path"]) == (
            422,
            "/Idempotency-Key",
        ), key


async def test_a_direct_thread_that_exists_is_replayed_with_its_own_status(api: Api) -> None:
    ava = api.client("ava")
    await make_thread(ava, "ben", kind="direct")
    key = {"Idempotency-Key": "key-1"}
    body = {"kind": "direct", "participants": ["ben"]}
    statuses = [
        (await ava.post("/api/threads", json=body, headers=key)).status_code for _ in range(2)
    ]
    assert statuses == [200, 200]


@pytest.mark.parametrize("with_key", [True, False])
async def test_a_change_that_could_not_be_told_is_unavailable_and_told_later(
    fabric: Fabric, *, with_key: bool
) -> None:
    # Given an api whose relay cannot reach the buckets, and no background relay
    async with running_api(fabric, relays=False) as api:
        ava = api.client("ava")
        await ava.get("/api/me")
        direct = {"kind": "direct", "participants": ["ben"]}
        headers = {"Idempotency-Key": "key-1"} if with_key else {}
        bus = await fabric.bus("provision")
        await bus.api("STREAM.DELETE.KV_access")
        # When a thread is made
        late = await ava.post("/api/threads", json=direct, headers=headers)
        # Then nobody is told that it is done
        assert (late.status_code, late.json()["code"]) == (503, "unavailable")
        assert late.headers["retry-after"]
        again = await ava.post("/api/threads", json=direct, headers=headers)
        assert again.status_code == 503
        # When the bucket is back, the same request finds it done, once
        await provision(bus, fabric.pool, fabric.settings("provision"))
        await bus.close()
        done = await ava.post("/api/threads", json=direct, headers=headers)
        assert done.status_code == (201 if with_key else 200)
        assert await fabric.count("threads") == 1
        assert await api.parts.bus.kv_get("access", done.json()["thread_id"])
