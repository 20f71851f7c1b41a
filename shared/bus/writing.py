"""One write per loop tick, and a bound on what waits."""

import asyncio
from typing import Final

from shared.bus.errors import BusDisconnectedError, BusOverloadedError

PENDING_BYTES_MAX: Final = 16 << 20
"""Bytes accepted and not yet taken by the kernel. At 50 MB/s this is a third of a second."""


class TickWriter:
    """Collects protocol lines and hands them to the transport together, at the end of the loop tick.

    ``open`` is true only while there is a connection on which everything written now would be sent.
    """

    def __init__(self, *, pending_bytes_max: int = PENDING_BYTES_MAX) -> None:
        self.open = False
        self._pending_bytes_max = pending_bytes_max
        self._wire: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._kernel_bytes = 0
        self._loop = asyncio.get_running_loop()

    def attach(self, wire: asyncio.Transport) -> None:
        """Write to this transport from now on; ``open`` is the caller's to set."""
        self._wire = wire

    def detach(self) -> None:
        """Drop what was not written, in ``flush``: nothing is kept for a later connection."""
        self.open = False
        self._wire = None

    def room_for(self, size: int) -> bool:
        """Whether that many bytes more stay within the bound."""
        if self._out_bytes + self._kernel_bytes + size <= self._pending_bytes_max:
            return True
        self._kernel_bytes = self._wire.get_write_buffer_size() if self._wire is not None else 0
        return self._out_bytes + self._kernel_bytes + size <= self._pending_bytes_max

    def write(self, line: bytes) -> None:
        """Queue a message.

        Raises:
            BusDisconnectedError: Not connected.
            BusOverloadedError: The bound is reached.
        """
        if not self.open:
            raise BusDisconnectedError("nothing was sent")
        if not self.room_for(len(line)):
            raise BusOverloadedError(f"{self._pending_bytes_max} bytes wait for NATS to read them")
        self.write_control(line)

    def write_control(self, line: bytes) -> None:
        """Queue a SUB, UNSUB or PING: small, bounded by their own tables, and never to be refused."""
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(line)
        self._out_bytes += len(line)

    def flush(self) -> None:
        """Hand everything to the transport now."""
        out, self._out, self._out_bytes = self._out, [], 0
        if out and self._wire is not None and not self._wire.is_closing():
            self._wire.write(b"".join(out))
            self._kernel_bytes = self._wire.get_write_buffer_size()
