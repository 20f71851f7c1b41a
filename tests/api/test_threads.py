"""Threads over REST: making, reading, listing, changing, archiving."""

import asyncio
import json
from typing import Any

import httpx

from shared.identity import ThreadId
from shared.subjects import msg_subject
from tests.api.support import HEX_ID, Api, entry_of, make_thread, without
from tests.support.eventually import eventually


async def test_a_new_thread_is_answered_when_every_edge_can_read_its_entry(api: Api) -> None:
    # When ava makes a group
    answer = await api.client("ava").post(
        "/api/threads",
        json={
            "kind": "group",
            "participants": ["ben", "cleo"],
            "title": "Plans",
            "metadata": {"a": 1},
        },
    )
    # Then she gets the whole object, and its place
    assert answer.status_code == 201
    thread = answer.json()
    assert HEX_ID.fullmatch(thread["thread_id"])
    assert answer.headers["location"] == f"/api/threads/{thread['thread_id']}"
    assert answer.headers["etag"] == '"1"'
    assert [(one["user_id"], one["role"]) for one in thread["participants"]] == [
        ("ava", "owner"),
        ("ben", "member"),
        ("cleo", "member"),
    ]
    assert without(thread, "thread_id", "participants", "created_at") == {
        "kind": "group",
        "title": "Plans",
        "metadata": {"a": 1},
        "owner_id": "ava",
        "archived_at": None,
        "participant_count": 3,
        "last_message": None,
        "unread": 0,
        "read_seq": 0,
        "last_seq": 0,
        "cursor": "0",
        "tags": [],
        "pinned": False,
        "muted_until": None,
        "draft": None,
        "me_archived": False,
    }
    # And the entry that lets edges open it is there already
    entry = await entry_of(api, "access", thread["thread_id"])
    assert entry["revision"] == 1
    assert sorted(entry["members"]) == ["ava", "ben", "cleo"]
    assert entry["members"]["ben"]["visible_from"] == 0


async def test_members_hear_of_a_new_thread_on_their_feed(api: Api) -> None:
    # Given an edge that has sessions of both
    heard: dict[bytes, bytes] = {}
    for user in ("ava", "ben"):
        api.fabric.edge.subscribe(
            f"user.{user}",
            lambda subject, _reply, _headers, payload: heard.update({subject: payload}),
        )
    await api.fabric.edge.flush()
    # When ava makes a thread
    thread = await make_thread(api.client("ava"), "ben")
    # Then each gets one frame with the thread as they see it
    await eventually(lambda: len(heard) == 2)
    frame = httpx.Response(200, content=heard[b"user.ben"]).json()
    assert frame == {"type": "thread.created", "thread": thread}


async def test_a_new_thread_is_told_to_platform_services(api: Api) -> None:
    thread = await make_thread(api.client("ava"), "ben", kind="direct")
    stored = await eventually(lambda: _last_event(api, "messaging.thread.created"))
    assert stored["subject"] == thread["thread_id"]
    assert stored["source"] == "/lilith/api"
    assert stored["data"] == {
        "thread_id": thread["thread_id"],
        "kind": "direct",
        "created_by": "ava",
        "participants": ["ava", "ben"],
        "created_at": thread["created_at"],
    }


async def test_the_same_pair_has_one_direct_thread_whoever_asks(api: Api) -> None:
    # Given the direct thread of a pair, archived
    ava, ben = api.client("ava"), api.client("ben")
    first = await make_thread(ava, "ben", kind="direct")
    await ava.delete(f"/api/threads/{first['thread_id']}")
    # When the other side makes it again
    answer = await ben.post("/api/threads", json={"kind": "direct", "participants": ["ava"]})
    # Then it is the same one, open again
    assert answer.status_code == 200
    assert answer.json()["thread_id"] == first["thread_id"]
    assert answer.json()["archived_at"] is None
    assert (await entry_of(api, "access", first["thread_id"]))["archived"] is False


async def test_a_pair_that_makes_its_thread_at_the_same_moment_gets_one(api: Api) -> None:
    clients = [(api.client("ava"), "ben"), (api.client("ben"), "ava")] * 4
    made = await asyncio.gather(
        *(make_thread(client, other, kind="direct") for client, other in clients)
    )
    assert len({thread["thread_id"] for thread in made}) == 1
    assert await api.fabric.count("threads") == 1


IMPOSSIBLE_THREADS: list[tuple[dict[str, object], str, str | None]] = [
    ({"kind": "direct", "participants": []}, "invalid", "/participants"),
    ({"kind": "direct", "participants": ["ava"]}, "invalid", "/participants"),
    ({"kind": "direct", "participants": ["ben", "cleo"]}, "invalid", "/participants"),
    ({"kind": "group", "participants": ["ben", "a b"]}, "invalid", "/participants/1"),
    ({"kind": "group", "participants": ["ben", 7]}, "invalid", "/participants/1"),
    ({"kind": "group", "participants": ["x' OR '1'='1"]}, "invalid", "/participants/0"),
    ({"kind": "group", "participants": ["ben\0"]}, "invalid", "/participants/0"),
    ({"kind": "group", "participants": ["b" * 65]}, "invalid", "/participants/0"),
    ({"kind": "group", "participants": "ben"}, "invalid", "/participants"),
    ({"kind": "group"}, "invalid", "/participants"),
    ({"participants": ["ben"]}, "invalid", "/kind"),
    ({"kind": "crowd", "participants": ["ben"]}, "invalid", "/kind"),
    ({"kind": "group", "participants": ["ben"], "title": ""}, "invalid", "/title"),
    ({"kind": "group", "participants": ["ben"], "title": "t" * 201}, "invalid", "/title"),
    ({"kind": "group", "participants": ["ben"], "title": "a\0"}, "invalid", "/title"),
    ({"kind": "group", "participants": ["ben"], "title": "\ud800"}, "invalid", "/title"),
    ({"kind": "group", "participants": ["ben"], "metadata": []}, "invalid", "/metadata"),
    (
        {"kind": "group", "participants": ["ben"], "metadata": {"a": "b" * 4096}},
        "invalid",
        "/metadata",
    ),
    (
        {"kind": "group", "participants": ["ben"], "metadata": {"n": 2**60}},
        "invalid",
        "/metadata/n",
    ),
    ({"kind": "group", "participants": ["ben"], "history": "some"}, "invalid", "/history"),
    ({"kind": "group", "participants": [f"u{n}" for n in range(500)]}, "limit_reached", None),
]


async def test_an_impossible_thread_is_refused_with_its_path(api: Api) -> None:
    ava = api.client("ava")
    for body, code, path in IMPOSSIBLE_THREADS:
        answer = await ava.post(
            "/api/threads",
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        assert (answer.status_code, answer.json()["code"]) == (422, code), body
        assert path in [None, *(one["path"] for one in answer.json()["errors"])], body
    assert await api.fabric.count("threads") == 0


async def test_five_hundred_participants_are_allowed(api: Api) -> None:
    thread = await make_thread(api.client("ava"), *(f"u{number}" for number in range(499)))
    assert thread["participant_count"] == 500
    assert len(thread["participants"]) == 100


async def test_the_caller_and_repeated_names_count_once(api: Api) -> None:
    thread = await make_thread(api.client("ava"), "ava", "ben", "ben")
    assert [one["user_id"] for one in thread["participants"]] == ["ava", "ben"]


async def test_a_thread_is_read_with_its_latest_messages_oldest_first(api: Api) -> None:
    # Given a thread with more messages than one page
    thread = await make_thread(api.client("ava", name="Ava"), "ben")
    seqs = await api.fabric.send(thread["thread_id"], "ava", *(f"m{n}" for n in range(60)))
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
        # When ben reads it
        answer = await api.client("ben").get(f"/api/threads/{thread['thread_id']}")
    # Then he sees the latest fifty, and what he has not read
    body = answer.json()
    assert [one["body"] for one in body["messages"]] == [f"m{n}" for n in range(10, 60)]
    assert body["last_message"] == body["messages"][-1]
    assert (body["unread"], body["read_seq"], body["last_seq"]) == (60, 0, seqs[-1])
    assert body["cursor"] == body["messages"][-1]["cursor"]
    assert body["participants"][0]["name"] == "Ava"
    assert body["participants"][0]["read_seq"] == seqs[-1]


async def test_threads_are_listed_by_last_activity_and_paged_without_repeats(api: Api) -> None:
    # Given five threads, the second of which was written to last
    ava = api.client("ava")
    ids = [(await make_thread(ava, f"u{n}"))["thread_id"] for n in range(5)]
    seqs = await api.fabric.send(ids[1], "u1", "newest")
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
        # When she reads the list in pages of two
        pages: list[list[str]] = []
        cursor = None
        while cursor is not None or not pages:
            query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = (await ava.get("/api/threads", params=query)).json()
            pages.append([one["thread_id"] for one in page["items"]])
            cursor = page["next_cursor"]
    # Then each is there once, in order
    assert pages == [[ids[1], ids[4]], [ids[3], ids[2]], [ids[0]]]


async def test_the_list_is_filtered(api: Api) -> None:
    ava, ben = api.client("ava"), api.client("ben_the_2nd", name="Ben Büchner")
    await ben.get("/api/me")
    plans = (await make_thread(ava, "cleo", title="Holiday 100% plans"))["thread_id"]
    direct = (await make_thread(ava, "ben_the_2nd", kind="direct"))["thread_id"]
    old = (await make_thread(ava, "dora", title="old"))["thread_id"]
    await ava.delete(f"/api/threads/{old}")
    seqs = await api.fabric.send(direct, "ben_the_2nd", "hi")
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])

    async def listed(**query: str) -> list[str]:
        answer = await ava.get("/api/threads", params=query)
        return [one["thread_id"] for one in answer.json()["items"]]

    assert await listed() == [direct, plans]
    assert await listed(archived="true") == [old]
    assert await listed(unread="true") == [direct]
    assert await listed(unread="false") == [plans]
    assert await listed(participant="cleo") == [plans]
    assert await listed(participant="nobody; DROP TABLE threads") == []
    assert await listed(q="100%") == [plans]
    assert await listed(q="BÜCH") == [direct]
    assert await listed(q="the_2") == [direct]
    assert await listed(q="_") == [direct]
    # Her own name is in all of them, which says nothing.
    assert await listed(q="ava") == []


async def test_patch_merges_and_tells_the_change_once(api: Api) -> None:
    # Given a thread
    ava = api.client("ava")
    thread = await make_thread(ava, "ben", title="one", metadata={"keep": 1, "drop": 2})
    path = f"/api/threads/{thread['thread_id']}"
    # When its owner changes it, twice with the same words
    patch = {"title": "two", "metadata": {"drop": None, "new": {"deep": True}}}
    first = await ava.patch(path, json=patch)
    again = await ava.patch(path, json=patch)
    # Then it changed once
    assert first.json()["title"] == "two"
    assert first.json()["metadata"] == {"keep": 1, "new": {"deep": True}}
    assert (first.headers["etag"], again.headers["etag"]) == ('"2"', '"2"')
    events = await _events(api, thread["thread_id"])
    assert [event["type"] for event in events] == ["thread.updated"]
    assert events[0]["changed"] == {
        "title": "two",
        "metadata": {"keep": 1, "new": {"deep": True}},
    }
    assert events[0]["by"] == "ava"


async def test_put_replaces_everything_that_can_be_changed(api: Api) -> None:
    ava = api.client("ava")
    thread = await make_thread(ava, "ben", title="one", metadata={"a": 1})
    answer = await ava.put(f"/api/threads/{thread['thread_id']}", json={"title": "two"})
    assert (answer.json()["title"], answer.json()["metadata"]) == ("two", {})


async def test_a_change_with_a_stale_tag_is_refused(api: Api) -> None:
    ava = api.client("ava")
    thread = await make_thread(ava, "ben")
    path = f"/api/threads/{thread['thread_id']}"
    tag = (await ava.get(path)).headers["etag"]
    assert (await ava.patch(path, json={"title": "mine"}, headers={"If-Match": tag})).is_success
    # When somebody changes what they read before that
    late = await ava.patch(path, json={"title": "late"}, headers={"If-Match": tag})
    # Then nothing changes
    assert (late.status_code, late.json()["code"]) == (412, "conflict")
    assert (await ava.delete(path, headers={"If-Match": tag})).status_code == 412
    assert (await ava.put(path, json={}, headers={"If-Match": 'W/"2"'})).status_code == 412
    assert (await ava.get(path)).json()["title"] == "mine"
    assert (await ava.patch(path, json={"title": "x"}, headers={"If-Match": "*"})).is_success


async def test_archiving_is_for_all_and_can_be_taken_back(api: Api) -> None:
    # Given a thread that its owner archives, twice
    ava, ben = api.client("ava"), api.client("ben")
    thread = await make_thread(ava, "ben")
    path = f"/api/threads/{thread['thread_id']}"
    assert (await ava.delete(path)).status_code == 204
    assert (await ava.delete(path)).status_code == 204
    # Then it is archived for the other too, the edges know it, and it was told once
    assert (await ben.get(path)).json()["archived_at"] is not None
    assert (await entry_of(api, "access", thread["thread_id"]))["archived"] is True
    event = await eventually(lambda: _last_event(api, "messaging.thread.archived"))
    assert event["data"]["reason"] == "user"
    # And when it is opened again, everybody hears that too
    assert (await ava.patch(path, json={"archived": False})).json()["archived_at"] is None
    types = [event["type"] for event in await _events(api, thread["thread_id"])]
    assert types == ["thread.archived", "thread.updated"]
    assert (await _events(api, thread["thread_id"]))[1]["changed"] == {"archived_at": None}


async def test_only_owner_and_admins_change_a_group_but_both_sides_a_direct_thread(
    api: Api,
) -> None:
    ava, ben = api.client("ava"), api.client("ben")
    group = (await make_thread(ava, "ben"))["thread_id"]
    direct = (await make_thread(ava, "ben", kind="direct"))["thread_id"]
    refused = await ben.patch(f"/api/threads/{group}", json={"title": "mine"})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert (await ben.delete(f"/api/threads/{group}")).status_code == 403
    assert (await ben.patch(f"/api/threads/{direct}", json={"title": "ours"})).is_success


async def test_metadata_may_not_grow_beyond_its_limit_by_patches(api: Api) -> None:
    ava = api.client("ava")
    thread = await make_thread(ava, "ben", metadata={"a": "x" * 3000})
    answer = await ava.patch(
        f"/api/threads/{thread['thread_id']}", json={"metadata": {"b": "y" * 3000}}
    )
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "/metadata")


async def test_members_are_paged(api: Api) -> None:
    ava = api.client("ava", name="Ava")
    thread = await make_thread(ava, *(f"u{n}" for n in range(4)))
    path = f"/api/threads/{thread['thread_id']}/members"
    first = (await ava.get(path, params={"limit": 3})).json()
    rest = (await ava.get(path, params={"limit": 3, "cursor": first["next_cursor"]})).json()
    names = [one["user_id"] for one in first["items"] + rest["items"]]
    assert names == ["ava", "u0", "u1", "u2", "u3"]
    assert rest["next_cursor"] is None
    assert first["items"][0]["name"] == "Ava"


async def _events(api: Api, thread_id: str) -> list[dict[str, Any]]:
    page = await api.parts.bus.get_range(
        "MSG_0", msg_subject(ThreadId(thread_id)), from_seq=0, max_messages=50, max_bytes=100_000
    )
    return [httpx.Response(200, content=one.payload).json() for one in page.messages]


async def _last_event(api: Api, kind: str) -> dict[str, Any] | None:
    bus = await api.fabric.bus("provision")
    try:
        stored = await bus.get_last("EVENTS", kind)
    finally:
        await bus.close()
    return None if stored is None else httpx.Response(200, content=stored.payload).json()
