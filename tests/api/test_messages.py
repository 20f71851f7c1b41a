"""Messages over REST: history in pages, one message, sending and sending again."""

import asyncio
from typing import Any

import httpx

from shared.identity import ThreadId, UserId, client_message_id, message_id, new_id, now_ms
from tests.api.support import Api, make_thread, message_body, running_api
from tests.support.eventually import eventually
from tests.support.fabric import Fabric, new_message

MESSAGE_FIELDS = [
    "message_id",
    "thread_id",
    "client_msg_id",
    "sender_id",
    "kind",
    "body",
    "attachments",
    "reply_to",
    "quote",
    "metadata",
    "sent_at",
    "edited_at",
    "deleted_at",
    "reactions",
    "pinned",
    "seq",
    "cursor",
]


async def bodies(client: httpx.AsyncClient, thread_id: str, **query: Any) -> list[str]:  # noqa: ANN401
    answer = await client.get("/api/messages", params={"thread_id": thread_id, **query})
    return [one["body"] for one in answer.json()["items"]]


async def test_a_message_sent_over_rest_is_stored_where_it_says(api: Api) -> None:
    # Given a thread of two
    ava, ben = api.client("ava"), api.client("ben")
    thread = await make_thread(ava, "ben", kind="direct")
    # When ava sends a message
    body = message_body(thread["thread_id"], "héllo 👋\n<b>", metadata={"a": [1, None]})
    answer = await ava.post("/api/messages", json=body)
    # Then it is answered whole, with its place in the log
    sent = answer.json()
    assert answer.status_code == 201
    assert list(sent) == [*MESSAGE_FIELDS, "duplicate"]
    assert sent["duplicate"] is False
    assert answer.headers["location"] == f"/api/messages/{sent['message_id']}"
    assert sent["message_id"] == message_id(
        ThreadId(thread["thread_id"]), UserId("ava"), client_message_id(body["client_msg_id"])
    )
    # And the other reads exactly the same object once the persister has it
    async with api.fabric.persister():
        await api.fabric.reached(sent["seq"])
        read = (await ben.get(f"/api/messages/{sent['message_id']}")).json()
    assert list(read) == MESSAGE_FIELDS
    assert read == {name: sent[name] for name in MESSAGE_FIELDS}


async def test_the_same_triple_over_rest_twice_is_one_message(api: Api) -> None:
    ava = api.client("ava")
    thread = await make_thread(ava, "ben")
    body = message_body(thread["thread_id"])
    first = await ava.post("/api/messages", json=body)
    again = await ava.post("/api/messages", json=body)
    # Before the persister has it, and after
    async with api.fabric.persister():
        await api.fabric.reached(first.json()["seq"])
        later = await ava.post("/api/v1/messages", json=body)
        assert await bodies(ava, thread["thread_id"]) == ["hello"]
    assert [first.status_code, again.status_code, later.status_code] == [201, 200, 200]
    assert again.json() == later.json() == {**first.json(), "duplicate": True}
    assert later.headers["location"].startswith("/api/v1/messages/")


async def test_the_same_triple_at_the_same_moment_is_one_message(api: Api) -> None:
    ava = api.client("ava")
    thread = await make_thread(ava, "ben")
    body = message_body(thread["thread_id"])
    answers = await asyncio.gather(*(ava.post("/api/messages", json=body) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 201]
    assert len({answer.json()["seq"] for answer in answers}) == 1


async def test_the_same_triple_with_another_content_is_a_conflict(api: Api) -> None:
    ava = api.client("ava")
    thread = await make_thread(ava, "ben")
    body = message_body(thread["thread_id"])
    await ava.post("/api/messages", json=body)
    answer = await ava.post("/api/messages", json={**body, "body": "something else"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


async def test_history_is_paged_from_both_ends(api: Api) -> None:
    # Given seven messages
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    seqs = await api.fabric.send(ThreadId(thread_id), "ava", *"abcdefg")
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
        # Then each end can be read, both bounds are exclusive
        assert await bodies(ava, thread_id) == list("gfedcba")
        assert await bodies(ava, thread_id, limit=2) == ["g", "f"]
        assert await bodies(ava, thread_id, before=seqs[3]) == ["c", "b", "a"]
        assert await bodies(ava, thread_id, after=seqs[3]) == ["e", "f", "g"]
        assert await bodies(ava, thread_id, after=seqs[1], before=seqs[5]) == ["c", "d", "e"]
        assert await bodies(ava, thread_id, after=0, limit=2) == ["a", "b"]
        assert await bodies(ava, thread_id, before=seqs[0]) == []
        # And the cursors lead through all of it, in either direction
        assert await _walk(ava, thread_id, {}) == [["g", "f", "e"], ["d", "c", "b"], ["a"]]
        after_first = {"after": seqs[0]}
        assert await _walk(ava, thread_id, after_first) == [["b", "c", "d"], ["e", "f", "g"]]
        between = {"after": seqs[0], "before": seqs[5]}
        assert await _walk(ava, thread_id, between) == [["b", "c", "d"], ["e"]]
        below = {"before": seqs[5]}
        assert await _walk(ava, thread_id, below) == [["e", "d", "c"], ["b", "a"]]


async def _walk(
    client: httpx.AsyncClient, thread_id: str, first: dict[str, int]
) -> list[list[str]]:
    pages, query = [], dict[str, Any](first)
    while True:
        answer = await client.get(
            "/api/messages", params={"thread_id": thread_id, "limit": 3, **query}
        )
        pages.append([one["body"] for one in answer.json()["items"]])
        if answer.json()["next_cursor"] is None:
            return pages
        query = {"cursor": answer.json()["next_cursor"]}


async def test_a_member_sees_nothing_from_before_they_may(api: Api) -> None:
    # Given a thread whose second member may see it from its third message on
    ava, ben = api.client("ava"), api.client("ben")
    thread_id = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    seqs = await api.fabric.send(thread_id, "ava", "one", "two", "three")
    first = message_id(thread_id, UserId("ava"), client_message_id(new_id()))
    answering = await api.fabric.store([new_message(thread_id, "ava", "four", reply_to=first)])
    await api.fabric.pool.execute(
        "UPDATE thread_members SET visible_from = $1 WHERE user_id = 'ben'", seqs[2]
    )
    async with api.fabric.persister():
        await api.fabric.reached(answering[-1])
        hidden = (await ava.get("/api/messages", params={"thread_id": thread_id})).json()["items"][
            -1
        ]
        # Then no list, count, object or quote of his shows the older ones
        assert await bodies(ben, thread_id) == ["four", "three"]
        assert await bodies(ben, thread_id, after=0) == ["three", "four"]
        thread = (await ben.get(f"/api/threads/{thread_id}")).json()
        assert [one["body"] for one in thread["messages"]] == ["three", "four"]
        assert thread["unread"] == 2
        assert (await ben.get("/api/me")).json()["unread_total"] == 2
        assert (await ben.get(f"/api/messages/{hidden['message_id']}")).status_code == 404
        # Even one who names the id gets no quote of it
        answer = await ben.post(
            "/api/messages", json=message_body(thread_id, reply_to=hidden["message_id"])
        )
    assert (answer.json()["reply_to"], answer.json()["quote"]) == (hidden["message_id"], None)


async def test_a_reply_quotes_a_message_of_the_same_thread_only(api: Api) -> None:
    ava = api.client("ava")
    here = (await make_thread(ava, "ben"))["thread_id"]
    there = (await make_thread(ava, "cleo"))["thread_id"]
    asked = (await ava.post("/api/messages", json=message_body(here, "the question"))).json()
    async with api.fabric.persister():
        await api.fabric.reached(asked["seq"])
        reply = message_body(here, "the answer", reply_to=asked["message_id"])
        sent = (await ava.post("/api/messages", json=reply)).json()
        elsewhere = await ava.post(
            "/api/messages", json=message_body(there, reply_to=asked["message_id"])
        )
        await api.fabric.reached(elsewhere.json()["seq"])
        read = (await ava.get(f"/api/messages/{sent['message_id']}")).json()
    assert (
        read["quote"]
        == sent["quote"]
        == {
            "message_id": asked["message_id"],
            "sender_id": "ava",
            "body": "the question",
            "deleted": False,
        }
    )
    assert (elsewhere.status_code, elsewhere.json()["quote"]) == (201, None)


async def test_a_deleted_message_keeps_its_place_without_its_content(api: Api) -> None:
    # Given a message that was deleted after it was stored
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    body = message_body(thread_id, "secret", metadata={"a": 1})
    sent = (await ava.post("/api/messages", json=body)).json()
    async with api.fabric.persister():
        await api.fabric.reached(sent["seq"])
        await api.fabric.pool.execute("UPDATE messages SET deleted_at = now()")
        # Then it is shown empty everywhere, a retry of it included, and counts as nothing to read
        read = (await ava.get(f"/api/messages/{sent['message_id']}")).json()
        again = (await ava.post("/api/messages", json=body)).json()
        thread = (await api.client("ben").get(f"/api/threads/{thread_id}")).json()
    for shown in (read, again, thread["last_message"], thread["messages"][0]):
        assert (shown["body"], shown["metadata"], shown["seq"]) == ("", {}, sent["seq"])
        assert shown["deleted_at"] is not None
    assert thread["unread"] == 0


async def test_bad_messages_are_refused_before_anything_is_published(api: Api) -> None:
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    good = message_body(thread_id)
    ahead = f"{now_ms() + 120_000:012x}" + new_id()[12:]
    refused: list[tuple[dict[str, Any], int, str, str | None]] = [
        ({"thread_id": None}, 422, "invalid", "/thread_id"),
        ({"thread_id": 7}, 422, "invalid", "/thread_id"),
        ({"thread_id": "*"}, 404, "not_found", None),
        ({"thread_id": new_id()}, 404, "not_found", None),
        ({"thread_id": f"{thread_id}\0"}, 422, "invalid", "/thread_id"),
        ({"client_msg_id": "no"}, 422, "invalid", "/client_msg_id"),
        ({"client_msg_id": "0" * 32}, 422, "invalid", "/client_msg_id"),
        ({"client_msg_id": ahead}, 422, "invalid", "/client_msg_id"),
        ({"body": ""}, 422, "invalid", "/body"),
        ({"body": "x" * 4001}, 422, "invalid", "/body"),
        ({"body": "a\0b"}, 422, "invalid", "/body"),
        ({"body": 7}, 422, "invalid", "/body"),
        ({"metadata": {"a": "x" * 4096}}, 422, "invalid", "/metadata"),
        ({"metadata": {"a": [[[[[[[[1]]]]]]]]}}, 422, "invalid", None),
        ({"metadata": "x"}, 422, "invalid", "/metadata"),
        ({"reply_to": "x; DROP TABLE messages"}, 404, "not_found", None),
        ({"attachments": [{}]}, 422, "invalid", "/attachments/0"),
        ({"attachments": [{"clip_id": new_id()}]}, 404, "not_found", None),
        ({"attachments": [{"clip_id": "a"}] * 11}, 422, "invalid", "/attachments"),
    ]
    for change, status, code, path in refused:
        answer = await ava.post("/api/messages", json={**good, **change})
        assert (answer.status_code, answer.json()["code"]) == (status, code), change
        assert path in [None, *(one["path"] for one in answer.json()["errors"])], change
    missing = await ava.post("/api/messages", json={"body": "x", "thread_id": thread_id})
    assert missing.json()["errors"][0]["path"] == "/client_msg_id"
    info = await api.parts.bus.api("STREAM.INFO.MSG_0")
    assert info["state"]["messages"] == 0


async def test_an_archived_thread_takes_no_message(api: Api) -> None:
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    await ava.delete(f"/api/threads/{thread_id}")
    answer = await ava.post("/api/messages", json=message_body(thread_id))
    assert (answer.status_code, answer.json()["code"]) == (423, "thread_archived")


async def test_in_a_broadcast_only_the_owner_writes(api: Api) -> None:
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben", kind="broadcast"))["thread_id"]
    assert (await ava.post("/api/messages", json=message_body(thread_id))).status_code == 201
    answer = await api.client("ben").post("/api/messages", json=message_body(thread_id))
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


async def test_without_nats_a_message_is_unavailable_and_not_half_sent(fabric: Fabric) -> None:
    async with running_api(fabric, messaging_publish_budget=1.0) as api:
        ava = api.client("ava")
        thread_id = (await make_thread(ava, "ben"))["thread_id"]
        body = message_body(thread_id)
        fabric.nats.kill9()
        answer = await ava.post("/api/messages", json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        # When NATS is back, the same ids store it once
        fabric.nats.start()

        async def sent() -> bool:
            return (await ava.post("/api/messages", json=body)).status_code in (200, 201)

        await eventually(sent, within_s=20)
        assert (await ava.post("/api/messages", json=body)).json()["duplicate"] is True
