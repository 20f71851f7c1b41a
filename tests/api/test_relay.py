"""The outbox on its way out: compare-and-set, harmless repetition, and healing in the background."""

import asyncio
from typing import Any

import msgspec

from api.relay import KIND_ACCESS, KIND_EVENT, Relay, put_entry
from shared.access import AccessEntry, Member, UserEntry
from shared.events import ThreadChanged, encode_event, timestamp
from shared.identity import ThreadId, new_id
from shared.outbox import OutboxRow
from shared.subjects import msg_subject
from tests.api.support import Api, entry_of, make_thread, running_api
from tests.support.eventually import eventually
from tests.support.fabric import Fabric


def entry(thread_id: str, revision: int) -> bytes:
    members = {"ava": Member("owner", timestamp())}
    made = AccessEntry(thread_id, revision, "group", "ava", archived=False, members=members)
    return msgspec.json.encode(made)


async def test_an_older_entry_never_overwrites_a_newer_one(api: Api) -> None:
    thread_id, bus = new_id(), api.parts.bus
    written = [
        await put_entry(bus, "access", thread_id, entry(thread_id, revision))
        for revision in (2, 1, 2, 3)
    ]
    assert written == [True, False, False, True]
    assert (await entry_of(api, "access", thread_id))["revision"] == 3


async def test_writers_at_the_same_moment_leave_the_newest_entry(api: Api) -> None:
    thread_id, bus = new_id(), api.parts.bus
    revisions = [3, 1, 8, 5, 2, 7, 4, 6]
    await asyncio.gather(
        *(put_entry(bus, "access", thread_id, entry(thread_id, one)) for one in revisions)
    )
    assert (await entry_of(api, "access", thread_id))["revision"] == 8


async def test_what_is_no_entry_of_ours_is_replaced(api: Api) -> None:
    await api.parts.bus.kv_put("users", "ava", b"not json", expected=None)
    value = msgspec.json.encode(UserEntry("ava", 1, "Ava", None, "client"))
    assert await put_entry(api.parts.bus, "users", "ava", value)
    assert (await entry_of(api, "users", "ava"))["name"] == "Ava"


async def test_publishing_rows_twice_stores_an_event_once(api: Api) -> None:
    # Given the rows of a change
    thread_id = ThreadId(new_id())
    event_id = new_id()
    event = ThreadChanged(thread_id, event_id, timestamp(), "ava", {"title": "new"})
    rows = [
        OutboxRow(1, KIND_ACCESS, thread_id, None, entry(thread_id, 4)),
        OutboxRow(2, KIND_EVENT, thread_id, event_id, encode_event(event)),
        OutboxRow(3, "something unknown", thread_id, None, b""),
    ]
    relay = Relay(api.parts.bus, api.parts.pool)
    # When two relays publish them
    await asyncio.gather(relay.publish(rows), relay.publish(rows))
    await relay.publish(rows)
    # Then the log has one event, and what nobody knows held nothing up
    page = await api.parts.bus.get_range(
        "MSG_0", msg_subject(thread_id), from_seq=0, max_messages=9, max_bytes=10_000
    )
    assert [msgspec.json.decode(one.payload)["event_id"] for one in page.messages] == [event_id]


async def test_a_change_left_behind_is_told_by_the_background_relay(fabric: Fabric) -> None:
    # Given a change whose api died between its commit and telling anybody
    async with running_api(fabric, relays=False) as api:
        ava = api.client("ava")
        thread_id = (await make_thread(ava, "ben", title="old"))["thread_id"]
        await eventually(lambda: _drained(fabric, api))

        async def dies(*_rows: Any) -> None:  # noqa: ANN401 - nothing of it is looked at
            raise TimeoutError

        api.parts.outbox._publish = dies
        assert (
            await ava.patch(f"/api/threads/{thread_id}", json={"title": "new"})
        ).status_code == 503
        assert await fabric.count("api_outbox") == 2
    # When another api runs
    async with running_api(fabric) as api:
        # Then everybody hears of it
        await eventually(lambda: _drained(fabric))
        assert (await entry_of(api, "access", thread_id))["revision"] == 2
        stored = await api.parts.bus.get_last("MSG_0", msg_subject(ThreadId(thread_id)))
        assert stored is not None
        assert msgspec.json.decode(stored.payload)["changed"] == {"title": "new"}


async def _drained(fabric: Fabric, api: Api | None = None) -> bool:
    if api is not None:
        rows = await fabric.pool.fetch("SELECT id FROM api_outbox")
        await api.parts.outbox.relay_now([row["id"] for row in rows])
    return await fabric.count("api_outbox") == 0


async def test_while_nats_is_away_nothing_is_written(fabric: Fabric) -> None:
    # Given an api that has lost NATS
    async with running_api(fabric) as api:
        ava = api.client("ava")
        thread_id = (await make_thread(ava, "ben", title="old"))["thread_id"]
        fabric.nats.kill9()
        await eventually(lambda: not api.parts.bus.connected)
        # When something is to be made or changed
        made = await ava.post("/api/threads", json={"kind": "group", "participants": ["cleo"]})
        refused = [
            made,
            await ava.patch(f"/api/threads/{thread_id}", json={"title": "new"}),
            await ava.post(f"/api/threads/{thread_id}/members", json={"user_id": "cleo"}),
            await ava.delete(f"/api/threads/{thread_id}/members/ben"),
            await ava.put(f"/api/messages/{new_id()}", json={"body": "new"}),
            await ava.delete(f"/api/messages/{new_id()}"),
        ]
        # Then it is refused as a whole, reading goes on, and the api is not ready
        assert {answer.status_code for answer in refused} == {503}
        assert await fabric.count("thread_members") == 2
        assert (await ava.get(f"/api/threads/{thread_id}")).json()["title"] == "old"
        assert await fabric.count("threads") == 1
        assert (await ava.get("/readyz")).status_code == 503
        fabric.nats.start()
        await eventually(lambda: api.parts.bus.connected, within_s=15)
        assert (await ava.patch(f"/api/threads/{thread_id}", json={"title": "new"})).is_success
