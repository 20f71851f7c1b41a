"""Is the running server what we promise? Asked of the servers themselves, not of a configuration file.

Every server of the cluster answers ``subjects.SERVER_STATE`` with its configuration; the system account exports that
one subject to ours (``nats/authorization.conf``).
"""

import asyncio
import re
from typing import Any, Final

import msgspec

from shared.bus import Bus
from shared.identity import new_id
from shared.provision.errors import ProvisionError
from shared.provision.streams import ENTRY_BYTES_MAX
from shared.subjects import SERVER_STATE, inbox_prefix

VERSION_MIN: Final = (2, 14, 0)
"""Consumer reset came with 2.14; atomic batches, counters and ``persist_mode`` with 2.12."""

_FIRST_ANSWER_S: Final = 5.0
_ALL_ANSWERS_S: Final = 1.0
_ACK_FLAG: Final = "js_ack_fc_v2"


async def check_servers(
    bus: Bus, *, role: str, replicas: int, relaxed_sync: bool = False
) -> list[str]:
    """Return one line per running server after checking that an acknowledgement means what we promise.

    Args:
        bus: A connection of ``role``.
        role: Whose inbox to use.
        replicas: How many servers with JetStream there must be.
        relaxed_sync: Accept a server that flushes later. For benchmarks and tests that say so, never by default.

    Raises:
        ProvisionError: A server would break a promise, or does not tell.
    """
    states = await _ask(bus, role)
    servers = [state for state in states if state.get("jetstream", {}).get("config")]
    if len(servers) < replicas:
        raise ProvisionError(
            f"MESSAGING_REPLICAS is {replicas}, but {len(servers)} NATS server(s) with JetStream answered: "
            f"start the others, or lower MESSAGING_REPLICAS"
        )
    for server in servers:
        _check(server, relaxed_sync=relaxed_sync)
    return [f"nats-server {server['version']} {server['server_name']}" for server in servers]


def _check(state: dict[str, Any], *, relaxed_sync: bool) -> None:
    name = f"NATS server {state.get('server_name')}"
    version = tuple(int(part) for part in re.findall(r"\d+", state.get("version", ""))[:3])
    if version < VERSION_MIN:
        raise ProvisionError(
            f"{name} is version {state.get('version')}: at least {'.'.join(map(str, VERSION_MIN))} is needed"
        )
    if not state["jetstream"]["config"].get("sync_always") and not relaxed_sync:
        raise ProvisionError(
            f"{name} runs without `sync_interval: always`: it would acknowledge messages that a power cut loses. "
            f"Set it in the jetstream block (see nats/server.conf) and restart the server"
        )
    if state.get("feature_flags", {}).get(_ACK_FLAG):
        raise ProvisionError(
            f"{name} runs with the feature flag {_ACK_FLAG}, which the client library cannot read. "
            f"Set `feature_flags {{ {_ACK_FLAG}: false }}` (see nats/server.conf) and restart the server"
        )
    if state.get("max_payload", 0) <= ENTRY_BYTES_MAX:
        raise ProvisionError(
            f"{name} takes messages of at most {state.get('max_payload')} bytes: set max_payload to 256KB"
        )


async def _ask(bus: Bus, role: str) -> list[dict[str, Any]]:
    """Return the state of every server: the first answer says whether to wait for more."""
    answers: dict[str, dict[str, Any]] = {}
    came = asyncio.Event()

    def take(_subject: bytes, _reply: bytes, _headers: bytes, payload: bytes) -> None:
        answer = msgspec.json.decode(payload)
        answers[answer["server"]["id"]] = answer.get("data", {})
        came.set()

    inbox = f"{inbox_prefix(role, 'state')}.{new_id()}"
    subscription = bus.subscribe(inbox, take)
    try:
        bus.publish(SERVER_STATE, b"", reply=inbox.encode())
        async with asyncio.timeout(_FIRST_ANSWER_S):
            await came.wait()
        if any(state.get("cluster", {}).get("name") for state in answers.values()):
            await asyncio.sleep(_ALL_ANSWERS_S)
    except TimeoutError as error:
        raise ProvisionError(
            f"no NATS server tells its configuration: use nats/authorization.conf, which lets {role} ask for it"
        ) from error
    finally:
        subscription.close()
    return list(answers.values())
