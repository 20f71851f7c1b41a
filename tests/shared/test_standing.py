"""Bans: what they forbid and for how long, and a mirror of them that is whole or says that it is not."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import standing
from shared.bus import Bus
from shared.events import timestamp
from shared.metrics import EdgeMetrics
from shared.settings import Settings
from shared.standing import (
    CHECK_S,
    EXPIRED_KEPT_S,
    FOREVER,
    STREAM,
    StandingEntry,
    StandingMirror,
    StandingTable,
    Verdict,
    decode_standing,
)
from shared.subjects import STANDING_BUCKET
from tests.support.eventually import eventually
from tests.support.nats_streams import connected, make_streams
from tests.support.servers import NatsServer

NOW = 1_800_000_000.0
DAY_S = 86_400.0


def entry(user: str = "ava", revision: int = 1, **fields: Any) -> StandingEntry:  # noqa: ANN401
    return StandingEntry(user, revision, **fields)


def at(seconds: float) -> str:
    return timestamp(datetime.fromtimestamp(seconds, UTC))


# ------------------------------------------------------------------ the pure table


def test_a_ban_holds_until_its_end_and_not_longer() -> None:
    table = StandingTable()
    table.put(entry(banned_until=at(NOW)), 1, NOW)
    assert table.verdict("ava", NOW, NOW - 0.001) is Verdict.BANNED
    assert table.verdict("ava", NOW, NOW) is None
    assert table.verdict("ben", NOW, NOW - 1) is None
    table.put(entry(revision=2, banned_until=FOREVER), 2, NOW)
    assert table.verdict("ava", NOW, NOW + 1000 * 365 * DAY_S) is Verdict.BANNED


def test_tokens_issued_before_the_revocation_are_refused_and_later_ones_are_not() -> None:
    table = StandingTable()
    table.put(entry(min_iat=1_000), 1, NOW)
    assert table.verdict("ava", 999, NOW) is Verdict.REVOKED
    assert table.verdict("ava", 1_000, NOW) is None


def test_a_deactivated_user_may_not_come_in() -> None:
    table = StandingTable()
    table.put(entry(deactivated=True), 1, NOW)
    assert table.verdict("ava", NOW, NOW) is Verdict.DEACTIVATED


def test_a_bad_token_learns_nothing_of_a_ban() -> None:
    table = StandingTable()
    table.put(entry(min_iat=1_000, banned_until=FOREVER), 1, NOW)
    assert table.verdict("ava", 999, NOW) is Verdict.REVOKED
    assert table.verdict("ava", 1_000, NOW) is Verdict.BANNED


@given(st.permutations(range(1, 7)))
def test_in_whatever_order_entries_come_the_newest_one_counts(revisions: list[int]) -> None:
    table = StandingTable()
    for revision in revisions:
        table.put(entry(revision=revision, min_iat=revision), revision, NOW)
    assert table.get("ava") == entry(revision=6, min_iat=6)


def test_what_is_known_already_is_no_change() -> None:
    table = StandingTable()
    assert table.put(entry(revision=2), 5, NOW)
    assert not table.put(entry(revision=2), 5, NOW)
    assert not table.put(entry(revision=1), 4, NOW)
    assert table.put(entry(revision=3), 6, NOW)


def test_what_has_no_effect_any_more_is_forgotten_and_nothing_else() -> None:
    table = StandingTable()
    table.put(entry("over", banned_until=at(NOW - 1)), 1, NOW)
    table.put(entry("banned", banned_until=at(NOW + 1)), 2, NOW)
    table.put(entry("gone", deactivated=True), 3, NOW)
    table.put(entry("revoked", min_iat=int(NOW) - 10), 4, NOW)
    table.put(entry("long ago", min_iat=int(NOW - DAY_S)), 5, NOW)
    assert table.forget_expired(NOW + EXPIRED_KEPT_S - 1, DAY_S) == []
    table.put(entry("banned", 2, banned_until=FOREVER), 6, NOW)
    later = NOW + EXPIRED_KEPT_S
    assert table.forget_expired(later, DAY_S) == [("over", 1), ("long ago", 5)]
    assert len(table) == 3


def test_who_is_not_in_the_bucket_any_more_is_forgotten_unless_heard_of_since() -> None:
    table = StandingTable()
    for seq, user in enumerate(("purged", "kept", "heard")):
        table.put(entry(user), seq, NOW)
    table.keep_only({"kept"}, 1)
    assert table.get("purged") is None
    assert table.get("kept") is not None
    assert table.get("heard") is not None


def test_an_entry_of_a_newer_version_can_be_read() -> None:
    found = decode_standing(b'{"user_id":"ava","revision":3,"banned_until":null,"later":1}')
    assert found == entry(revision=3)


# ------------------------------------------------------------------ the mirror


class World:
    """A bucket, a mirror of it, and what it told."""

    def __init__(self, nats: NatsServer, api: Bus, fabric: Bus, live: Bus) -> None:
        self.nats = nats
        self.api = api
        self.fabric = fabric
        self.live = live
        self.metrics = EdgeMetrics("test").standing
        self.heard: list[str] = []
        self.confirmations = 0
        self.mirror = self.make_mirror()
        self.mirror.on_change.append(lambda changed: self.heard.append(changed.user_id))
        self.mirror.on_confirmed.append(self._count)

    def make_mirror(self) -> StandingMirror:
        return StandingMirror(self.fabric, self.live, clock=time.monotonic, metrics=self.metrics)

    async def write(self, user: str, revision: int = 1, **fields: Any) -> int:  # noqa: ANN401
        value = msgspec.json.encode(StandingEntry(user, revision, **fields))
        return await self.api.kv_put(STANDING_BUCKET, user, value, expected=None)

    def knows(self, user: str, revision: int = 1) -> bool:
        known = self.mirror.table.get(user)
        return known is not None and known.revision == revision

    def _count(self) -> None:
        self.confirmations += 1


@pytest.fixture
async def world(nats_server: NatsServer) -> AsyncIterator[World]:
    await make_streams(nats_server, Settings(_env_file=None))
    async with (
        connected(nats_server, "api") as api,
        connected(nats_server, "edge", "fabric") as fabric,
        connected(nats_server, "edge", "live") as live,
    ):
        yield World(nats_server, api, fabric, live)


def lose(world: World, *seqs: int) -> None:
    """Let announcements of these positions be lost on their way."""
    receive = world.mirror._receive

    def lossy(subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        if not any(b"Nats-Sequence: %d\r\n" % seq in headers for seq in seqs):
            receive(subject, reply, headers, payload)

    world.mirror._receive = lossy  # type: ignore[method-assign]


async def test_it_begins_with_everything_there_is(world: World) -> None:
    for number in range(2_500):
        await world.write(f"u{number}")
    before = world.mirror.is_confirmed
    await world.mirror.start()
    assert (before, world.mirror.is_confirmed) == (False, True)
    assert len(world.mirror.table) == 2_500
    assert world.mirror.position == 2_500


async def test_an_empty_bucket_is_known_to_be_empty(world: World) -> None:
    await world.mirror.start()
    assert world.mirror.is_confirmed
    assert len(world.mirror.table) == 0


async def test_a_change_is_heard_at_once(world: World) -> None:
    # Given a mirror that compares itself with nothing
    await world.mirror.start()
    # When somebody is banned
    await world.write("ava", banned_until=FOREVER)
    # Then it knows and says so
    await eventually(lambda: world.knows("ava"))
    assert world.heard == ["ava"]
    assert world.metrics.catch_ups.value == 0


async def test_a_lost_announcement_shows_itself_at_the_next_one(world: World) -> None:
    # Given an announcement that is lost
    lose(world, 1)
    await world.mirror.start()
    await world.write("ava")
    # When the next one comes
    await world.write("ben")
    await eventually(lambda: world.knows("ben"))
    assert not world.knows("ava")
    # Then the mirror is woken, and reads what it missed
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(world.mirror.run(stop))
        await eventually(lambda: world.knows("ava"), within_s=CHECK_S / 2)
        stop.set()
    assert world.mirror.position == 2
    assert sorted(world.heard) == ["ava", "ben"]


async def test_a_lost_last_announcement_is_found_within_a_second(world: World) -> None:
    # Given a running mirror, and an announcement that is lost
    lose(world, 1)
    await world.mirror.start()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(world.mirror.run(stop))
        # When nothing follows it
        await world.write("ava")
        began = time.monotonic()
        # Then the next comparison finds it
        await eventually(lambda: world.knows("ava"))
        assert time.monotonic() - began < CHECK_S + 0.3
        stop.set()


async def test_without_the_comparison_it_would_stay_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "CHECK_S", 60.0)
    lose(world, 1)
    await world.mirror.start()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(world.mirror.run(stop))
        await world.write("ava")
        await asyncio.sleep(1.5)
        assert not world.knows("ava")
        stop.set()


async def test_while_nats_is_away_it_is_not_confirmed_and_after_it_only_once_read(
    world: World,
) -> None:
    # Given a running mirror
    await world.mirror.start()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(world.mirror.run(stop))
        await world.write("ava", banned_until=FOREVER)
        await eventually(lambda: world.knows("ava"))
        # When NATS goes away
        world.nats.kill9()
        await eventually(lambda: not world.live.connected)
        # Then it says at once that it cannot be trusted
        assert not world.mirror.is_confirmed
        # And when NATS is back it reads the bucket before it can be
        confirmations = world.confirmations
        order: list[str] = []
        world.mirror.on_confirmed.append(lambda: order.append("confirmed"))
        world.live.on_reconnect.append(
            lambda: order.append("trusted too early" if world.mirror.is_confirmed else "connected")
        )
        world.nats.start()
        await eventually(lambda: world.mirror.is_confirmed, within_s=15)
        assert "trusted too early" not in order
        assert order[-1] == "confirmed"
        assert world.confirmations == confirmations + 1
        assert world.knows("ava")
        assert not running.done()
        stop.set()


async def test_a_ban_lifted_and_purged_while_it_was_out_of_touch_is_lifted(
    world: World,
) -> None:
    # Given a mirror that knows a ban, and hears nothing of its end
    await _misses_the_end_of_a_ban(world)
    assert world.mirror.table.verdict("ava", NOW, NOW) is Verdict.BANNED
    # When it has been out of touch, and compares itself
    world.mirror._distrust()
    await world.mirror.check()
    # Then the ban is gone
    assert world.mirror.table.verdict("ava", NOW, NOW) is None
    assert world.mirror.table.verdict("ben", NOW, NOW) is Verdict.BANNED
    assert world.mirror.is_confirmed


async def test_without_reading_the_whole_bucket_that_ban_would_stay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandingTable, "keep_only", lambda *_: None)
    await _misses_the_end_of_a_ban(world)
    world.mirror._distrust()
    await world.mirror.check()
    assert world.mirror.table.verdict("ava", NOW, NOW) is Verdict.BANNED


async def _misses_the_end_of_a_ban(world: World) -> None:
    lose(world, 2)
    await world.write("ava", banned_until=FOREVER)
    await world.mirror.start()
    lifted = await world.write("ava", 2)
    await world.write("ben", banned_until=FOREVER)
    purged = {"filter": "$KV.standing.ava", "seq": lifted + 1}
    await world.api.api(f"STREAM.PURGE.{STREAM}", purged)
    await eventually(lambda: world.knows("ben"))


async def test_a_bucket_that_was_emptied_by_hand_is_followed(world: World) -> None:
    # Given a mirror that heard of something, all of which is taken away
    await world.mirror.start()
    await world.write("eve")
    await eventually(lambda: world.knows("eve"))
    world.mirror._distrust()
    async with connected(world.nats, "provision") as bus:
        await bus.api(f"STREAM.PURGE.{STREAM}")
    # When it compares itself, then it goes on
    await world.mirror.check()
    assert world.mirror.is_confirmed
    assert len(world.mirror.table) == 0
    await world.write("ben")
    await eventually(lambda: world.knows("ben"))
    await world.mirror.check()
    assert world.mirror.is_confirmed


async def test_a_mirror_that_is_not_compared_any_more_is_not_trusted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a mirror whose comparisons fail although it is connected
    monkeypatch.setattr(standing, "CONFIRMED_S", 0.3)
    await world.mirror.start()
    assert world.mirror.is_confirmed
    # Then it is trusted for its time, and then not any more
    await eventually(lambda: not world.mirror.is_confirmed, within_s=1)
    await eventually(lambda: world.mirror.unconfirmed_for_s() > 0.05, within_s=1)
    await world.mirror.check()
    assert world.mirror.is_confirmed
    assert world.mirror.unconfirmed_for_s() == 0.0


async def test_a_bucket_that_was_lost_lifts_no_ban_and_is_followed_again(world: World) -> None:
    # Given bans, and a bucket that is made anew
    for user in ("ava", "ben", "cleo"):
        await world.write(user, 4, banned_until=FOREVER)
    await world.mirror.start()
    async with connected(world.nats, "provision") as bus:
        config = (await bus.api(f"STREAM.INFO.{STREAM}"))["config"]
        await bus.api(f"STREAM.DELETE.{STREAM}")
        await bus.api(f"STREAM.CREATE.{STREAM}", config)
    # When the mirror compares itself
    await world.mirror.check()
    # Then nobody was let in by it
    assert world.mirror.table.verdict("ava", NOW, NOW) is Verdict.BANNED
    # And what is written to the new one counts, unless it is older
    await world.write("ava", 5)
    await world.write("ben", 3)
    await world.mirror.check()
    assert world.mirror.table.verdict("ava", NOW, NOW) is None
    assert world.mirror.table.verdict("ben", NOW, NOW) is Verdict.BANNED
    assert world.mirror.position == 2


async def test_what_is_no_entry_holds_nothing_up(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.mirror.start()
    await world.api.kv_put(STANDING_BUCKET, "eve", b"rubbish", expected=None)
    await world.write("ava")
    await eventually(lambda: world.knows("ava"))
    assert world.mirror.position == 2
    assert "cannot be read" in caplog.text


async def test_bans_during_the_first_reading_are_not_missed(world: World) -> None:
    # Given somebody who bans all the time
    users = [f"u{number}" for number in range(400)]
    writing = asyncio.gather(*(world.write(user) for user in users))
    # When a mirror starts meanwhile
    await world.mirror.start()
    await writing
    # Then it knows everybody
    await eventually(lambda: len(world.mirror.table) == len(users))
    assert world.mirror.is_confirmed
