"""Members: who adds and removes whom, what everybody is told and in which order, and where reading ends."""

import asyncio
from typing import Any, Final

import httpx
import msgspec
import pytest

from shared.bus import Bus, KvConflictError
from shared.identity import ThreadId
from shared.subjects import invalidation_subject, live_subject, msg_subject
from tests.api.support import Api, entry_of, make_thread, message_body, running_api
from tests.support.eventually import eventually
from tests.support.fabric import Fabric

NOT_A_MEMBER: Final = (404, "not_found")


def code_of(answer: httpx.Response) -> tuple[int, str]:
    """Return status and code of a refusal."""
    return answer.status_code, answer.json()["code"]


async def events(api: Api, thread_id: str) -> list[dict[str, Any]]:
    """Return everything that the log holds of a thread."""
    page = await api.parts.bus.get_range(
        "MSG_0", msg_subject(ThreadId(thread_id)), from_seq=0, max_messages=999, max_bytes=1 << 20
    )
    assert not page.more
    return [{"seq": one.seq, **msgspec.json.decode(one.payload)} for one in page.messages]


async def changes(api: Api, thread_id: str) -> list[tuple[str, str, str, str]]:
    """Return (whom, role, change, by) of the changes of members in the log."""
    return [
        (event["user_id"], event["role"], event["change"], event["by"])
        for event in await events(api, thread_id)
        if event["type"] == "thread.member"
    ]


async def listening(api: Api, *subjects: str) -> tuple[Bus, list[tuple[str, dict[str, Any]]]]:
    """Listen as an edge does; returns the connection and what it has heard so far, in order."""
    bus = await api.fabric.bus("edge")
    heard: list[tuple[str, dict[str, Any]]] = []

    def hear(subject: bytes, _reply: bytes, _headers: bytes, payload: bytes) -> None:
        heard.append((subject.decode().split(".")[0], msgspec.json.decode(payload)))

    for subject in subjects:
        bus.subscribe(subject, hear)
    await bus.flush()
    return bus, heard


async def test_a_new_member_is_let_in_told_and_shown_in_this_order(api: Api) -> None:
    # Given a group
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben", title="plans"))["thread_id"]
    bus, heard = await listening(
        api,
        invalidation_subject("access"),
        live_subject(ThreadId(thread_id)),
        "user.cleo",
        "user.ben",
    )
    # When its owner adds somebody, twice
    path = f"/api/threads/{thread_id}/members"
    first = await ava.post(path, json={"user_id": "cleo"})
    again = await ava.post(path, json={"user_id": "cleo"})
    # Then they joined once
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.headers["location"] == f"{path}/cleo"
    assert first.json()["role"] == "member"
    assert again.json() == first.json()
    # And edges learn of the entry, the thread of its member, the member of the thread
    await eventually(lambda: len(heard) == 3)
    await bus.close()
    assert [kind for kind, _ in heard] == ["inv", "live", "user"]
    entry, event, frame = (payload for _, payload in heard)
    assert (entry["revision"], set(entry["members"])) == (2, {"ava", "ben", "cleo"})
    assert await changes(api, thread_id) == [("cleo", "member", "joined", "ava")]
    assert event["at"] == first.json()["joined_at"]
    assert (frame["type"], frame["thread"]["thread_id"]) == ("thread.created", thread_id)
    assert frame["thread"]["title"] == "plans"
    assert (await api.client("cleo").get(f"/api/threads/{thread_id}")).status_code == 200


async def test_roles_decide_who_may_do_what(api: Api) -> None:
    # Given an owner, two admins and two members
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "al", "bo", "cy", "di"))["thread_id"]
    path = f"/api/threads/{thread_id}/members"
    for admin in ("al", "bo"):
        assert (await ava.post(path, json={"user_id": admin, "role": "admin"})).status_code == 200
    al, cy = api.client("al"), api.client("cy")
    forbidden = (403, "forbidden")
    # Then members change nobody
    assert code_of(await cy.post(path, json={"user_id": "new"})) == forbidden
    assert code_of(await cy.post(path, json={"user_id": "di", "role": "admin"})) == forbidden
    assert code_of(await cy.delete(f"{path}/di")) == forbidden
    # Admins change members, neither each other nor the owner, and make no admins
    assert (await al.post(path, json={"user_id": "new"})).status_code == 201
    assert (await al.delete(f"{path}/new")).status_code == 204
    assert code_of(await al.post(path, json={"user_id": "cy", "role": "admin"})) == forbidden
    assert code_of(await al.post(path, json={"user_id": "neo", "role": "admin"})) == forbidden
    assert code_of(await al.post(path, json={"user_id": "bo", "role": "member"})) == forbidden
    assert code_of(await al.post(path, json={"user_id": "al", "role": "owner"})) == forbidden
    assert code_of(await al.delete(f"{path}/bo")) == forbidden
    assert code_of(await al.delete(f"{path}/ava")) == forbidden
    # The owner changes all, and stays the owner of a thread of theirs until it is handed over
    assert (await ava.post(path, json={"user_id": "bo", "role": "member"})).json()["role"] == (
        "member"
    )
    assert code_of(await ava.post(path, json={"user_id": "ava", "role": "member"})) == forbidden
    assert code_of(await ava.post(path, json={"user_id": "neo", "role": "owner"}))[0] == 422
    assert (await ava.delete(f"{path}/al")).status_code == 204
    assert code_of(await ava.delete(f"{path}/ava")) == (409, "conflict")


async def test_the_owner_leaves_after_handing_the_thread_over(api: Api) -> None:
    ava, ben = api.client("ava"), api.client("ben")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    path = f"/api/threads/{thread_id}/members"
    assert (await ava.post(path, json={"user_id": "ben", "role": "owner"})).json()["role"] == (
        "owner"
    )
    assert (await ben.get(f"/api/threads/{thread_id}")).json()["owner_id"] == "ben"
    entry = await entry_of(api, "access", thread_id)
    assert (entry["owner_id"], entry["members"]["ava"]["role"]) == ("ben", "admin")
    assert (await ava.delete(f"{path}/ava")).status_code == 204
    assert await changes(api, thread_id) == [
        ("ben", "owner", "role", "ava"),
        ("ava", "admin", "role", "ava"),
        ("ava", "admin", "left", "ava"),
    ]
    assert code_of(await ava.get(f"/api/threads/{thread_id}")) == NOT_A_MEMBER


async def test_removal_is_the_entry_then_the_event_then_the_word_to_their_sessions(
    api: Api,
) -> None:
    # Given a member with unread messages here and elsewhere
    ava = api.client("ava")
    thread_id = ThreadId((await make_thread(ava, "ben", "cleo"))["thread_id"])
    other = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    await api.fabric.send(other, "ava", "unread")
    seqs = await api.fabric.send(thread_id, "ava", "one", "two")
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
    bus, heard = await listening(
        api,
        invalidation_subject("access"),
        live_subject(thread_id),
        "user.ben",
        "user.cleo",
    )
    # When the owner removes them, twice
    path = f"/api/threads/{thread_id}/members/ben"
    assert [(await ava.delete(path)).status_code for _ in range(2)] == [204, 204]
    # Then first nobody lets them in, then their reading ends, then their sessions hear of it, once
    await eventually(lambda: len(heard) == 3)
    await bus.close()
    assert [kind for kind, _ in heard] == ["inv", "live", "user"]
    entry, event, frame = (payload for _, payload in heard)
    assert set(entry["members"]) == {"ava", "cleo"}
    assert (event["type"], event["change"]) == ("thread.member", "removed")
    assert frame == {
        "type": "thread.activity",
        "thread_id": thread_id,
        "cursor": frame["cursor"],
        "unread": 0,
        "unread_total": 1,
        "last_message": None,
        "me": {"removed": True},
    }
    assert await changes(api, thread_id) == [("ben", "member", "removed", "ava")]


async def test_an_ex_member_finds_nothing_anywhere(api: Api) -> None:
    ava, ben = api.client("ava"), api.client("ben")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    async with api.fabric.persister():
        message = (await ben.post("/api/messages", json=message_body(thread_id))).json()
        await api.fabric.reached(message["seq"])
        assert (await ben.delete(f"/api/threads/{thread_id}/members/ben")).status_code == 204
        thread, own = f"/api/threads/{thread_id}", f"/api/messages/{message['message_id']}"
        answers = [
            await ben.get(thread),
            await ben.get(thread, headers={"Messaging-Cursor": message["cursor"]}),
            await ben.get(f"{thread}/members"),
            await ben.get(f"{thread}/changes"),
            await ben.patch(thread, json={"title": "x"}),
            await ben.post(f"{thread}/members", json={"user_id": "ben"}),
            await ben.delete(f"{thread}/members/ben"),
            await ben.get(f"/api/messages?thread_id={thread_id}"),
            await ben.get(own),
            await ben.get(f"{own}/history"),
            await ben.put(own, json={"body": "x"}),
            await ben.delete(own),
            await ben.post("/api/messages", json=message_body(thread_id)),
        ]
        assert {code_of(answer) for answer in answers} == {NOT_A_MEMBER}
        assert (await ben.get("/api/threads")).json()["items"] == []
        assert (await ben.get("/api/me")).json()["unread_total"] == 0


@pytest.mark.parametrize(("history", "seen"), [("joined", ["later"]), ("all", ["old", "later"])])
async def test_who_joins_sees_what_the_thread_shows_to_newcomers(
    api: Api, history: str, seen: list[str]
) -> None:
    # Given a group with a past
    ava, cleo = api.client("ava"), api.client("cleo")
    thread_id = ThreadId((await make_thread(ava, "ben", history=history))["thread_id"])
    path = f"/api/threads/{thread_id}/members"
    await api.fabric.send(thread_id, "ava", "old")
    # When somebody joins
    await ava.post(path, json={"user_id": "cleo"})
    seqs = await api.fabric.send(thread_id, "ava", "later")
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
    # Then they see that, and their changes begin with the join, behind nothing
    listed = (await cleo.get("/api/messages", params={"thread_id": thread_id, "after": 0})).json()
    assert [one["body"] for one in listed["items"]] == seen
    changed = (await cleo.get(f"/api/threads/{thread_id}/changes?after=0")).json()
    types = [one["type"] for one in changed["items"]]
    assert types[-2:] == ["thread.member", "message.new"]
    assert len(types) == len(seen) + 1
    assert changed["items"][0]["prev_seq"] == 0


async def test_who_joins_again_sees_from_the_last_join_on(api: Api) -> None:
    ava, ben = api.client("ava"), api.client("ben")
    thread_id = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    path = f"/api/threads/{thread_id}/members"
    await api.fabric.send(thread_id, "ava", "before")
    await ava.delete(f"{path}/ben")
    await api.fabric.send(thread_id, "ava", "meanwhile")
    assert (await ava.post(path, json={"user_id": "ben", "role": "admin"})).status_code == 201
    seqs = await api.fabric.send(thread_id, "ava", "after")
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
    listed = (await ben.get("/api/messages", params={"thread_id": thread_id})).json()["items"]
    assert [one["body"] for one in listed] == ["after"]
    entry = await entry_of(api, "access", thread_id)
    assert entry["members"]["ben"]["visible_from"] > seqs[0] - 2
    assert entry["members"]["ben"]["role"] == "admin"
    thread = (await ben.get(f"/api/threads/{thread_id}")).json()
    assert (thread["unread"], thread["participant_count"]) == (1, 2)


async def test_a_direct_thread_keeps_its_two(api: Api) -> None:
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben", kind="direct"))["thread_id"]
    path = f"/api/threads/{thread_id}/members"
    assert code_of(await ava.post(path, json={"user_id": "cleo"})) == (422, "invalid")
    assert code_of(await ava.delete(f"{path}/ava")) == (422, "invalid")
    assert code_of(await ava.delete(f"{path}/ben")) == (422, "invalid")
    assert await events(api, thread_id) == []


async def test_impossible_members_are_refused(api: Api) -> None:
    ava = api.client("ava")
    thread_id = (await make_thread(ava, *(f"u{number}" for number in range(498))))["thread_id"]
    path = f"/api/threads/{thread_id}/members"
    for body in ({"user_id": "a b"}, {"user_id": 1}, {}, {"user_id": "x", "role": "king"}):
        assert code_of(await ava.post(path, json=body)) == (422, "invalid"), body
    assert (await ava.post(path, json={"user_id": "the_500th"})).status_code == 201
    assert code_of(await ava.post(path, json={"user_id": "one_more"})) == (422, "limit_reached")
    for nobody in ("never_there", "a%20b", "*"):
        assert code_of(await ava.delete(f"{path}/{nobody}")) == NOT_A_MEMBER


async def test_adding_with_an_idempotency_key_is_answered_alike(api: Api) -> None:
    ava = api.client("ava")
    one, two = [(await make_thread(ava, "ben"))["thread_id"] for _ in range(2)]
    key = {"Idempotency-Key": "k1"}
    answers = [
        await ava.post(f"/api/threads/{thread_id}/members", json={"user_id": "cy"}, headers=key)
        for thread_id in (one, one, two)
    ]
    # The same key names another request in another thread
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [
        None,
        "true",
        None,
    ]
    assert answers[0].json() == answers[1].json()
    assert len(await changes(api, one)) == 1
    # A refused request gives its key back
    refused = await api.client("ben").post(
        f"/api/threads/{one}/members", json={"user_id": "di"}, headers=key
    )
    assert refused.status_code == 403


async def test_changes_of_members_at_the_same_moment_leave_one_truth(api: Api) -> None:
    # Given ten people who come and go at once
    ava = api.client("ava")
    thread_id = (await make_thread(ava, *(f"old{n}" for n in range(5))))["thread_id"]
    path = f"/api/threads/{thread_id}/members"
    await asyncio.gather(
        *(ava.post(path, json={"user_id": f"new{n}"}) for n in range(5)),
        *(ava.delete(f"{path}/old{n}") for n in range(5)),
        *(ava.post(path, json={"user_id": "new0", "role": "admin"}) for _ in range(3)),
    )
    await eventually(lambda: _drained(api))
    # Then the entry, the table and the log say the same
    entry = await entry_of(api, "access", thread_id)
    rows = await api.fabric.pool.fetch(
        "SELECT user_id, role FROM thread_members WHERE removed_at IS NULL"
    )
    members: dict[str, str] = {"ava": "owner"} | {f"old{n}": "member" for n in range(5)}
    for user_id, role, change, _by in await changes(api, thread_id):
        if change in ("left", "removed"):
            del members[user_id]
        else:
            members[user_id] = role
    assert {user: one["role"] for user, one in entry["members"].items()} == members
    assert {row["user_id"]: row["role"] for row in rows} == members


async def test_a_thread_handed_over_twice_at_the_same_moment_has_one_owner(api: Api) -> None:
    ava = api.client("ava")
    for _ in range(5):
        thread_id = (await make_thread(ava, "ben", "cleo"))["thread_id"]
        path = f"/api/threads/{thread_id}/members"
        # When both get it
        answers = await asyncio.gather(
            ava.post(path, json={"user_id": "ben", "role": "owner"}),
            ava.post(path, json={"user_id": "cleo", "role": "owner"}),
            ava.patch(f"/api/threads/{thread_id}", json={"title": "mine"}),
        )
        # Then the second finds the owner an admin
        assert sorted(answer.status_code for answer in answers[:2]) == [200, 403]
        owners = await api.fabric.pool.fetch(
            "SELECT user_id FROM thread_members WHERE thread_id = $1 AND role = 'owner'", thread_id
        )
        entry = await entry_of(api, "access", thread_id)
        assert [row["user_id"] for row in owners] == [entry["owner_id"]]


async def test_somebody_removed_a_moment_ago_changes_nothing_any_more(api: Api) -> None:
    # Given the lock of a thread, held by the removal of one of its admins
    ava, ben = api.client("ava"), api.client("ben")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    await ava.post(f"/api/threads/{thread_id}/members", json={"user_id": "ben", "role": "admin"})
    async with api.fabric.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM threads WHERE thread_id = $1 FOR UPDATE", thread_id)
        await connection.execute(
            "UPDATE thread_members SET removed_at = now() WHERE user_id = 'ben'"
        )
        # When that admin's own changes wait for it
        waiting = [
            asyncio.ensure_future(ben.patch(f"/api/threads/{thread_id}", json={"title": "x"})),
            asyncio.ensure_future(
                ben.post(f"/api/threads/{thread_id}/members", json={"user_id": "di"})
            ),
        ]
        await asyncio.sleep(0.2)
        assert not any(one.done() for one in waiting)
    # Then they find nothing
    answers = await asyncio.gather(*waiting)
    assert {code_of(answer) for answer in answers} == {NOT_A_MEMBER}


async def test_reading_ends_exactly_at_the_removal_while_others_go_on_sending(api: Api) -> None:
    # Given somebody who writes without a pause, and an edge's view of it
    ava, ben = api.client("ava"), api.client("ben")
    thread_id = ThreadId((await make_thread(ava, "ben", "cleo"))["thread_id"])
    bus, heard = await listening(api, live_subject(thread_id), invalidation_subject("access"))
    acked: list[int] = []

    async def write(client: httpx.AsyncClient) -> None:
        for _ in range(25):
            answer = await client.post("/api/messages", json=message_body(thread_id))
            if answer.status_code == 201:
                acked.append(answer.json()["seq"])
            else:
                assert code_of(answer) == NOT_A_MEMBER

    async with api.fabric.persister():
        writing = [asyncio.ensure_future(write(client)) for client in (ava, ben)]
        await eventually(lambda: len(acked) > 10)
        # When they are removed meanwhile
        assert (await ava.delete(f"/api/threads/{thread_id}/members/ben")).status_code == 204
        refused = await ben.get(f"/api/threads/{thread_id}/changes")
        await asyncio.gather(*writing)
        # Then there is one place in the log where their reading ends, and nothing acknowledged was lost
        log = await events(api, thread_id)
        [removal] = [event["seq"] for event in log if event["type"] == "thread.member"]
        assert code_of(refused) == NOT_A_MEMBER
        assert {event["seq"] for event in log if event["type"] == "message.new"} == set(acked)
        assert any(seq > removal for seq in acked)
        await api.fabric.reached(max(acked))
        assert sorted(seq for seq, _ in await api.fabric.history(thread_id)) == sorted(acked)
        # And the entry was there before it: no edge let them in behind that place
        await eventually(lambda: sum(kind == "live" for kind, _ in heard) == len(log))
        await bus.close()
        kinds = [kind if kind == "inv" else payload["type"] for kind, payload in heard]
        assert kinds.index("inv") < kinds.index("thread.member")
        # Joining again begins behind it
        assert (
            await ava.post(f"/api/threads/{thread_id}/members", json={"user_id": "ben"})
        ).status_code == 201
        again = (await ben.get(f"/api/threads/{thread_id}/changes")).json()
        assert all(item["seq"] > removal for item in again["items"])


async def test_a_removal_that_nobody_heard_of_yet_is_told_by_the_background_relay(
    fabric: Fabric,
) -> None:
    # Given a removal whose entry cannot be written
    async with running_api(fabric, relays=False) as api:
        ava = api.client("ava")
        thread_id = (await make_thread(ava, "ben"))["thread_id"]
        publish = api.parts.outbox._publish

        async def refuses(*_rows: object) -> None:
            raise KvConflictError("access", thread_id, expected=1)

        api.parts.outbox._publish = refuses
        answer = await ava.delete(f"/api/threads/{thread_id}/members/ben")
        # Then the change is kept, its author waits, and the event does not overtake the entry
        assert code_of(answer) == (503, "unavailable")
        assert await changes(api, thread_id) == []
        assert code_of(await api.client("ben").get(f"/api/threads/{thread_id}")) == NOT_A_MEMBER
        api.parts.outbox._publish = publish
    # And another api tells it
    async with running_api(fabric) as api:
        await eventually(lambda: _drained(api))
        assert await changes(api, thread_id) == [("ben", "member", "removed", "ava")]
        assert set((await entry_of(api, "access", thread_id))["members"]) == {"ava"}


async def _drained(api: Api) -> bool:
    return await api.fabric.count("api_outbox") == 0
