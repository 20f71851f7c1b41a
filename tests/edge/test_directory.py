"""Cached entries: trusted for a minute, overwritten at once, never older than what was known, bounded."""

import asyncio
from typing import Any, cast

import msgspec
import pytest

from edge import directory
from edge.directory import TRUSTED_S, EntryCache
from shared.access import UserEntry, decode_user
from shared.bus import Bus, BusDisconnectedError, KvEntry, StoredMessage
from shared.identity import ThreadId
from shared.metrics import EdgeMetrics
from tests.support.eventually import eventually


def value(revision: int, name: str = "", user: str = "ava") -> bytes:
    entry = UserEntry(
        user_id=user,
        revision=revision,
        name=name or f"r{revision}",
        avatar_url=None,
        role="client",
    )
    return msgspec.json.encode(entry)


class Bucket:
    """A bucket whose answers come when the test says so."""

    def __init__(self) -> None:
        self.reads = 0
        self.answer: KvEntry | None = None
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.stored: dict[str, bytes] = {}
        self.pages: list[list[str]] = []

    async def kv_get(self, bucket: str, key: str) -> KvEntry | None:
        del bucket, key
        self.reads += 1
        answer, error = self.answer, self.error
        await self.gate.wait()
        if error is not None:
            raise error
        return answer

    async def get_last_many(self, stream: str, subjects: list[str]) -> list[StoredMessage]:
        keys = [subject.rpartition(".")[2] for subject in subjects]
        self.pages.append(keys)
        return [
            StoredMessage(stream, 1, subject, "", b"", self.stored[key])
            for key, subject in zip(keys, subjects, strict=True)
            if key in self.stored
        ]


class World:
    """A cache on such a bucket, and its clock."""

    def __init__(self, entries_max: int = 100) -> None:
        self.now = 0.0
        self.bucket = Bucket()
        self.cache: EntryCache[UserEntry] = EntryCache(
            cast("Bus", self.bucket),
            "users",
            decode_user,
            clock=lambda: self.now,
            lookups=EdgeMetrics("test").lookups,
            entries_max=entries_max,
        )

    async def load(self, key: str = "ava") -> Any:  # noqa: ANN401
        return self.cache.cached(key) or await self.cache.load(key)


async def test_an_entry_is_read_once_a_minute() -> None:
    world = World()
    world.bucket.answer = KvEntry(value(1), 1)
    for _ in range(3):
        assert (await world.load()).revision == 1
    assert world.bucket.reads == 1
    world.now = TRUSTED_S + 1
    await world.load()
    assert world.bucket.reads == 2


async def test_absence_is_never_remembered() -> None:
    world = World()
    assert await world.load() is None
    world.bucket.answer = KvEntry(value(1), 1)
    assert (await world.load()).revision == 1


async def test_callers_at_the_same_time_share_one_read_and_its_failure() -> None:
    # Given a slow bucket and three callers
    world = World()
    world.bucket.answer = KvEntry(value(1), 1)
    world.bucket.gate.clear()
    loads = [asyncio.create_task(world.load()) for _ in range(3)]
    await asyncio.sleep(0)
    world.bucket.gate.set()
    assert [entry.revision for entry in await asyncio.gather(*loads)] == [1, 1, 1]
    assert world.bucket.reads == 1
    # And the same when the read fails; the next one tries anew
    world.cache.distrust()
    world.bucket.error = BusDisconnectedError("test")
    loads = [asyncio.create_task(world.load()) for _ in range(3)]
    results = await asyncio.gather(*loads, return_exceptions=True)
    assert all(isinstance(result, BusDisconnectedError) for result in results)
    world.bucket.error = None
    assert (await world.load()).revision == 1


async def test_a_higher_revision_overwrites_and_a_lower_one_never_does() -> None:
    world = World()
    world.bucket.answer = KvEntry(value(2), 1)
    await world.load()
    world.cache.overwrite("ava", value(3))
    assert (await world.load()).revision == 3
    world.cache.overwrite("ava", value(1))
    assert (await world.load()).revision == 3
    assert world.bucket.reads == 1


async def test_what_nobody_asked_for_is_not_kept() -> None:
    world = World()
    world.cache.overwrite("ava", value(3))
    assert len(world.cache) == 0


async def test_a_change_during_a_read_wins_over_a_replica_that_lags() -> None:
    # Given a read that a lagging replica answers with the old entry, or with none
    for late in (KvEntry(value(1), 1), None):
        world = World()
        world.bucket.answer = late
        world.bucket.gate.clear()
        load = asyncio.create_task(world.load())
        await asyncio.sleep(0)
        # When the change is announced meanwhile
        world.cache.overwrite("ava", value(2))
        world.bucket.gate.set()
        # Then the change is what counts
        assert (await load).revision == 2
        assert (await world.load()).revision == 2


async def test_a_lagging_read_after_a_minute_does_not_undo_a_change() -> None:
    world = World()
    world.bucket.answer = KvEntry(value(1), 1)
    await world.load()
    world.cache.overwrite("ava", value(5))
    world.now = TRUSTED_S + 1
    assert (await world.load()).revision == 5


async def test_the_number_of_entries_is_bounded() -> None:
    world = World(entries_max=3)
    world.bucket.answer = KvEntry(value(1), 1)
    for number in range(10):
        await world.load(f"u{number}")
    assert len(world.cache) == 3
    assert world.cache.cached("u9") is not None
    assert world.cache.cached("u0") is None


async def test_an_entry_that_cannot_be_read_counts_as_absent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.bucket.answer = KvEntry(b"rubbish", 1)
    assert await world.load() is None
    world.cache.overwrite("ava", b"rubbish")
    assert "cannot be read" in caplog.text


async def test_what_is_in_use_is_compared_with_the_bucket_in_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given entries, one of which changed without anybody hearing of it
    monkeypatch.setattr(directory, "PAGE_KEYS", 2)
    world = World()
    for number in range(5):
        world.bucket.answer = KvEntry(value(1, user=f"u{number}"), 1)
        await world.load(f"u{number}")
        await world.load(f"u{number}")
        world.bucket.stored[f"u{number}"] = value(1, user=f"u{number}")
    world.bucket.stored["u3"] = value(2, user="u3")
    world.now = TRUSTED_S - 1
    heard: list[int] = []
    world.cache.on_change.append(lambda entry: heard.append(entry.revision))
    # When they are compared
    await world.cache.revalidate()
    # Then the change is known and told, and the others are trusted for another minute
    assert [len(page) for page in world.bucket.pages] == [2, 2, 1]
    assert heard == [2]
    world.now = TRUSTED_S + 1
    assert [world.cache.cached(f"u{number}").revision for number in range(5)] == [1, 1, 1, 2, 1]  # type: ignore[union-attr]


async def test_what_nobody_used_is_not_compared_and_is_forgotten_in_the_end() -> None:
    world = World()
    world.bucket.answer = KvEntry(value(1), 1)
    await world.cache.load("ava")
    await world.cache.revalidate()
    assert world.bucket.pages == []
    assert len(world.cache) == 1
    world.now = TRUSTED_S + 1
    await world.cache.revalidate()
    assert len(world.cache) == 0


async def test_what_is_watched_is_compared_though_it_is_not_cached_any_more() -> None:
    # Given nothing in the cache, as after a reconnect
    world = World()
    heard: list[int] = []
    world.cache.on_change.append(lambda entry: heard.append(entry.revision))
    world.bucket.stored["ava"] = value(7)
    # When a thread that somebody is subscribed to is watched
    await world.cache.revalidate(["ava", "unknown"])
    # Then who listens hears what it is now
    assert heard == [7]
    assert len(world.cache) == 0


async def test_a_replica_that_lags_undoes_nothing() -> None:
    world = World()
    world.bucket.answer = KvEntry(value(3), 1)
    await world.load()
    await world.load()
    world.bucket.stored["ava"] = value(2)
    await world.cache.revalidate()
    assert (await world.load()).revision == 3


async def test_a_change_that_a_read_brings_to_light_is_told_too() -> None:
    # Given an entry whose change was not announced
    world = World()
    world.bucket.answer = KvEntry(value(1), 1)
    await world.load()
    heard: list[int] = []
    world.cache.on_change.append(lambda entry: heard.append(entry.revision))
    # When it is read again because it is old
    world.now = TRUSTED_S + 1
    world.bucket.answer = KvEntry(value(2), 2)
    await world.load()
    # Then who listens hears of it; and hears nothing of what is known
    world.now = 2 * TRUSTED_S + 2
    await world.load()
    assert heard == [2]


class Live:
    """A connection that the test speaks on."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Any] = {}
        self.on_reconnect: list[Any] = []

    def subscribe(self, subject: str, callback: Any) -> None:  # noqa: ANN401
        self.callbacks[subject] = callback

    async def flush(self) -> None:
        await asyncio.sleep(0)


async def test_a_new_leader_and_a_reconnect_are_reasons_to_compare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a directory that compares once an hour
    monkeypatch.setattr(directory, "REVALIDATE_S", 3600.0)
    monkeypatch.setattr(directory, "JITTER_S", 0.01)
    bucket, live = Bucket(), Live()
    known = directory.Directory(
        cast("Bus", bucket), cast("Bus", live), clock=lambda: 0.0, lookups=EdgeMetrics("t").lookups
    )
    await known.start()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(known.run(lambda: [ThreadId("t1")], stop))
        await asyncio.sleep(0.05)
        assert bucket.pages == []
        # When either bucket has a new leader
        for name in ("access", "users"):
            live.callbacks[f"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.KV_{name}"](
                b"", b"", b"", b""
            )
            await eventually(lambda: bucket.pages == [["t1"]])
            bucket.pages.clear()
        # Or the connection was made anew
        for hook in live.on_reconnect:
            hook()
        # Then what is watched is compared, soon
        await eventually(lambda: bucket.pages == [["t1"]])
        stop.set()


async def test_listeners_hear_of_every_change() -> None:
    world = World()
    heard: list[int] = []
    world.cache.on_change.append(lambda entry: heard.append(entry.revision))
    world.cache.overwrite("ava", value(4))
    assert heard == [4]
