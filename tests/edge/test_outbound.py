"""What a socket is given, what waits for it, and who loses when it does not read."""

from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from edge.outbound import BYTES_MAX, FRAMES_MAX, Flusher, OutboundQueue, payload_of, text_frame


class Socket:
    """A transport that can be told to stop taking."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.scheduled = 0
        self.flusher = Flusher(self._call_soon)
        self.queue = OutboundQueue(self.writes.append, self.flusher)

    def _call_soon(self, callback: object) -> None:
        del callback
        self.scheduled += 1

    @property
    def written(self) -> bytes:
        return b"".join(self.writes)


@given(
    st.binary(max_size=300) | st.sampled_from([b"x" * size for size in (125, 126, 65_535, 65_536)])
)
def test_a_text_frame_is_what_the_library_would_write(payload: bytes) -> None:
    frame = text_frame(payload)
    assert frame == Frame(Opcode.TEXT, payload).serialize(mask=False)
    assert payload_of(frame) == payload


def test_all_frames_of_a_tick_are_one_write() -> None:
    # Given three frames in one tick
    socket = Socket()
    for frame in (b"a", b"b", b"c"):
        assert socket.queue.push(frame)
    # When the tick ends
    assert socket.writes == []
    socket.flusher.flush()
    # Then they are one write, asked for once
    assert socket.writes == [b"abc"]
    assert socket.scheduled == 1


def test_many_queues_share_one_flush() -> None:
    socket = Socket()
    other = OutboundQueue(socket.writes.append, socket.flusher)
    socket.queue.push(b"a")
    other.push(b"b")
    assert socket.scheduled == 1
    socket.flusher.flush()
    assert socket.writes == [b"a", b"b"]


def test_a_burst_in_one_tick_is_no_slow_reader() -> None:
    # Given a socket that takes everything, and more frames in one tick than a queue holds
    socket = Socket()
    frames = [b"%d," % number for number in range(10 * FRAMES_MAX)]
    # When they are pushed, then none is refused and all arrive in order
    assert all(socket.queue.push(frame) for frame in frames)
    socket.flusher.flush()
    assert socket.written == b"".join(frames)


def test_a_paused_socket_keeps_its_frames_until_it_reads_again() -> None:
    socket = Socket()
    socket.queue.pause(1.0)
    socket.queue.push(b"a")
    socket.flusher.flush()
    assert socket.writes == []
    socket.queue.resume()
    assert socket.writes == [b"a"]
    assert socket.queue.paused_at is None


def test_a_full_queue_drops_ephemeral_frames_and_then_refuses() -> None:
    # Given a socket that takes nothing, with every second frame ephemeral
    socket = Socket()
    socket.queue.pause(1.0)
    for number in range(FRAMES_MAX // 2):
        assert socket.queue.push(b"m%d," % number)
        socket.queue.push_ephemeral(b"e%d," % number)
    assert len(socket.queue) == FRAMES_MAX
    # When more messages come, then the ephemeral ones make room, all at once
    more = FRAMES_MAX // 2
    assert all(socket.queue.push(b"n%d," % number) for number in range(more))
    assert socket.queue.dropped == FRAMES_MAX // 2
    # And when there is no room left, the next message is refused and an ephemeral one dropped
    assert not socket.queue.push(b"too many")
    socket.queue.push_ephemeral(b"e")
    assert socket.queue.dropped == FRAMES_MAX // 2 + 1
    # And nothing that was accepted is missing
    socket.queue.resume()
    assert socket.written == b"".join(
        [b"m%d," % number for number in range(FRAMES_MAX // 2)]
        + [b"n%d," % number for number in range(more)]
    )


def test_bytes_are_bounded_too() -> None:
    socket = Socket()
    socket.queue.pause(1.0)
    half = b"x" * (BYTES_MAX // 2)
    assert socket.queue.push(half)
    assert socket.queue.push(half)
    assert not socket.queue.push(b"y")


def test_a_slow_session_loses_its_queue_but_hears_why() -> None:
    socket = Socket()
    socket.queue.pause(1.0)
    socket.queue.push(b"never read")
    socket.queue.finish(b"close", keep=False)
    assert socket.writes == [b"close"]
    assert socket.queue.push(b"after the close")
    socket.flusher.flush()
    socket.queue.resume()
    assert socket.writes == [b"close"]


def test_a_close_comes_after_everything_that_was_queued() -> None:
    socket = Socket()
    socket.queue.push(b"ack,")
    socket.queue.finish(b"close", keep=True)
    socket.flusher.flush()
    assert socket.written == b"ack,close"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "ephemeral", "flush", "pause", "resume"]),
            st.integers(1, 9_000),
        ),
        max_size=600,
    )
)
def test_whatever_happens_accepted_frames_arrive_in_order_and_the_bound_holds(
    steps: list[tuple[str, int]],
) -> None:
    # Given any sequence of pushes and of a socket that stops and goes on
    socket = Socket()
    accepted, ephemeral = [], set()
    for number, (step, size) in enumerate(steps):
        frame = (b"%d" % number).ljust(size, b".") + b";"
        if step == "push":
            if not socket.queue.push(frame):
                break
            accepted.append(frame)
        elif step == "ephemeral":
            socket.queue.push_ephemeral(frame)
            accepted.append(frame)
            ephemeral.add(frame)
        elif step == "flush":
            socket.flusher.flush()
        elif step == "pause":
            socket.queue.pause(1.0)
        else:
            socket.queue.resume()
        # Then the bound holds at every moment
        assert len(socket.queue) <= FRAMES_MAX
        assert sum(map(len, socket.queue._frames)) == socket.queue._bytes
        assert socket.queue._bytes <= BYTES_MAX or len(socket.queue) == 1
    # And what arrives is what was accepted, in order; only ephemeral frames may be missing
    socket.queue.resume()
    arrived = [part + b";" for part in socket.written.split(b";")[:-1]]
    positions = [accepted.index(frame) for frame in arrived]
    assert positions == sorted(positions)
    missing = set(accepted) - set(arrived)
    assert missing <= ephemeral
    assert socket.queue.dropped == len(missing)
