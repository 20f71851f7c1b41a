"""``GET /api/sync``: whoever was away learns of every thread that changed, whatever committed in which order."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import httpx
import pytest

from api.queries import sync as queries
from shared.cursors import encode_cursor
from shared.identity import ThreadId, new_id
from tests.api.support import Api, make_thread
from tests.support.eventually import eventually
from tests.support.fabric import Fabric

# What the persister and the api write, as far as /sync looks at it.
MOVE_TAIL: Final = """
    INSERT INTO thread_tails AS t (thread_id, last_seq, last_message_seq, last_activity_at) VALUES ($1, $2, 0, now())
    ON CONFLICT (thread_id) DO UPDATE SET last_seq = excluded.last_seq, changed_xid = pg_current_xact_id()
"""
MOVE_MARKER: Final = """
    INSERT INTO receipts (thread_id, user_id, read_seq) VALUES ($1, 'ava', $2)
    ON CONFLICT (thread_id, user_id) DO UPDATE SET read_seq = excluded.read_seq, changed_xid = pg_current_xact_id()
"""
MEMBERSHIP: Final = """
    UPDATE thread_members SET removed_at = CASE WHEN $2 THEN now() END, changed_xid = pg_current_xact_id()
    WHERE thread_id = $1 AND user_id = 'ava'
"""

Item = dict[str, Any]


async def synced(
    client: httpx.AsyncClient, after: str | None, limit: int = 200
) -> tuple[list[Item], str]:
    """Read a whole listing, and return its items and its cursor."""
    query: dict[str, Any] = {"limit": limit} | ({"after": after} if after else {})
    items: list[Item] = []
    cursors = set()
    while True:
        answer = await client.get("/api/sync", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        items += page["items"]
        cursors.add(page["cursor"])
        if page["next_cursor"] is None:
            # Every page says the same.
            [cursor] = cursors
            return items, cursor
        assert len(page["items"]) == limit
        query = {"limit": limit, "cursor": page["next_cursor"]}


async def settled(client: httpx.AsyncClient, after: str | None = None) -> str:
    """Return a cursor behind everything that was committed: asked with it, nothing is told.

    Repeats are allowed while any transaction of the cluster runs, a vacuum's too.
    """

    async def nothing_is_told() -> str | None:
        nonlocal after
        items, after = await synced(client, after)
        return None if items else after

    return await eventually(nothing_is_told)


def ids(items: Sequence[Item]) -> set[str]:
    """Return the threads of items."""
    return {item["thread_id"] for item in items}


async def test_only_what_changed_is_told_and_the_present_state_of_it(api: Api) -> None:
    # Given four threads that a client knows
    ava, ben = api.client("ava"), api.client("ben")
    one, two, three, four = [
        ThreadId((await make_thread(ben, "ava", "cy"))["thread_id"]) for _ in range(4)
    ]
    async with api.fabric.persister():
        everything, here = await synced(ava, None)
        assert ids(everything) == {one, two, three, four}
        assert everything[0] == {
            "thread_id": min(one, two, three, four),
            "cursor": "0",
            "unread": 0,
            "removed": False,
        }
        # When one gets messages, one loses her, one is renamed, and a fifth is made
        seqs = await api.fabric.send(one, "ben", "a", "b")
        await api.fabric.reached(seqs[-1])
        here = await settled(ava, here)
        more = await api.fabric.send(one, "ben", "c")
        await api.fabric.reached(more[-1])
        assert (await ben.delete(f"/api/threads/{two}/members/ava")).status_code == 204
        assert (await ben.patch(f"/api/threads/{three}", json={"title": "new"})).is_success
        five = (await make_thread(ben, "ava"))["thread_id"]

        async def all_is_told() -> list[Item] | None:
            told, _ = await synced(ava, here)
            # The persister is quick, not at once.
            return told if ids(told) >= {one, two, three, five} else None

        items = await eventually(all_is_told)
    # Then she is told of those four
    by_thread = {item["thread_id"]: item for item in items}
    assert set(by_thread) == {one, two, three, five}
    assert by_thread[one] == {
        "thread_id": one,
        "cursor": encode_cursor(one, more[-1]),
        "unread": 3,
        "removed": False,
    }
    assert by_thread[two] == {"thread_id": two, "cursor": "0", "unread": 0, "removed": True}
    assert by_thread[three]["cursor"] != "0"
    # And a client that begins anew is told nothing of what is hers no longer
    assert ids((await synced(ava, None))[0]) == {one, three, four, five}


async def test_what_was_read_elsewhere_is_told(api: Api) -> None:
    ava, ben = api.client("ava"), api.client("ben")
    thread_id = ThreadId((await make_thread(ben, "ava"))["thread_id"])
    seqs = await api.fabric.send(thread_id, "ben", "a", "b")
    async with api.fabric.persister():
        await api.fabric.reached(seqs[-1])
    [item], here = await synced(ava, None)
    assert item["unread"] == 2
    await api.fabric.pool.execute(MOVE_MARKER, thread_id, seqs[0])
    [item], _ = await synced(ava, here)
    assert item["unread"] == 1


async def test_a_membership_that_began_again_is_told_as_one(api: Api) -> None:
    ava, ben = api.client("ava"), api.client("ben")
    thread_id = (await make_thread(ben, "ava"))["thread_id"]
    _, before = await synced(ava, None)
    await ben.delete(f"/api/threads/{thread_id}/members/ava")
    between = await settled(ava, before)
    await ben.post(f"/api/threads/{thread_id}/members", json={"user_id": "ava"})
    # Whether or not a client has heard that it had ended
    for here in (before, between):
        [item], _ = await synced(ava, here)
        assert (item["thread_id"], item["removed"]) == (thread_id, False)


async def test_the_list_of_threads_and_oneself_say_where_to_begin(api: Api) -> None:
    # Given a client that reads its threads in two pages
    ava, ben = api.client("ava"), api.client("ben")
    threads = [ThreadId((await make_thread(ben, "ava"))["thread_id"]) for _ in range(3)]
    me = (await ava.get("/api/me")).json()
    first = (await ava.get("/api/threads", params={"limit": 2})).json()
    # When a thread of the first page changes between them
    await api.fabric.pool.execute(MOVE_TAIL, threads[2], 1 << 40)
    query = {"limit": 2, "cursor": first["next_cursor"]}
    second = (await ava.get("/api/threads", params=query)).json()
    # Then both have the cursor from before it, and what she missed is told
    assert second["sync_cursor"] == first["sync_cursor"]
    assert threads[2] in ids((await synced(ava, first["sync_cursor"]))[0])
    assert threads[2] in ids((await synced(ava, me["sync_cursor"]))[0])
    assert first["items"][0]["thread_id"] == threads[2]


async def test_a_change_that_commits_late_is_told_after_it_not_before_and_not_never(
    api: Api,
) -> None:
    # Given a transaction that has begun to change a thread
    ava, ben = api.client("ava"), api.client("ben")
    slow, quick = [ThreadId((await make_thread(ben, "ava"))["thread_id"]) for _ in range(2)]
    _, here = await synced(ava, None)
    late = await asyncpg.connect(api.fabric.dsn)
    transaction = late.transaction()
    await transaction.start()
    await late.execute(MOVE_TAIL, slow, 5)
    # When later ones commit before it, and she asks meanwhile
    await api.fabric.pool.execute(MOVE_TAIL, quick, 6)
    meanwhile, here = await synced(ava, here)
    await api.fabric.pool.execute(MOVE_TAIL, quick, 7)
    again, here = await synced(ava, here)
    for items in (meanwhile, again):
        assert quick in ids(items)
        assert encode_cursor(slow, 5) not in {item["cursor"] for item in items}
    await transaction.commit()
    await late.close()
    # Then it is told next time
    items, _ = await synced(ava, here)
    assert encode_cursor(slow, 5) in {item["cursor"] for item in items}


@pytest.mark.parametrize("seed", range(4))
async def test_readers_of_random_concurrent_transactions_miss_nothing(api: Api, seed: int) -> None:
    # Given a user of eight threads, and writers whose transactions overlap in every way
    ben = api.client("ben")
    threads = [ThreadId((await make_thread(ben, "ava"))["thread_id"]) for _ in range(8)]
    writing = True
    next_seq = iter(range(1, 1_000_000))

    async def write(choose: random.Random) -> None:
        connection = await asyncpg.connect(api.fabric.dsn)
        try:
            for _ in range(25):
                transaction = connection.transaction()
                await transaction.start()
                # In the order of their ids, so that nobody waits for each other in a circle.
                for thread_id in sorted(choose.sample(threads, choose.randint(1, 2))):
                    kind = choose.choice(["tail", "tail", "marker", "member"])
                    if kind == "tail":
                        await connection.execute(MOVE_TAIL, thread_id, next(next_seq))
                    elif kind == "marker":
                        await connection.execute(MOVE_MARKER, thread_id, next(next_seq))
                    else:
                        await connection.execute(MEMBERSHIP, thread_id, choose.random() < 0.3)
                    await asyncio.sleep(choose.random() * 0.01)
                await (transaction.rollback if choose.random() < 0.2 else transaction.commit)()
        finally:
            await connection.close()

    async def read(choose: random.Random) -> tuple[dict[str, Item], str]:
        client = api.client("ava")
        items, cursor = await synced(client, None)
        known = {item["thread_id"]: item for item in items}
        while writing:
            await asyncio.sleep(choose.random() * 0.02)
            items, cursor = await synced(client, cursor, choose.choice([1, 3, 200]))
            known |= {item["thread_id"]: item for item in items}
        # Once more after everything has ended: from the cursor alone, not from the start.
        items, cursor = await synced(client, cursor)
        return known | {item["thread_id"]: item for item in items}, cursor

    # When readers follow them by their cursors
    readers = [asyncio.ensure_future(read(random.Random(seed * 10 + n))) for n in range(3)]
    await asyncio.gather(*(write(random.Random(seed * 100 + n)) for n in range(5)))
    writing = False
    views = await asyncio.gather(*readers)
    # Then each of them knows what is true now
    for known, cursor in views:
        await _check_view(api, known)
        # And when nothing moves any more, nothing is told any more
        await settled(api.client("ava"), cursor)


async def _check_view(api: Api, known: dict[str, Item]) -> None:
    """Compare what a client knows of its threads with the tables."""
    rows = await api.fabric.pool.fetch("""
        SELECT encode(uuid_send(m.thread_id), 'hex') AS thread_id, removed_at IS NOT NULL AS removed,
               coalesce(last_seq, 0) AS last_seq
        FROM thread_members AS m LEFT JOIN thread_tails AS t ON t.thread_id = m.thread_id WHERE user_id = 'ava'
    """)
    assert len(rows) == 8
    for row in rows:
        thread_id = ThreadId(row["thread_id"])
        # Removed before the first listing, it was never told of.
        item = known.get(thread_id, {"removed": True, "cursor": "0"})
        last_seq = 0 if row["removed"] else row["last_seq"]
        assert item["removed"] == row["removed"]
        assert item["cursor"] == encode_cursor(thread_id, last_seq)


async def test_a_cursor_of_another_generation_is_gone_and_what_is_none_is_refused(api: Api) -> None:
    ava = api.client("ava")
    thread_id = (await make_thread(ava, "ben"))["thread_id"]
    _, here = await synced(ava, None)
    generation, transaction = here.split("-")
    other = "0" * 8 if generation != "0" * 8 else "1" * 8
    lost = f"{int(transaction, 16) + 100_000:x}"
    # Another history of transactions, and one that had come further: a restore took its end
    for cursor in (f"{other}-{transaction}", f"{generation}-{lost}"):
        gone = await ava.get("/api/sync", params={"after": cursor})
        assert (gone.status_code, gone.json()["code"]) == (410, "gone")
        page = {"cursor": f"{cursor}.0.{thread_id}"}
        assert (await ava.get("/api/sync", params=page)).status_code == 410
    for cursor in ("x", "", "0", f"{here}0" * 3, f"{generation}-{'f' * 17}", f"{generation}-"):
        bad = await ava.get("/api/sync", params={"after": cursor})
        assert (bad.status_code, bad.json()["code"]) == (422, "invalid"), cursor
    for cursor in ("x", here, f"{here}.0.{thread_id[:-1]}", f"{here}.0.{thread_id}.1"):
        bad = await ava.get("/api/sync", params={"cursor": cursor})
        assert (bad.status_code, bad.json()["errors"][0]["path"]) == (422, "/cursor"), cursor
    # The list of threads takes no cursor of another kind either
    bad = await ava.get("/api/threads", params={"cursor": here})
    assert bad.status_code == 422


async def test_each_database_is_a_generation_of_its_own(
    fabric: Fabric, empty_database_url: str
) -> None:
    # Given two databases of one cluster: the one in use, and what a restore would make
    generations = []
    for dsn in (fabric.dsn, fabric.dsn, empty_database_url):
        connection = await asyncpg.connect(dsn)
        generations.append(await connection.fetchval(queries.POSITION))
        await connection.close()
    assert generations[0] == generations[1]
    assert generations[0] != generations[2]


async def test_a_member_of_nothing_is_told_nothing(api: Api) -> None:
    ava = api.client("ava")
    items, here = await synced(ava, None)
    assert items == []
    assert (await synced(ava, here))[0] == []
    assert (await ava.get("/api/sync", params={"after": here, "x": "1"})).status_code == 422
    stranger = await ava.get("/api/sync", headers={"Messaging-Cursor": f"1.{new_id()[:8]}"})
    assert stranger.status_code == 422
