"""Pins what ``shared.bus`` uses of nats-py beyond its public interface; an upgrade that moves it fails here."""

import inspect
from importlib.metadata import version

import pytest
from nats.aio import client as nats_client
from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.protocol.parser import Parser as NatsParser

from shared.bus.client import Client as OurClient
from shared.bus.parser import Parser as OurParser

ATTRIBUTES = (
    "_err",
    "_flusher_task",
    "_max_payload",
    "_ping_interval_task",
    "_pings_outstanding",
    "_pongs",
    "_pongs_received",
    "_ps",
    "_reading_task",
    "_sid",
    "_transport",
)
SIGNATURES = {
    "_attempt_reconnect": ["self"],
    "_close": ["self", "status", "do_cbs"],
    "_connect_to_server": ["self", "s"],
    "_process_connect_init": ["self"],
    "_process_err": ["self", "err_msg"],
    "_process_info": ["self", "info", "initial_connection"],
    "_process_msg": ["self", "sid", "subject", "reply", "data", "headers"],
    "_process_op_err": ["self", "e"],
    "_process_ping": ["self"],
    "_process_pong": ["self"],
    "_read_loop": ["self"],
    "force_reconnect": ["self"],
}
OVERRIDDEN = (
    "_close",
    "_connect_to_server",
    "_process_connect_init",
    "_process_err",
    "_process_op_err",
    "_process_pong",
    "_read_loop",
    "force_reconnect",
)


def test_the_version_of_nats_py_is_one_that_was_read() -> None:
    # Given the installed nats-py
    # When its version is looked at
    # Then it is one whose source this package was written against
    assert version("nats-py").split(".")[:2] == ["2", "16"]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_private_attribute_that_the_bus_uses_exists(name: str) -> None:
    # Given a client of nats-py
    # When the attribute is looked for
    # Then it is there
    assert hasattr(Client(), name)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_private_method_that_the_bus_uses_has_its_shape(name: str) -> None:
    # Given a method that is overridden or called
    method = getattr(Client, name)
    # When its parameters are looked at
    # Then they are the expected ones, and it is a coroutine
    assert list(inspect.signature(method).parameters) == SIGNATURES[name]
    assert inspect.iscoroutinefunction(method)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_every_override_replaces_a_method_of_nats_py(name: str) -> None:
    # Given a method of our client
    # When both classes are compared
    # Then ours replaces it
    assert name in vars(OurClient)
    assert getattr(OurClient, name) is not getattr(Client, name)


def test_our_parser_has_every_entry_of_the_one_it_stands_in_for() -> None:
    # Given both parsers
    source = inspect.getsource(nats_client)
    # When the client's uses of its parser are looked for
    used = {name for name in ("parse", "reset") if f"self._ps.{name}(" in source}
    # Then ours has them, and the client uses no other
    assert source.count("self._ps.") == source.count("self._ps.parse(") + source.count(
        "self._ps.reset("
    )
    assert used == {"parse", "reset"}
    for name in used:
        assert callable(getattr(NatsParser, name))
        assert callable(getattr(OurParser, name))


def test_the_transport_has_the_stream_writer_that_is_written_to() -> None:
    # Given a TCP transport that is not connected
    # When its writer is looked for
    # Then the attribute is there
    assert TcpTransport()._io_writer is None  # type: ignore[no-untyped-call]


def test_the_reconnect_replays_after_the_handshake_and_flushes_before_it_reports() -> None:
    # Given the source of the reconnect
    source = inspect.getsource(Client._attempt_reconnect)
    # When its steps are looked for
    steps = [
        source.index("await self._process_connect_init()"),
        source.index("prot_command.sub_cmd("),
        source.index("await self.flush()"),
        source.index("await self._reconnected_cb()"),
    ]
    # Then they stand in the order on which "ready" relies
    assert steps == sorted(steps)
