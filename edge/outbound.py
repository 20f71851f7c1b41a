"""What waits to be written to one socket: bounded, written once per loop tick, dropped in a stated order. No tasks.

A session that reads keeps an empty queue. One that does not read fills the kernel's buffer, then the transport's,
then this queue; from there on somebody must lose, and the answer is written down here: typing and the like first,
then the session itself, which comes back and resumes. A message is never dropped in silence.
"""

from collections.abc import Callable
from typing import Final

FRAMES_MAX: Final = 256
BYTES_MAX: Final = 256 * 1024
PING_FRAME: Final = b"\x89\x00"

_SHORT_MAX: Final = 126
_MEDIUM_MAX: Final = 1 << 16


def text_frame(payload: bytes) -> bytes:
    """Return the WebSocket frame of a text, complete and unmasked: encoded once, written to any number of sockets."""
    size = len(payload)
    if size < _SHORT_MAX:
        return bytes((0x81, size)) + payload
    if size < _MEDIUM_MAX:
        return bytes((0x81, 126, size >> 8, size & 0xFF)) + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def payload_of(frame: bytes) -> bytes:
    """Return the text inside a frame made by ``text_frame``."""
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :]


class Flusher:
    """One list of the queues that have something to write, and one callback per loop tick for all of them."""

    __slots__ = ("_call_soon", "_dirty")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._dirty: list[OutboundQueue] = []

    def mark(self, queue: "OutboundQueue") -> None:
        """Have the queue written at the end of this tick; its first frame of the tick calls this."""
        if not self._dirty:
            self._call_soon(self.flush)
        self._dirty.append(queue)

    def flush(self) -> None:
        """Write every marked queue: one write per socket, however many frames it got in this tick."""
        dirty, self._dirty = self._dirty, []
        for queue in dirty:
            queue.write_out()


class OutboundQueue:
    """The frames of one session that its transport has not been given yet."""

    __slots__ = (
        "_bytes",
        "_ephemeral",
        "_flusher",
        "_frames",
        "_when_room",
        "_write",
        "closed",
        "dropped",
        "paused_at",
    )

    def __init__(self, write: Callable[[bytes], None], flusher: Flusher) -> None:
        self._write = write
        self._flusher = flusher
        self._frames: list[bytes] = []
        self._bytes = 0
        self._ephemeral: list[int] = []
        self._when_room: list[Callable[[], None]] = []
        self.closed = False
        self.dropped = 0
        self.paused_at: float | None = None

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def has_room(self) -> bool:
        """Whether less than half is taken: what can wait, as a replay can, is pushed only then."""
        return len(self._frames) < FRAMES_MAX // 2 and self._bytes < BYTES_MAX // 2

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call back once, when the queue has been written or given up."""
        self._when_room.append(callback)

    def push(self, frame: bytes) -> bool:
        """Queue a frame that must arrive. False: there is no room, and the session has to be closed as slow."""
        if self.closed:
            return True
        frames = self._frames
        if not frames:
            self._flusher.mark(self)
        elif (
            len(frames) >= FRAMES_MAX or self._bytes + len(frame) > BYTES_MAX
        ) and not self._make_room(len(frame)):
            return False
        # ``_make_room`` may have replaced the list.
        self._frames.append(frame)
        self._bytes += len(frame)
        return True

    def push_ephemeral(self, frame: bytes) -> None:
        """Queue a frame that may be lost: it is dropped when there is no room, now or later."""
        if self.closed:
            return
        if self.paused_at is not None and (
            len(self._frames) >= FRAMES_MAX or self._bytes + len(frame) > BYTES_MAX
        ):
            self.dropped += 1
            return
        position = len(self._frames)
        if self.push(frame):
            # A full queue that was writable is empty by now, and the frame its first.
            self._ephemeral.append(min(position, len(self._frames) - 1))

    def write_out(self) -> None:
        """Give everything to the transport in one write, unless it asked to wait."""
        if self.paused_at is None:
            self._write_all()

    def pause(self, now: float) -> None:
        """The transport holds more than it wants to: keep frames here from ``now`` (seconds) on."""
        self.paused_at = now

    def resume(self) -> None:
        """The transport has room again."""
        self.paused_at = None
        self._write_all()

    def finish(self, last: bytes, *, keep: bool) -> None:
        """Write the close frame, before it what still waits if ``keep``, and take nothing any more."""
        if self.closed:
            return
        if not keep:
            self._clear()
        self._frames.append(last)
        self._write_all()
        self.closed = True
        self._tell_of_room()

    def abandon(self) -> None:
        """Drop everything: the socket is gone."""
        self._clear()
        self.closed = True
        self._tell_of_room()

    def _write_all(self) -> None:
        frames = self._frames
        if not frames or self.closed:
            return
        self._clear()
        self._write(frames[0] if len(frames) == 1 else b"".join(frames))
        if self._when_room:
            self._tell_of_room()

    def _make_room(self, size: int) -> bool:
        if self.paused_at is None:
            # A burst within one tick is no slow reader: the transport takes it and says when it is enough.
            self._write_all()
            return True
        if self._ephemeral:
            gone = set(self._ephemeral)
            self._frames = [frame for at, frame in enumerate(self._frames) if at not in gone]
            self._bytes = sum(map(len, self._frames))
            self._ephemeral = []
            self.dropped += len(gone)
        return len(self._frames) < FRAMES_MAX and self._bytes + size <= BYTES_MAX

    def _tell_of_room(self) -> None:
        callbacks, self._when_room = self._when_room, []
        for callback in callbacks:
            callback()

    def _clear(self) -> None:
        self._frames = []
        self._bytes = 0
        self._ephemeral = []
