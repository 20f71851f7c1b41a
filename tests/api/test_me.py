"""The asking user, and the positions they may wait for."""

import asyncio
import time

from shared.cursors import encode_cursor
from shared.identity import ThreadId, new_id
from shared.protocol import UNREAD_MAX
from tests.api.support import Api, entry_of, make_thread, running_api
from tests.support.eventually import eventually_passes
from tests.support.fabric import Fabric


async def test_me_is_what_the_token_says_and_nothing_that_is_not_true(api: Api) -> None:
    me = (await api.client("ava", name="Ava", role="creator").get("/api/me")).json()
    port = api.parts.settings.messaging_ws_port
    assert me == {
        "user_id": "ava",
        "name": "Ava",
        "avatar_url": None,
        "role": "creator",
        "standing": "active",
        "unread_total": 0,
        "quota": {"gated": False, "remaining": None, "period_end": None},
        "limits": {
            "frame_bytes": 65_536,
            "body_chars": 4_000,
            "attachments": 10,
            "subscriptions": 128,
            "rate": None,
        },
        "features": {"clips": True, "analytics": True, "typing": True, "receipts": True},
        "settings": {},
        "ws_url": f"ws://127.0.0.1:{port}/ws/messaging",
        "sync_cursor": me["sync_cursor"],
    }


async def test_the_rate_and_the_address_are_the_configured_ones(fabric: Fabric) -> None:
    async with running_api(
        fabric,
        messaging_enable_clips=False,
        messaging_throttle_limit=7,
        messaging_ws_url="wss://chat.example/ws/messaging",
    ) as api:
        me = (await api.client("ava").get("/api/me")).json()
    assert me["limits"]["rate"] == {"limit": 7, "window_ms": 60_000}
    assert me["ws_url"] == "wss://chat.example/ws/messaging"
    assert me["features"]["clips"] is False


async def test_unread_counts_messages_of_others_in_every_thread(api: Api) -> None:
    ava, ben = api.client("ava"), api.client("ben")
    one = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    two = ThreadId((await make_thread(ben, "ava"))["thread_id"])
    await api.fabric.send(one, "ben", "a", "b")
    await api.fabric.send(one, "ava", "mine: reads what was before")
    await api.fabric.send(one, "ben", "c")
    seqs = await api.fabric.send(two, "ben", "d", "e")
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
        assert (await ava.get("/api/me")).json()["unread_total"] == 3
        assert (await ben.get("/api/me")).json()["unread_total"] == 0


async def test_unread_counts_stop_at_a_thousand_in_each_thread_and_in_all(api: Api) -> None:
    # Given two threads that nobody has read for long
    ava = api.client("ava")
    threads = [ThreadId((await make_thread(ava, "ben"))["thread_id"]) for _ in range(2)]
    await api.fabric.send(threads[0], "ben", *["x"] * (UNREAD_MAX + 5))
    seqs = await api.fabric.send(threads[1], "ben", *["x"] * (UNREAD_MAX - 1))
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
    # Then more than that is not told, and less is exact
    listed = (await ava.get("/api/threads")).json()["items"]
    unread = {one["thread_id"]: one["unread"] for one in listed}
    assert unread == {threads[0]: UNREAD_MAX, threads[1]: UNREAD_MAX - 1}
    synced = (await ava.get("/api/sync")).json()["items"]
    assert {one["thread_id"]: one["unread"] for one in synced} == unread
    assert (await ava.get("/api/me")).json()["unread_total"] == UNREAD_MAX


async def test_a_caller_becomes_known_to_the_edges(api: Api) -> None:
    await api.client("ava", name="Ava", role="creator").get("/api/me")

    async def is_known() -> None:
        stored = await api.parts.bus.kv_get("users", "ava")
        assert stored is not None

    await eventually_passes(is_known)
    known = await entry_of(api, "users", "ava")
    assert (known["name"], known["role"], known["revision"]) == ("Ava", "creator", 1)
    # A newer token says otherwise
    await api.client("ava", name="Eva", role="creator").get("/api/me")
    assert await api.fabric.pool.fetchval("SELECT name FROM users") == "Eva"


async def test_a_reader_who_knows_a_position_never_gets_older_data(api: Api) -> None:
    # Given a message that the persister has not read yet
    ava = api.client("ava")
    thread_id = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    seqs = await api.fabric.send(thread_id, "ava", "new")
    known = {"Messaging-Cursor": encode_cursor(thread_id, seqs[-1])}
    paths = [
        f"/api/threads/{thread_id}",
        f"/api/messages?thread_id={thread_id}",
        "/api/threads",
        f"/api/threads/{thread_id}/members",
        f"/api/threads/{thread_id}/changes",
        "/api/me",
        "/api/sync",
    ]
    # When it is asked for by its position, it is unavailable rather than missing
    started = time.monotonic()
    late = await asyncio.gather(*(ava.get(path, headers=known) for path in paths))
    assert [answer.status_code for answer in late] == [503] * len(paths)
    assert 1.5 < time.monotonic() - started < 6
    # And when the persister comes in time, it is there
    waiting = [asyncio.ensure_future(ava.get(path, headers=known)) for path in paths]
    async with api.fabric.persister():
        answers = await asyncio.gather(*waiting)
    assert [answer.status_code for answer in answers] == [200] * len(paths)
    assert answers[0].json()["messages"][0]["body"] == "new"
    assert answers[1].json()["items"][0]["body"] == "new"
    assert answers[2].json()["items"][0]["last_message"]["body"] == "new"
    assert answers[3].json()["items"][0]["read_seq"] == seqs[-1]
    assert answers[4].json()["items"][0]["body"] == "new"
    assert answers[6].json()["items"][0]["cursor"] == known["Messaging-Cursor"]


async def test_positions_of_nothing_that_is_read_are_refused(api: Api) -> None:
    ava, eve = api.client("ava"), api.client("eve")
    thread_id = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    other = ThreadId((await make_thread(ava, "cleo"))["thread_id"])
    path = f"/api/threads/{thread_id}"
    for cursor in ("x", encode_cursor(other, 5), "-1", "1" * 64):
        answer = await ava.get(path, headers={"Messaging-Cursor": cursor})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), cursor
    assert (await ava.get(path, headers={"Messaging-Cursor": "0"})).status_code == 200
    # A stranger learns nothing, and does not wait for it
    foreign = {"Messaging-Cursor": encode_cursor(thread_id, 1 << 50)}
    assert (await eve.get(path, headers=foreign)).status_code == 404
    missing = await eve.get(f"/api/messages/{new_id()}", headers=foreign)
    assert missing.status_code == 422
