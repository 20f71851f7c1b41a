"""``GET /api/threads/{id}/changes``: a state and its changes are the state as it is now."""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx
import msgspec

from shared.cursors import encode_cursor
from shared.events import (
    AnyThreadEvent,
    MessageDeleted,
    MessageNew,
    MessageUpdated,
    ThreadArchived,
    ThreadChanged,
    ThreadMember,
    timestamp,
)
from shared.identity import ThreadId, new_id
from tests.api.support import Api, make_thread
from tests.support.fabric import new_message

Frame = dict[str, Any]
State = dict[str, tuple[int, str, bool]]
"""By message id: seq, body, deleted."""


def edit(message: MessageNew, body: str) -> MessageUpdated:
    """Return an edit by the author."""
    return MessageUpdated(
        message.thread_id, new_id(), message.message_id, body, timestamp(), message.sender_id
    )


def deletion(message: MessageNew) -> MessageDeleted:
    """Return a deletion by the author."""
    return MessageDeleted(
        message.thread_id, new_id(), message.message_id, timestamp(), message.sender_id
    )


def folded(state: State, events: Sequence[tuple[int, AnyThreadEvent]]) -> State:
    """Return a state after events of the log, as the protocol says what each means."""
    after = dict(state)
    for seq, event in events:
        if isinstance(event, MessageNew):
            after[event.message_id] = (seq, event.body, False)
        elif isinstance(event, MessageUpdated) and not after[event.message_id][2]:
            after[event.message_id] = (after[event.message_id][0], event.body, False)
        elif isinstance(event, MessageDeleted):
            after[event.message_id] = (after[event.message_id][0], "", True)
    return after


def merged(state: State, frames: Sequence[Frame]) -> State:
    """Return a state after frames, as a client applies them."""
    after = dict(state)
    for frame in frames:
        if frame["type"] == "message.new":
            deleted = frame["deleted_at"] is not None
            after[frame["message_id"]] = (frame["seq"], frame["body"], deleted)
        elif frame["type"] == "message.updated":
            after[frame["message_id"]] = (after[frame["message_id"]][0], frame["body"], False)
        elif frame["type"] == "message.deleted":
            after[frame["message_id"]] = (after[frame["message_id"]][0], "", True)
    return after


async def read_all(
    client: httpx.AsyncClient, thread_id: ThreadId, after: str, limit: int = 200
) -> tuple[list[Frame], str]:
    """Read all pages, and return the frames and the cursor of the last page."""
    path = f"/api/threads/{thread_id}/changes"
    frames: list[Frame] = []
    query: dict[str, Any] = {"after": after, "limit": limit}
    while True:
        page = (await client.get(path, params=query)).json()
        frames += page["items"]
        if page["next_cursor"] is None:
            return frames, page["cursor"]
        assert len(page["items"]) == limit
        query["cursor"] = page["next_cursor"]


def random_event(
    choose: random.Random, thread_id: ThreadId, messages: list[MessageNew]
) -> AnyThreadEvent:
    """Return any event that may come next in a thread, also such that change nothing."""
    kind = choose.choice(["new", "new", "edit", "edit", "delete", "title", "archive", "member"])
    if kind == "new" or not messages:
        messages.append(new_message(thread_id, choose.choice(["ava", "ben"]), f"m{len(messages)}"))
        return messages[-1]
    if kind == "edit":
        return edit(choose.choice(messages), f"e{choose.random()}")
    if kind == "delete":
        return deletion(choose.choice(messages))
    if kind == "title":
        return ThreadChanged(thread_id, new_id(), timestamp(), "ava", {"title": "x"})
    if kind == "archive":
        return ThreadArchived(thread_id, new_id(), timestamp(), "ava", "user")
    return ThreadMember(thread_id, new_id(), timestamp(), "ava", "cleo", "member", "joined")


async def test_any_state_and_its_changes_are_the_fold_of_the_log(api: Api) -> None:
    # Given random histories of everything that can happen in a thread
    ava = api.client("ava")
    async with api.fabric.persister():
        for seed in range(6):
            choose = random.Random(seed)
            thread_id = ThreadId((await make_thread(ava, "ben"))["thread_id"])
            messages: list[MessageNew] = []
            events = [random_event(choose, thread_id, messages) for _ in range(60)]
            seqs = await api.fabric.store(events)
            await api.fabric.reached(seqs[-1])
            log = list(zip(seqs, events, strict=True))
            now = folded({}, log)
            # When a client was away since any moment of it, and reads in pages of any size
            for known in (0, choose.randrange(60), choose.randrange(60), 60):
                after = encode_cursor(thread_id, seqs[known - 1]) if known else "0"
                frames, cursor = await read_all(ava, thread_id, after, choose.choice([1, 7, 200]))
                # Then what it knew and what it is told are the state as it is now
                assert merged(folded({}, log[:known]), frames) == now, (seed, known)
                assert cursor == encode_cursor(thread_id, seqs[-1])
                # And the frames are in the order of the log, each linked to the one before
                places = [frame["seq"] for frame in frames]
                assert places == sorted(set(places))
                since = seqs[known - 1] if known else 0
                assert [frame["prev_seq"] for frame in frames] == [since, *places][: len(places)]
                # And facts of the thread are all there
                facts = [seq for seq, one in log[known:] if one_is_fact(one)]
                assert [f["seq"] for f in frames if f["type"].startswith("thread.")] == facts


def one_is_fact(event: AnyThreadEvent) -> bool:
    """Return whether an event tells of the thread itself."""
    return isinstance(event, ThreadChanged | ThreadArchived | ThreadMember)


async def test_each_kind_of_change_has_the_frame_of_the_socket_as_it_is_now(api: Api) -> None:
    # Given a message that was known, edited twice since; one known, deleted since; one new, edited and one new, deleted
    ava, ben = api.client("ava"), api.client("ben")
    thread_id = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    old, gone, fresh, lost = (new_message(thread_id, "ava", f"m{number}") for number in range(4))
    known = await api.fabric.store([old, gone])
    member = ThreadMember(thread_id, new_id(), timestamp(), "ava", "cy", "admin", "role")
    since = await api.fabric.store(
        [
            edit(old, "one"),
            fresh,
            lost,
            deletion(gone),
            edit(fresh, "better"),
            edit(old, "two"),
            deletion(lost),
            member,
            edit(lost, "too late"),
        ]
    )
    async with api.fabric.persister():
        await api.fabric.reached(since[-1])
        # When the other asks what changed
        frames, cursor = await read_all(ben, thread_id, encode_cursor(thread_id, known[-1]))
        whole = (await ben.get(f"/api/messages/{fresh.message_id}")).json()
    # Then each is told once, in its present state; of what is deleted the place stays
    assert [(frame["type"], frame["seq"]) for frame in frames] == [
        ("message.new", since[1]),
        ("message.new", since[2]),
        ("message.deleted", since[3]),
        ("message.updated", since[5]),
        ("thread.member", since[7]),
    ]
    assert frames[0] == {"type": "message.new", **whole, "prev_seq": known[-1]}
    assert (frames[0]["body"], frames[0]["edited_at"] is None) == ("better", False)
    assert (frames[1]["body"], frames[1]["deleted_at"] is None) == ("", False)
    assert frames[2] == {
        "type": "message.deleted",
        "thread_id": thread_id,
        "message_id": gone.message_id,
        "deleted_at": frames[2]["deleted_at"],
        "seq": since[3],
        "prev_seq": since[2],
        "cursor": encode_cursor(thread_id, since[3]),
    }
    assert (frames[3]["body"], frames[3]["message_id"]) == ("two", old.message_id)
    assert (frames[4]["role"], frames[4]["cursor"]) == ("admin", encode_cursor(thread_id, since[7]))
    # What changed nothing is no frame, and yet the cursor is behind it
    assert cursor == encode_cursor(thread_id, since[-1])


async def test_changes_between_two_pages_are_not_lost(api: Api) -> None:
    # Given a client that has read the first page
    ava = api.client("ava")
    thread_id = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    messages = [new_message(thread_id, "ava", f"m{number}") for number in range(4)]
    seqs = await api.fabric.store(messages)
    path = f"/api/threads/{thread_id}/changes"
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
        first = (await ava.get(path, params={"limit": 2})).json()
        # When a message of that page, and one of the next, change
        later = await api.fabric.store([edit(messages[0], "new"), deletion(messages[3])])
        await api.fabric.reached(later[-1])
        # Then the next page tells both
        query = {"limit": 5, "cursor": first["next_cursor"]}
        rest = (await ava.get(path, params=query)).json()
    assert [frame["seq"] for frame in first["items"]] == seqs[:2]
    assert [(frame["type"], frame["seq"]) for frame in rest["items"]] == [
        ("message.new", seqs[2]),
        ("message.new", seqs[3]),
        ("message.updated", later[0]),
    ]
    assert rest["items"][1]["deleted_at"] is not None
    assert (rest["next_cursor"], rest["cursor"]) == (None, encode_cursor(thread_id, later[-1]))


async def test_a_position_that_postgresql_has_not_reached_is_waited_for(api: Api) -> None:
    # Given a client whose cursor the persister has not reached
    ava = api.client("ava")
    thread_id = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    seqs = await api.fabric.send(thread_id, "ava", "one", "two")
    path, here = f"/api/threads/{thread_id}/changes", encode_cursor(thread_id, seqs[0])
    # When it asks, it is told to come again rather than that nothing changed
    started = time.monotonic()
    late = await ava.get(path, params={"after": here})
    assert (late.status_code, late.json()["code"]) == (503, "unavailable")
    assert time.monotonic() - started > 1.5
    # And in time it gets what came after
    waiting = asyncio.ensure_future(ava.get(path, params={"after": here}))
    async with api.fabric.persister():
        answer = await waiting
        await api.fabric.reached(seqs[-1])
        # A position beyond everything is none
        beyond = await ava.get(path, params={"after": encode_cursor(thread_id, seqs[-1] + 5)})
        # A newer one that it names as header is waited for as in every read
        known = {"Messaging-Cursor": encode_cursor(thread_id, seqs[-1])}
        newest = await ava.get(path, params={"after": here}, headers=known)
    assert answer.status_code == 200
    assert [frame["body"] for frame in newest.json()["items"]] == ["two"]
    assert (beyond.status_code, beyond.json()["errors"][0]["path"]) == (422, "/after")


async def test_the_place_of_a_second_copy_is_a_position_too(api: Api) -> None:
    # Given a thread that ends with a copy of its only message, which no table has
    ava = api.client("ava")
    thread_id = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    message = new_message(thread_id, "ava")
    first = await api.fabric.store([message])
    second = await api.fabric.store([message])
    async with api.fabric.persister():
        await api.fabric.reached(second[-1])
        # When somebody who subscribed there asks what changed since
        here = encode_cursor(thread_id, second[-1])
        answer = await ava.get(f"/api/threads/{thread_id}/changes", params={"after": here})
        read = await ava.get(f"/api/threads/{thread_id}", headers={"Messaging-Cursor": here})
    # Then nothing did, and they keep their position
    assert answer.json() == {"items": [], "next_cursor": None, "cursor": here}
    assert read.json()["last_message"]["seq"] == first[0]


async def test_bad_positions_are_refused_and_strangers_learn_nothing(api: Api) -> None:
    ava, eve = api.client("ava"), api.client("eve")
    thread_id = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    other = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    path = f"/api/threads/{thread_id}/changes"
    for cursor in ("x", "", "-1", encode_cursor(other, 5)):
        for name in ("after", "cursor"):
            answer = await ava.get(path, params={name: cursor})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), cursor
            assert answer.json()["errors"][0]["path"] == f"/{name}"
            assert (await eve.get(path, params={name: cursor})).status_code == 404
    empty = (await ava.get(path)).json()
    assert empty == {"items": [], "next_cursor": None, "cursor": "0"}


async def test_a_newcomer_is_shown_no_change_of_what_was_before_them(api: Api) -> None:
    # Given a message from before somebody joined, which is edited and deleted after it
    ava, cleo = api.client("ava"), api.client("cleo")
    thread_id = ThreadId((await make_thread(ava, "ben"))["thread_id"])
    old = new_message(thread_id, "ava", "secret")
    await api.fabric.store([old])
    await ava.post(f"/api/threads/{thread_id}/members", json={"user_id": "cleo"})
    seqs = await api.fabric.store(
        [edit(old, "a secret still"), new_message(thread_id, "ava", "hi")]
    )
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
        for after in ("0", encode_cursor(thread_id, seqs[0] - 1)):
            answer = await cleo.get(f"/api/threads/{thread_id}/changes", params={"after": after})
            assert "secret" not in answer.text
            assert msgspec.json.decode(answer.content)["items"][-1]["body"] == "hi"
        assert (await cleo.get(f"/api/messages/{old.message_id}/history")).status_code == 404
