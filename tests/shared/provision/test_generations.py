"""The lives of a message stream: positions only grow, and a loss is an operator's decision."""

from typing import TYPE_CHECKING, Any

import pytest

from shared.bus import Bus, JetStreamApiError
from shared.errors import ConfigurationError
from shared.provision import ProvisionError, provision, queries
from shared.provision.streams import (
    GENERATION_MAX,
    first_seq_of,
    message_stream,
)
from tests.shared.provision.logs import configured, generation_in, info_of, persisted, send
from tests.support.servers import NatsServer

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]


async def test_a_lost_log_is_refused_until_its_loss_is_accepted(bus: Bus, pool: "Pool") -> None:
    # Given a log that was in use, and whose store is gone
    await provision(bus, pool, configured())
    await persisted(pool, first_seq_of(1) + 17)
    await bus.api("STREAM.DELETE.MSG_0")
    # When it is provisioned
    # Then the text says what to do, and nothing was made
    with pytest.raises(ProvisionError, match="--new-generation MSG_0"):
        await provision(bus, pool, configured())
    with pytest.raises(JetStreamApiError):
        await info_of(bus)
    # And when the loss is accepted, its next life begins above everything of the first
    report = await provision(bus, pool, configured(), new_generation=["MSG_0"])
    info = await info_of(bus)
    assert report.generations == {"MSG_0": 2}
    assert info["state"]["first_seq"] == 2 << 40
    assert info["config"]["metadata"]["generation"] == "2"
    assert await generation_in(pool) == 2


async def test_a_lost_log_is_refused_even_if_nothing_of_it_was_persisted(
    bus: Bus, pool: "Pool"
) -> None:
    await provision(bus, pool, configured())
    await bus.api("STREAM.DELETE.MSG_0")
    with pytest.raises(ProvisionError, match="--new-generation MSG_0"):
        await provision(bus, pool, configured())


async def test_a_new_generation_is_above_every_stored_position_whatever_was_counted(
    bus: Bus, pool: "Pool"
) -> None:
    # Given a database whose count of generations is behind its own positions
    await persisted(pool, first_seq_of(4) + 3)
    # When the log is made
    report = await provision(bus, pool, configured(), new_generation=["MSG_0"])
    # Then it begins above them
    assert report.generations == {"MSG_0": 5}


async def test_a_present_log_keeps_its_generation_whatever_is_accepted(
    nats_server: NatsServer, bus: Bus, pool: "Pool"
) -> None:
    # Given a log in use
    await provision(bus, pool, configured())
    await send(nats_server, 2)
    # When somebody accepts a loss that did not happen
    report = await provision(bus, pool, configured(), new_generation=["MSG_0"])
    # Then nothing is lost
    assert report.generations == {"MSG_0": 1}
    assert (await info_of(bus))["state"]["messages"] == 2


async def test_a_log_that_ends_below_what_is_stored_is_refused(
    nats_server: NatsServer, bus: Bus, pool: "Pool"
) -> None:
    # Given a log that was restored from an old copy, or lost its end in a power cut
    await provision(bus, pool, configured())
    last_seq = await send(nats_server, 3)
    await persisted(pool, last_seq + 1)
    # When it is provisioned
    # Then it is refused, because its next messages would be taken for stored ones
    with pytest.raises(ProvisionError, match=rf"ends at {last_seq}.*--new-generation MSG_0"):
        await provision(bus, pool, configured())


async def test_a_log_of_an_older_generation_is_refused(bus: Bus, pool: "Pool") -> None:
    # Given a log of generation 1 where generation 3 was in use
    await provision(bus, pool, configured())
    await pool.execute(queries.SAVE_GENERATION, "MSG_0", 3)
    # When it is provisioned
    # Then it is refused
    with pytest.raises(ProvisionError, match="generation 3 was in use"):
        await provision(bus, pool, configured())


async def test_a_fresh_database_takes_the_generation_of_the_log(
    nats_server: NatsServer, bus: Bus, pool: "Pool"
) -> None:
    # Given a log in its third life and a database that was made anew
    config = message_stream(configured(), 0, 3)
    await bus.api("STREAM.CREATE.MSG_0", config)
    await send(nats_server, 2)
    # When it is provisioned
    report = await provision(bus, pool, configured())
    # Then the database knows, and the messages can be read into it
    assert report.generations == {"MSG_0": 3}
    assert await generation_in(pool) == 3
    assert (await info_of(bus))["state"]["messages"] == 2


@pytest.mark.parametrize(
    "change", [{"metadata": {}}, {"metadata": {"generation": "x"}}, {"first_seq": 1}]
)
async def test_a_log_that_somebody_else_made_is_refused(
    bus: Bus, pool: "Pool", change: dict[str, Any]
) -> None:
    # Given a stream of our name without our generation, or below it
    await bus.api("STREAM.CREATE.MSG_0", {**message_stream(configured(), 0, 1), **change})
    # When it is provisioned
    # Then it is refused
    with pytest.raises(ProvisionError, match="not made by"):
        await provision(bus, pool, configured())


async def test_a_loss_of_something_unknown_cannot_be_accepted(bus: Bus, pool: "Pool") -> None:
    with pytest.raises(ProvisionError, match="MSG_7"):
        await provision(bus, pool, configured(), new_generation=["MSG_7"])


def test_generations_end_before_positions_outgrow_a_javascript_number() -> None:
    assert first_seq_of(GENERATION_MAX) + 2**40 - 1 == 2**53 - 1
    for generation in (0, GENERATION_MAX + 1):
        with pytest.raises(ConfigurationError):
            first_seq_of(generation)
