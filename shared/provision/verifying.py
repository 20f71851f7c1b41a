"""What a service checks before it serves: the servers, and every stream and consumer that it uses. Reads only."""

import asyncio
from collections.abc import Iterator
from typing import Any, Final

from shared import subjects
from shared.bus import Bus, BusError, JetStreamApiError
from shared.provision.differences import differences, generation_of
from shared.provision.errors import ProvisionError
from shared.provision.server import check_servers
from shared.provision.streams import (
    GENERATION_BITS,
    Config,
    consumers,
    first_seq_of,
    message_stream,
    other_streams,
)
from shared.settings import Settings

_PATIENCE_S: Final = 20.0
"""A cluster that has just started, or lost a leader, answers within this."""
_PAUSE_S: Final = 0.25

_OTHERS: Final = {
    "edge": {
        subjects.RCPT_STREAM,
        subjects.RATE_STREAM,
        *map(subjects.bucket_stream, subjects.BUCKETS),
    },
    "persister": {subjects.RCPT_STREAM, subjects.EVENTS_STREAM},
    "api": {
        subjects.RCPT_STREAM,
        subjects.RATE_STREAM,
        subjects.EVENTS_STREAM,
        subjects.PLATFORM_STREAM,
        *map(subjects.bucket_stream, subjects.BUCKETS),
    },
    "analytics": {subjects.EVENTS_STREAM},
}
"""Which streams beside the message streams a role uses; its durable consumers are those of its own name."""


async def verify(
    bus: Bus, settings: Settings, *, role: str, relaxed_sync: bool = False
) -> dict[str, int]:
    """Return the generation of each message stream after checking everything that ``role`` uses.

    Args:
        bus: A connection of ``role``.
        settings: Of this process: a service that computes with another log age must not start.
        role: ``edge``, ``persister``, ``api`` or ``analytics``.
        relaxed_sync: As for ``check_servers``.

    Raises:
        ProvisionError: Something is missing or different; the text says what to do.
        BusError: NATS did not answer in time.
    """
    await check_servers(
        bus, role=role, replicas=settings.messaging_replicas, relaxed_sync=relaxed_sync
    )
    generations = {}
    if role != "analytics":
        for number, name in enumerate(subjects.stream_names(settings.messaging_streams)):
            generations[name] = await _verify_message_stream(bus, settings, number)
    for wanted in _others(settings, role):
        info = await _info(bus, f"STREAM.INFO.{wanted['name']}", wanted["name"])
        _compare(info["config"], wanted, wanted["name"])
    for consumer in consumers(settings):
        if consumer.durable == role:
            name = f"{consumer.stream}/{consumer.durable}"
            info = await _info(bus, f"CONSUMER.INFO.{consumer.stream}.{consumer.durable}", name)
            _compare(info["config"], consumer.config, name)
    return generations


async def _verify_message_stream(bus: Bus, settings: Settings, number: int) -> int:
    name = subjects.stream_names(settings.messaging_streams)[number]
    info = await _info(bus, f"STREAM.INFO.{name}", name)
    generation = generation_of(info)
    if not generation or info["state"]["last_seq"] < first_seq_of(generation) - 1:
        raise ProvisionError(
            f"stream {name} carries generation {generation} but stands at {info['state']['last_seq']}, "
            f"below {generation} << {GENERATION_BITS}: it was not made by `lilith provision`"
        )
    _compare(info["config"], message_stream(settings, number, generation), name)
    return generation


def _others(settings: Settings, role: str) -> Iterator[Config]:
    return (config for config in other_streams(settings) if config["name"] in _OTHERS[role])


def _compare(actual: Config, wanted: Config, name: str) -> None:
    found = [item for item in differences(actual, wanted) if item.field != "description"]
    if found:
        raise ProvisionError(
            f"{name} is not as this service is configured ({'; '.join(map(str, found))}): "
            f"give both the same settings, and run `lilith provision`"
        )


async def _info(bus: Bus, suffix: str, name: str) -> dict[str, Any]:
    deadline = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        try:
            return await bus.api(suffix)
        except JetStreamApiError as error:
            if error.code == 404:
                raise ProvisionError(f"{name} does not exist: run `lilith provision`") from error
            raise
        except BusError as error:
            if not error.retry or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(_PAUSE_S)
