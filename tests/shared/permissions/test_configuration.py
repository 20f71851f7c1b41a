"""The server's own files: fresh, closed to strangers, and telling what they promise."""

from pathlib import Path

import msgspec
import pytest

from shared import subjects
from shared.bus import (
    Bus,
    BusUnauthorizedError,
)
from shared.provision.authorization import STREAMS_MAX, render_authorization
from tests.shared.permissions.guests import Guests
from tests.support.servers import NatsServer


def test_the_committed_file_is_what_the_subjects_say() -> None:
    # Given the file in the repository
    committed = (Path(__file__).parents[3] / "nats" / "authorization.conf").read_text()
    # When it is rendered anew
    # Then nothing differs: nats/README.md has the command that writes it
    assert committed == render_authorization()
    assert f"MSG_{STREAMS_MAX - 1}" in committed


async def test_clients_and_monitoring_are_reached_from_this_machine_alone(guests: Guests) -> None:
    # Given the configuration of the embedded default
    edge = await guests.come("edge")
    # When the server is asked where it listens
    state = msgspec.json.decode(await edge.request(subjects.SERVER_STATE, b"", timeout_s=2))["data"]
    # Then that is this machine
    assert (state["host"], state["http_host"]) == ("127.0.0.1", "127.0.0.1")


async def test_a_role_may_ask_the_servers_for_their_state_and_the_platform_may_not(
    guests: Guests,
) -> None:
    for role in ("edge", "persister", "api", "analytics", "provision"):
        bus = await guests.come(role)
        answer = await bus.request(subjects.SERVER_STATE, b"", timeout_s=2)
        assert msgspec.json.decode(answer)["data"]["jetstream"]["config"]["sync_always"]
    assert guests.violations == []
    platform = await guests.come("platform")
    platform.publish(subjects.SERVER_STATE, b"")
    await guests.refuses(None, naming="VARZ")


@pytest.mark.parametrize("url", ["nats://127.0.0.1:{port}", "nats://edge:wrong@127.0.0.1:{port}"])
async def test_nobody_comes_in_without_a_password(nats_server: NatsServer, url: str) -> None:
    with pytest.raises(BusUnauthorizedError):
        await Bus.connect(
            url.format(port=nats_server.port),
            name="stranger",
            on_closed=lambda _reason: None,
            inbox_prefix="_INBOX",
            connect_timeout_s=5,
        )
