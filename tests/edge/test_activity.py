"""Thread activity: at most one a second per thread, the latest wins, never more than a second late."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge.activity import INTERVAL_S, Activity, ActivityCoalescer


def activity(number: int, thread_id: str = "t") -> Activity:
    return Activity("ava", thread_id, b"%d" % number)


def test_the_first_passes_and_the_latest_of_its_second_follows() -> None:
    # Given three activities of one thread within a second
    coalescer = ActivityCoalescer()
    assert coalescer.offer(activity(1), 10.0)
    assert not coalescer.offer(activity(2), 10.1)
    assert not coalescer.offer(activity(3), 10.2)
    # Then the first went out at once and only the last one follows, when its second is over
    assert coalescer.next_at == 11.0
    assert coalescer.release(10.9) == []
    assert coalescer.release(11.0) == [activity(3)]
    # And a quiet thread is forgotten
    assert coalescer.release(12.0) == []
    assert len(coalescer) == 0
    assert coalescer.next_at is None


def test_threads_and_users_do_not_wait_for_each_other() -> None:
    coalescer = ActivityCoalescer()
    assert coalescer.offer(activity(1, "t"), 0.0)
    assert coalescer.offer(activity(2, "u"), 0.0)
    assert coalescer.offer(Activity("ben", "t", b"3"), 0.0)


@given(
    st.lists(st.tuples(st.floats(0, 0.7), st.sampled_from(["t", "u"])), min_size=1, max_size=200)
)
def test_the_last_state_always_arrives_in_time_and_never_too_often(
    offers: list[tuple[float, str]],
) -> None:
    # Given activities at any times, and a timer that fires when asked
    coalescer, now = ActivityCoalescer(), 0.0
    sent: dict[str, list[tuple[float, int]]] = {"t": [], "u": []}
    offered: dict[str, list[tuple[float, int]]] = {"t": [], "u": []}

    def fire_until(end: float) -> None:
        while coalescer.next_at is not None and coalescer.next_at <= end:
            at = coalescer.next_at
            for released in coalescer.release(at):
                sent[released.thread_id].append((at, int(released.frame)))

    for number, (pause, thread_id) in enumerate(offers):
        now += pause
        fire_until(now)
        offered[thread_id].append((now, number))
        if coalescer.offer(activity(number, thread_id), now):
            sent[thread_id].append((now, number))
    fire_until(now + 10)
    for thread_id, events in offered.items():
        times = [at for at, _ in sent[thread_id]]
        # Then there is at least a second between two of a thread
        assert all(b - a >= INTERVAL_S - 1e-9 for a, b in pairwise(times))
        # And each state, or a later one, is out within a second
        for at, number in events:
            assert any(
                out <= at + INTERVAL_S + 1e-9 and later >= number for out, later in sent[thread_id]
            )
