"""Editing and deleting messages: who may, what it does, and that doing it again does nothing."""

import asyncio
import time
from typing import Any

import httpx
import msgspec
import pytest

from api.message_changes import delete_message, edit_message
from api.problems import ProblemError
from shared.cursors import decode_cursor
from shared.identity import ThreadId, UserId, new_id
from shared.subjects import msg_subject
from tests.api.support import Api, make_thread, message_body
from tests.support.fabric import new_message


async def sent(client: httpx.AsyncClient, thread_id: str, body: str = "hello") -> dict[str, Any]:
    """Send a message over REST and return it."""
    answer = await client.post("/api/messages", json=message_body(thread_id, body))
    made: dict[str, Any] = answer.json()
    return made


async def events(api: Api, thread_id: str) -> list[dict[str, Any]]:
    """Return the events of a thread in the log, messages left out."""
    page = await api.parts.bus.get_range(
        "MSG_0", msg_subject(ThreadId(thread_id)), from_seq=0, max_messages=99, max_bytes=100_000
    )
    found = [{"seq": one.seq, **msgspec.json.decode(one.payload)} for one in page.messages]
    return [event for event in found if event["type"] != "message.new"]


async def test_an_edit_is_in_the_log_and_answered_with_the_message_as_it_is_then(api: Api) -> None:
    # Given a message, just sent, which the persister may not have seen yet
    ava, ben = api.client("ava"), api.client("ben")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    async with api.fabric.persister():
        message = await sent(ava, thread_id)
        path = f"/api/messages/{message['message_id']}"
        # When its author edits it
        answer = await ava.put(path, json={"body": "better"})
        # Then the answer is the message with its new text, at its old place
        assert answer.status_code == 200
        edited = answer.json()
        assert edited["edited_at"] is not None
        assert edited == {
            **{name: value for name, value in message.items() if name != "duplicate"},
            "body": "better",
            "edited_at": edited["edited_at"],
        }
        # And the log has the event, at the position that the answer names
        [event] = await events(api, thread_id)
        assert (event["type"], event["body"], event["editor_id"]) == (
            "message.updated",
            "better",
            "ava",
        )
        position = answer.headers["messaging-cursor"]
        assert decode_cursor(ThreadId(thread_id), position) == event["seq"]
        # And whoever knows that position reads it
        read = await ben.get(path, headers={"Messaging-Cursor": position})
        assert read.json() == edited


async def test_the_same_edit_again_is_acknowledged_and_makes_no_event(api: Api) -> None:
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    async with api.fabric.persister():
        path = f"/api/messages/{(await sent(ava, thread_id))['message_id']}"
        unchanged = await ava.put(path, json={"body": "hello"})
        first = await ava.put(path, json={"body": "better"})
        again = await ava.put(path, json={"body": "better"})
        at_once = await asyncio.gather(*(ava.put(path, json={"body": "best"}) for _ in range(4)))
        back = await ava.put(path, json={"body": "better"})
    assert unchanged.json()["edited_at"] is None
    assert again.json() == first.json()
    assert again.headers["messaging-cursor"] == first.headers["messaging-cursor"]
    assert len({answer.text for answer in at_once}) == 1
    assert len({answer.headers["messaging-cursor"] for answer in at_once}) == 1
    # An earlier text is an edit like any other
    assert back.headers["messaging-cursor"] != first.headers["messaging-cursor"]
    found = [event["body"] for event in await events(api, thread_id)]
    assert found == ["better", "best", "better"]


async def test_only_the_author_edits_and_an_admin_may_delete(api: Api) -> None:
    ava, ben, cleo = api.client("ava"), api.client("ben"), api.client("cleo")
    thread_id = (await make_thread(ava, "ben", "cleo"))["thread_id"]
    async with api.fabric.persister():
        message = await sent(ben, thread_id)
        path = f"/api/messages/{message['message_id']}"
        for client in (ava, cleo):
            refused = await client.put(path, json={"body": "mine"})
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        refused = await cleo.delete(path)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert await events(api, thread_id) == []
        # The owner deletes another's, an admin too
        assert (await ava.delete(path)).status_code == 204
        members = f"/api/threads/{thread_id}/members"
        assert (await ava.post(members, json={"user_id": "cleo", "role": "admin"})).is_success
        second = await sent(ben, thread_id)
        assert (await cleo.delete(f"/api/messages/{second['message_id']}")).status_code == 204
        # And nobody edits what the system said
        event = new_message(ThreadId(thread_id), "ava", "welcome", kind="system")
        await api.fabric.store([event])
        answer = await ava.put(f"/api/messages/{event.message_id}", json={"body": "no"})
        assert answer.status_code == 403


async def test_deleted_is_final_and_deleting_again_is_acknowledged(api: Api) -> None:
    ava, ben = api.client("ava"), api.client("ben")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    async with api.fabric.persister():
        message = await sent(ava, thread_id, "a secret")
        path = f"/api/messages/{message['message_id']}"
        assert (await ava.put(path, json={"body": "a worse secret"})).is_success
        # When it is deleted, three times, twice of it at the same moment
        first = await asyncio.gather(ava.delete(path), ava.delete(path))
        again = await ava.delete(path)
        # Then each is acknowledged with the one event
        assert [one.status_code for one in (*first, again)] == [204, 204, 204]
        assert len({one.headers["messaging-cursor"] for one in (*first, again)}) == 1
        assert [event["type"] for event in await events(api, thread_id)] == [
            "message.updated",
            "message.deleted",
        ]
        # And its place stays, its content is gone everywhere, it cannot be edited any more
        position = {"Messaging-Cursor": again.headers["messaging-cursor"]}
        read = await ben.get(path, headers=position)
        assert (read.json()["body"], read.json()["seq"]) == ("", message["seq"])
        assert read.json()["deleted_at"] is not None
        history = await ben.get(f"{path}/history")
        assert history.json() == {"items": [], "next_cursor": None}
        edit = await ava.put(path, json={"body": "back"})
        assert (edit.status_code, edit.json()["code"]) == (410, "gone")


async def test_in_an_archived_thread_nothing_is_edited_but_things_can_be_deleted(api: Api) -> None:
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    async with api.fabric.persister():
        path = f"/api/messages/{(await sent(ava, thread_id))['message_id']}"
        assert (await ava.put(path, json={"body": "edited"})).is_success
        await ava.delete(f"/api/threads/{thread_id}")
        refused = await ava.put(path, json={"body": "late"})
        assert (refused.status_code, refused.json()["code"]) == (423, "thread_archived")
        # What took effect before is still acknowledged
        assert (await ava.put(path, json={"body": "edited"})).status_code == 200
        assert (await ava.delete(path)).status_code == 204


IMPOSSIBLE: tuple[tuple[object, int, str], ...] = (
    ({"body": "x" * 4001}, 422, "invalid"),
    ({"body": ""}, 422, "invalid"),
    ({"body": "\0"}, 422, "invalid"),
    ({"body": 1}, 422, "invalid"),
    ({}, 422, "invalid"),
    ([], 400, "bad_frame"),
)


async def test_impossible_edits_and_scopes_change_nothing(api: Api) -> None:
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    async with api.fabric.persister():
        path = f"/api/messages/{(await sent(ava, thread_id))['message_id']}"
        for body, status, code in IMPOSSIBLE:
            answer = await ava.put(path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (status, code), body
        assert (await ava.delete(path, params={"scope": "none"})).status_code == 422
        assert (await ava.put(path, json={"body": "y" * 4000})).is_success
    assert len(await events(api, thread_id)) == 1


async def test_what_cannot_be_decided_is_unavailable_and_what_is_nowhere_is_not_found(
    api: Api,
) -> None:
    # Given a message that the persister has not read
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    message = await sent(ava, thread_id)
    path = f"/api/messages/{message['message_id']}"
    # When it is edited, and it cannot be known whether it was deleted meanwhile
    started = time.monotonic()
    answer = await ava.put(path, json={"body": "better"})
    # Then it is unavailable after two seconds, and nothing was stored
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    assert 1.5 < time.monotonic() - started < 6
    assert await events(api, thread_id) == []
    # A persister that comes in time is waited for
    waiting = asyncio.ensure_future(ava.put(path, json={"body": "better"}))
    async with api.fabric.persister():
        assert (await waiting).status_code == 200
        # And with everything read, an id of nothing is not found
        assert (await ava.put(f"/api/messages/{new_id()}", json={"body": "x"})).status_code == 404
        assert (await ava.delete(f"/api/messages/{new_id()}")).status_code == 404


async def test_an_edit_is_not_decided_on_a_state_that_was_overtaken(api: Api) -> None:
    # Given a message whose edit is in the log, unread by the persister
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    async with api.fabric.persister():
        message = await sent(ava, thread_id, "one")
        await api.fabric.reached(message["seq"])
    path = f"/api/messages/{message['message_id']}"
    overtaking = asyncio.ensure_future(ava.put(path, json={"body": "two"}))
    assert (await overtaking).status_code == 200
    # When the text is to be what PostgreSQL still has
    waiting = asyncio.ensure_future(ava.put(path, json={"body": "one"}))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    async with api.fabric.persister():
        answer = await waiting
        # Then it is an edit, not a repetition of nothing
        assert [event["body"] for event in await events(api, thread_id)] == ["two", "one"]
        read = await ava.get(path, headers={"Messaging-Cursor": answer.headers["messaging-cursor"]})
    assert read.json()["body"] == "one"


async def test_the_versions_of_a_message_are_listed_oldest_first(api: Api) -> None:
    ava, ben = api.client("ava"), api.client("ben")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    async with api.fabric.persister():
        message = await sent(ava, thread_id, "v1")
        path = f"/api/messages/{message['message_id']}/history"
        await api.fabric.reached(message["seq"])
        never_edited = (await ben.get(path)).json()
        edited = f"/api/messages/{message['message_id']}"
        await ava.put(edited, json={"body": "v2"})
        answer = await ava.put(edited, json={"body": "v3"})
        position = {"Messaging-Cursor": answer.headers["messaging-cursor"]}
        whole = (await ben.get(path, headers=position)).json()
        first = (await ben.get(path, params={"limit": 2})).json()
        rest = (await ben.get(path, params={"limit": 2, "cursor": first["next_cursor"]})).json()
        bad = await ben.get(path, params={"cursor": "x"})
    original = {
        "version": 1,
        "body": "v1",
        "edited_at": message["sent_at"],
        "editor_id": "ava",
    }
    assert never_edited == {"items": [original], "next_cursor": None}
    assert [(one["version"], one["body"]) for one in whole["items"]] == [
        (1, "v1"),
        (2, "v2"),
        (3, "v3"),
    ]
    assert whole["items"][0] == original
    assert whole["items"][2]["edited_at"] == answer.json()["edited_at"]
    assert first["items"] + rest["items"] == whole["items"]
    assert rest["next_cursor"] is None
    assert bad.status_code == 422


async def test_a_command_that_names_its_thread_finds_the_message_only_there(api: Api) -> None:
    # The WebSocket's commands name both; one message in the other's thread does not exist.
    ava = api.client("ava")
    here = (await make_thread(ava, "ben"))["thread_id"]
    there = (await make_thread(ava, "ben"))["thread_id"]
    async with api.fabric.persister():
        message_id = (await sent(ava, here))["message_id"]
        user = UserId("ava")
        effect = await edit_message(api.parts, user, message_id, "better", thread_id=here)
        assert effect.message.body == "better"
        for thread_id in (there, new_id(), "x"):
            with pytest.raises(ProblemError, match="nothing here"):
                await edit_message(api.parts, user, message_id, "no", thread_id=thread_id)
            with pytest.raises(ProblemError, match="nothing here"):
                await delete_message(api.parts, user, message_id, thread_id=thread_id)
