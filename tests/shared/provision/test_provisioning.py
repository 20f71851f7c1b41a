"""Provisioning on a real server and database: what it makes, what it changes, what it leaves alone."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from shared.bus import Bus
from shared.errors import ConfigurationError
from shared.provision import ProvisionError, provision, queries
from shared.provision.streams import (
    consumers,
    ns,
    other_streams,
)
from tests.shared.provision.logs import configured, generation_in, info_of, send
from tests.support.nats_streams import connected
from tests.support.servers import NatsServer

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]


async def test_a_first_run_makes_everything_and_a_second_changes_nothing(
    bus: Bus, pool: "Pool"
) -> None:
    # Given an empty server and database
    settings = configured()
    # When it is provisioned twice
    first = await provision(bus, pool, settings)
    second = await provision(bus, pool, settings)
    # Then the first run made all streams and consumers, the second none, and both say so
    wanted = [config["name"] for config in other_streams(settings)]
    names = (await bus.api("STREAM.NAMES"))["streams"]
    assert sorted(names) == sorted(["MSG_0", *wanted])
    assert first.changed
    assert not second.changed
    assert len(first.created) == len(second.unchanged) == len(wanted) + 1 + 4
    assert "created stream MSG_0" in first.lines()
    assert "flushes before it acknowledges" in first.lines()[0]
    assert await generation_in(pool) == 1
    assert first.generations == second.generations == {"MSG_0": 1}


async def test_the_log_refuses_when_full_never_forgets_and_never_deletes(
    bus: Bus, pool: "Pool"
) -> None:
    # Given a provisioned server
    await provision(bus, pool, configured())
    # When the configuration of the log is read back
    info = await info_of(bus)
    # Then it is the one of the architecture
    expected = {
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_age": ns(72 * 3600),
        "duplicate_window": ns(300),
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": True,
        "allow_atomic": True,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": False,
        "republish": {"src": "msg.>", "dest": "live.>"},
    }
    assert {field: info["config"].get(field) for field in expected} == expected
    assert info["config"]["max_bytes"] > 0
    assert info["config"].get("persist_mode") != "async"
    assert info["state"]["first_seq"] == 1 << 40


async def test_receipts_rate_and_buckets_keep_the_last_value_of_a_subject(
    bus: Bus, pool: "Pool"
) -> None:
    await provision(bus, pool, configured(messaging_throttle_ttl=30_000))
    rcpt, rate, nodes = [
        (await info_of(bus, name))["config"] for name in ("RCPT", "RATE", "KV_nodes")
    ]
    access = (await info_of(bus, "KV_access"))["config"]
    for config in (rcpt, rate, nodes, access):
        assert config["max_msgs_per_subject"] == 1
        assert config["allow_direct"]
    # None of them in memory: what a single server keeps there is gone after its restart, the stream itself too.
    for config in (rcpt, rate, nodes):
        assert (config["storage"], config["persist_mode"]) == ("file", "async")
    assert (rate["allow_msg_counter"], rate["max_age"]) == (True, ns(60))
    assert access["republish"] == {"src": "$KV.access.>", "dest": "inv.access.>"}
    assert access["storage"] == "file"


async def test_eight_streams_share_the_shards(bus: Bus, pool: "Pool") -> None:
    # Given a production with eight streams
    await provision(bus, pool, configured(messaging_streams=8))
    # When messages of many shards are stored
    held = [(await info_of(bus, f"MSG_{number}"))["config"]["subjects"] for number in range(8)]
    # Then each stream takes its range
    assert [len(subjects_) for subjects_ in held] == [32] * 8
    assert held[7][-1] == "msg.255.*"


async def test_platform_services_get_the_consumers_that_are_asked_for(
    bus: Bus, pool: "Pool"
) -> None:
    await provision(bus, pool, configured(messaging_platform_consumers="crm, push"))
    names = (await bus.api("CONSUMER.NAMES.EVENTS"))["consumers"]
    assert sorted(names) == ["analytics", "crm", "push"]


@pytest.mark.parametrize("names", ["analytics", "a b", "crm,persister", "x.y", "*", "é"])
def test_a_consumer_cannot_have_our_names_or_impossible_ones(names: str) -> None:
    with pytest.raises(ConfigurationError, match="MESSAGING_PLATFORM_CONSUMERS"):
        list(consumers(configured(messaging_platform_consumers=names)))


async def test_a_run_waits_for_the_one_before_it(bus: Bus, pool: "Pool") -> None:
    # Given a provisioning in the middle of its work
    async with pool.acquire() as connection:
        other = connection.transaction()
        await other.start()
        await connection.execute(queries.LOCK, "provision")
        # When another one starts
        waiting = asyncio.create_task(provision(bus, pool, configured()))
        await asyncio.sleep(0.3)
        # Then it makes nothing until the first one is done
        assert (await bus.api("STREAM.NAMES"))["streams"] in (None, [])
        await other.rollback()
    assert (await waiting).changed


async def test_two_runs_at_once_make_everything_once(
    nats_server: NatsServer, bus: Bus, pool: "Pool"
) -> None:
    # Given two provisionings, as two deployments start them
    async with connected(nats_server, "provision", "second") as other:
        # When both run at the same time
        reports = await asyncio.gather(
            provision(bus, pool, configured()), provision(other, pool, configured())
        )
    # Then one made it and the other found it
    assert sorted(report.changed for report in reports) == [False, True]


async def test_what_may_be_changed_is_changed_in_place_and_keeps_the_messages(
    nats_server: NatsServer, bus: Bus, pool: "Pool"
) -> None:
    # Given a log with messages
    await provision(bus, pool, configured())
    await send(nats_server, 3)
    # When it is provisioned with other sizes and times
    settings = configured(
        messaging_log_age="24h", messaging_log_bytes=10_000_000, messaging_dedupe_window="4m"
    )
    report = await provision(bus, pool, settings)
    # Then they hold, the messages are there, and the report says what was before
    info = await info_of(bus)
    assert info["config"]["max_age"] == ns(86_400)
    assert info["config"]["max_bytes"] == 10_000_000
    assert info["config"]["duplicate_window"] == ns(240)
    assert info["state"]["messages"] == 3
    assert any("MSG_0" in line and "max_age" in line for line in report.lines())
    assert report.generations == {"MSG_0": 1}


async def test_a_consumer_is_brought_up_to_date_and_keeps_its_place(
    nats_server: NatsServer, bus: Bus, pool: "Pool"
) -> None:
    # Given a persister that has read something, and a consumer with an old limit
    await provision(bus, pool, configured())
    last_seq = await send(nats_server, 3)
    async with connected(nats_server, "persister") as reader:
        puller = reader.puller("MSG_0", "persister", batch_max=10, bytes_max=100_000)
        await puller.ack((await puller.next_batch(wait_s=2))[-1])
    config = (await bus.api("CONSUMER.INFO.MSG_0.persister"))["config"]
    await bus.api(
        "CONSUMER.CREATE.MSG_0.persister",
        {"stream_name": "MSG_0", "config": {**config, "max_ack_pending": 7}, "action": "update"},
    )
    # When it is provisioned again
    report = await provision(bus, pool, configured())
    # Then the limit is right and the place is kept
    info = await bus.api("CONSUMER.INFO.MSG_0.persister")
    assert info["config"]["max_ack_pending"] > 7
    assert info["ack_floor"]["stream_seq"] == last_seq
    assert [line.split(" (")[0] for line in report.updated] == ["consumer MSG_0/persister"]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("RCPT", "storage", "memory"),
        ("EVENTS", "subjects", ["other.>"]),
        ("RATE", "allow_msg_counter", False),
        ("PLATFORM", "retention", "workqueue"),
    ],
)
async def test_what_cannot_be_changed_in_place_is_refused_with_both_values(
    bus: Bus, pool: "Pool", name: str, field: str, value: object
) -> None:
    # Given a stream that somebody made in another way
    wanted = next(config for config in other_streams(configured()) if config["name"] == name)
    made = {key: item for key, item in wanted.items() if key not in {"persist_mode", field}}
    await bus.api(f"STREAM.CREATE.{name}", {**made, field: value})
    # When the server is provisioned
    # Then it is refused, and the stream is as it was
    with pytest.raises(ProvisionError, match=rf"stream {name} .*cannot be changed.*{field}"):
        await provision(bus, pool, configured())
    assert (await info_of(bus, name))["config"].get(field, False) == value


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (8, 4)])
async def test_another_number_of_message_streams_is_not_a_setting(
    bus: Bus, pool: "Pool", before: int, after: int
) -> None:
    # Given message streams
    await provision(bus, pool, configured(messaging_streams=before))
    # When another number is configured
    # Then it is refused: events of a thread would be in two streams
    with pytest.raises(ProvisionError, match=f"MESSAGING_STREAMS={after}.*MSG_0"):
        await provision(bus, pool, configured(messaging_streams=after))


async def test_every_statement_can_be_prepared(pool: "Pool") -> None:
    statements = [text for name, text in vars(queries).items() if name.isupper()]
    assert len(statements) == 4
    async with pool.acquire() as connection:
        for text in statements:
            await connection.prepare(text)
