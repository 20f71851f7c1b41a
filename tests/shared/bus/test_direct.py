"""Direct get and key-value buckets."""

import asyncio

import pytest

from shared.bus import (
    Bus,
    JetStreamApiError,
    KvConflictError,
    NoRespondersError,
    StoredMessage,
    direct,
    header_value,
)
from shared.bus.requests import Reply
from tests.shared.bus.server import create_stream


async def create_bucket(bus: Bus, bucket: str) -> None:
    await create_stream(
        bus,
        f"KV_{bucket}",
        subjects=[f"$KV.{bucket}.>"],
        max_msgs_per_subject=1,
        allow_rollup_hdrs=True,
    )


async def store_many(bus: Bus, count: int, *, size: int = 3) -> None:
    await asyncio.gather(
        *(bus.store(f"s.{number}", b"%03d" % number + b"x" * (size - 3)) for number in range(count))
    )


async def test_the_last_message_of_a_subject_comes_with_place_time_and_headers(bus: Bus) -> None:
    # Given two messages of one subject
    await create_stream(bus)
    await bus.store("s.1", b"old")
    await bus.store("s.1", b"new", message_id="m-2", headers={"K": "v"})
    # When the last one is read
    message = await bus.get_last("S", "s.1")
    # Then it is complete
    assert message is not None
    assert (message.stream, message.seq, message.subject, message.payload) == (
        "S",
        2,
        "s.1",
        b"new",
    )
    assert header_value(message.headers, b"K") == b"v"
    assert header_value(message.headers, b"Nats-Msg-Id") == b"m-2"
    assert message.time.endswith("Z")
    assert await bus.get_last("S", "s.none") is None


async def test_a_stream_that_does_not_exist_is_an_error_and_not_an_absent_message(bus: Bus) -> None:
    # Given no such stream
    # When it is read
    # Then that is not "no message"
    with pytest.raises(NoRespondersError):
        await bus.get_last("NONE", "s.1")


async def test_a_message_is_found_by_its_sequence_and_absent_when_the_leader_says_so(
    bus: Bus,
) -> None:
    # Given one message
    await create_stream(bus)
    await bus.store("s.1", b"x", headers={"K": "v"})
    # When it and another sequence are read
    message = await bus.get_seq("S", 1)
    started = asyncio.get_running_loop().time()
    absent = await bus.get_seq("S", 2)
    # Then one is there, the other is not, and the leader's word comes before the lag's deadline
    assert message is not None
    assert (message.payload, absent) == (b"x", None)
    assert asyncio.get_running_loop().time() - started < 1.0


async def test_the_leader_is_asked_when_the_replica_lags(bus: Bus) -> None:
    # Given a stream whose replicas do not know a message yet, played by another direct get
    await create_stream(bus, allow_direct=False)
    await bus.store("s.1", b"x", headers={"K": "v"})

    async def knows_nothing(*_arguments: object, **_options: object) -> None:
        return None

    bus._reader._single = knows_nothing  # type: ignore[method-assign]
    # When it is read by its sequence
    message = await bus.get_seq("S", 1)
    # Then it comes from the leader, complete
    assert message is not None
    assert (message.seq, message.subject, message.payload) == (1, "s.1", b"x")
    assert header_value(message.headers, b"K") == b"v"


async def test_the_last_messages_of_1500_subjects_come_in_pages(bus: Bus) -> None:
    # Given 1,500 subjects with a message each
    await create_stream(bus)
    await store_many(bus, 1_500)
    # When all are read, with some that have none
    requests_before = bus._requests._count
    found = await bus.get_last_many("S", [f"s.{number}" for number in range(1_600)])
    # Then two requests were enough, and each is there once, ascending
    assert bus._requests._count - requests_before == 2
    assert sorted(int(message.payload) for message in found) == list(range(1_500))
    assert [message.seq for message in found] == sorted(message.seq for message in found)
    assert await bus.get_last_many("S", []) == []
    assert await bus.get_last_many("S", ["s.none"]) == []


async def test_wildcards_that_match_too_much_are_asked_in_halves(bus: Bus) -> None:
    # Given wildcards that match 1,500 subjects together, fewer each
    await create_stream(bus, subjects=["s.>"])
    await asyncio.gather(
        *(bus.store(f"s.{number % 3}.{number}", b"%d" % number) for number in range(1_500))
    )
    # When they are read in one call
    found = await bus.get_last_many("S", ["s.0.*", "s.1.*", "s.2.*"])
    # Then everything comes, and a single one that matches too much is an error
    assert sorted(int(message.payload) for message in found) == list(range(1_500))
    with pytest.raises(JetStreamApiError) as failure:
        await bus.get_last_many("S", ["s.>"])
    assert failure.value.code == 413


async def test_a_page_that_is_cut_by_bytes_goes_on_behind_it(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given more bytes than are sent in one batch
    monkeypatch.setattr(direct, "BATCH_BYTES_MAX", 10_000)
    await create_stream(bus)
    await store_many(bus, 600, size=100)
    batch = bus._reader._batch

    async def batch_while_others_write(
        stream: str, query: dict[str, object]
    ) -> tuple[list[StoredMessage], Reply]:
        answer = await batch(stream, query)
        await bus.store("s.0", b"000 of a later state")
        return answer

    monkeypatch.setattr(bus._reader, "_batch", batch_while_others_write)
    # When the last of each is read while others write
    found = await bus.get_last_many("S", [f"s.{number}" for number in range(600)])
    # Then each comes once, as the stream was at the first batch
    assert sorted(int(message.payload[:3]) for message in found) == list(range(600))


async def test_a_range_is_read_page_by_page(bus: Bus) -> None:
    # Given messages of two subjects, mixed
    await create_stream(bus)
    for number in range(10):
        await bus.store(f"s.{number % 2}", b"%d" % number + b"x" * 99)
    # When one subject is read in pages of two
    seen: list[int] = []
    from_seq, more = 1, True
    while more:
        page = await bus.get_range("S", "s.1", from_seq=from_seq, max_messages=2, max_bytes=10_000)
        seen.extend(message.seq for message in page.messages)
        from_seq, more = page.messages[-1].seq + 1, page.more
    # Then every message of that subject comes once, in order; bytes cut, too; behind the end is nothing
    assert seen == [2, 4, 6, 8, 10]
    short = await bus.get_range("S", "s.1", from_seq=1, max_messages=9, max_bytes=150)
    assert 0 < len(short.messages) < 5
    assert short.more
    nothing = await bus.get_range("S", "s.1", from_seq=11, max_messages=9, max_bytes=10_000)
    assert (list(nothing.messages), nothing.more) == ([], False)


async def test_an_entry_is_written_only_at_the_expected_revision(bus: Bus) -> None:
    # Given an entry
    await create_bucket(bus, "access")
    first = await bus.kv_put("access", "t1", b"one", expected=0)
    # When it is written with the right and with wrong revisions
    second = await bus.kv_put("access", "t1", b"two", expected=first)
    for wrong in (first, 0, second + 7):
        with pytest.raises(KvConflictError):
            await bus.kv_put("access", "t1", b"lost", expected=wrong)
    # Then only the right one counts, and without expectation the last writer wins
    entry = await bus.kv_get("access", "t1")
    assert entry == (b"two", second)
    assert await bus.kv_put("access", "t1", b"three", expected=None) > second
    assert await bus.kv_get("access", "t2") is None


async def test_of_ten_writers_of_one_revision_exactly_one_wins(bus: Bus) -> None:
    # Given an entry
    await create_bucket(bus, "access")
    revision = await bus.kv_put("access", "t1", b"0", expected=0)
    # When ten write at once on that revision
    outcomes = await asyncio.gather(
        *(bus.kv_put("access", "t1", b"%d" % writer, expected=revision) for writer in range(10)),
        return_exceptions=True,
    )
    # Then one wins
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, KvConflictError) for outcome in outcomes) == 9


async def test_a_deleted_entry_is_absent_and_may_be_created_again_once(bus: Bus) -> None:
    # Given a deleted entry, which leaves a marker
    await create_bucket(bus, "access")
    await bus.kv_put("access", "t1", b"one", expected=0)
    await bus.store("$KV.access.t1", b"", headers={"KV-Operation": "DEL"})
    # When it is read and created again, twice
    assert await bus.kv_get("access", "t1") is None
    await bus.kv_put("access", "t1", b"again", expected=0)
    with pytest.raises(KvConflictError):
        await bus.kv_put("access", "t1", b"twice", expected=0)
    # Then the first creation holds
    entry = await bus.kv_get("access", "t1")
    assert entry is not None
    assert entry.value == b"again"
