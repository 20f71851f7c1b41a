"""Any history of a thread over any network: lost, doubled and late frames, resets, reconnects, a full queue.

The edge here is worse than the protocol allows: it may lose or repeat any frame but the first one after an ack, which
has no frame before it that could show the loss. Hypothesis decides what happens.
"""

from collections.abc import Sequence
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from lilith_client.objects import Event, Position
from lilith_client.subscriptions import Fill, Subscriptions

PAGE: Final = 3
STORED: Final = 6
STEPS_MIN: Final = 8
STEPS_MAX: Final = 60
Frame = dict[str, Any]


class World:
    """A log, an edge with one subscription, REST, and the client's positions. ``told`` is what the reader got."""

    def __init__(self, *, replay_max: int) -> None:
        self.log: list[Frame] = []
        self.told: list[int] = []
        self._replay_max = replay_max
        self._client = Subscriptions()
        self._client.add("r", "t", Position("c0", 0))
        self._edge_at: int | None = None
        self._is_first = True
        self._fill: Fill | None = None
        self._page_cursor: str | None = None

    def store(self, gap: int) -> None:
        """Store one event; seqs are not dense."""
        before = self.log[-1]["seq"] if self.log else 0
        seq = before + gap
        place = {"seq": seq, "prev_seq": before, "cursor": f"c{seq}", "message_id": f"m{seq}"}
        # Edits too: of messages alone a second copy would be known by its id.
        kind = ("message.new", "message.updated")[len(self.log) % 2]
        self.log.append({"type": kind, "thread_id": "t", **place})

    def deliver(self, *, lost: bool, twice: bool, room: bool) -> None:
        """Let the edge write its next event, which may be lost, or come twice."""
        if self._edge_at is None or not (missed := self._after(self._edge_at)):
            return
        self._edge_at = missed[0]["seq"]
        lost, self._is_first = lost and not self._is_first, False
        for _ in range(0 if lost else 2 if twice else 1):
            self._tell(self._client.arrive(missed[0], room=room))

    def subscribe(self) -> None:
        """Let the client ask for what it wants and the edge answer."""
        item = self._client.due(0.0)
        if item is None:
            return
        after = _seq_of(self._client.ask(item, 0.0)["after"])
        tail = self.log[-1]["seq"] if self.log else 0
        recovered = len(self._after(after)) <= self._replay_max
        self._edge_at, self._is_first = after if recovered else tail, True
        self._note(self._client.acknowledge("r", {"cursor": f"c{tail}", "recovered": recovered}))

    def read_page(self) -> None:
        """Let REST answer one page of the gap that is being filled."""
        if self._fill is None:
            return
        since = _seq_of(self._page_cursor or self._fill.after.cursor)
        found = self._after(since)
        for frame in found[:PAGE]:
            self._tell(self._client.fill(self._fill, frame))
        if len(found) > PAGE:
            self._page_cursor = found[PAGE - 1]["cursor"]
            return
        self._client.filled(self._fill, self.log[-1]["cursor"] if self.log else "c0")
        self._fill = None

    def reset(self) -> None:
        """Let the edge give the subscription up."""
        if self._edge_at is not None:
            self._edge_at = None
            fill = self._client.reset("t")
            self._note([fill] if fill else [])

    def disconnect(self) -> None:
        """End the connection, and what was under way on it."""
        self._edge_at = self._fill = None
        self._client.disconnected()

    def room(self) -> None:
        """Let the reader empty its queue."""
        self._client.room()

    def settle(self) -> None:
        """Let everything go well from here on, with one event more, which shows a lost last one."""
        self.room()
        self.store(1)
        for _ in range(3 * len(self.log) + 10):
            self.subscribe()
            self.read_page()
            self.deliver(lost=False, twice=False, room=True)

    def _after(self, seq: int) -> list[Frame]:
        return [frame for frame in self.log if frame["seq"] > seq]

    def _note(self, effects: Sequence[Event | Fill]) -> None:
        for effect in effects:
            assert isinstance(effect, Fill), "nothing is given up here"
            assert self._fill is None, "one gap is filled at a time"
            self._fill, self._page_cursor = effect, None

    def _tell(self, events: Sequence[Event]) -> None:
        self.told += [event.data["seq"] for event in events]


def _seq_of(cursor: str) -> int:
    return int(cursor.removeprefix("c"))


DELIVER: Final = st.tuples(
    st.just("deliver"),
    st.fixed_dictionaries(
        {
            "lost": st.sampled_from([False, True]),
            "twice": st.booleans(),
            "room": st.sampled_from([True, True, True, False]),
        }
    ),
)
STORE: Final = st.tuples(st.just("store"), st.fixed_dictionaries({"gap": st.integers(1, 5)}))
OTHER: Final[st.SearchStrategy[tuple[str, dict[str, Any]]]] = st.tuples(
    st.sampled_from(["subscribe", "read_page", "reset", "disconnect", "room"]), st.just({})
)
STEPS: Final = st.lists(
    st.one_of(DELIVER, DELIVER, DELIVER, STORE, OTHER), min_size=STEPS_MIN, max_size=STEPS_MAX
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(0, 2 * STORED))
def test_the_reader_gets_every_change_once_and_in_order_whatever_happens(
    steps: list[tuple[str, dict[str, Any]]], replay_max: int
) -> None:
    world = World(replay_max=replay_max)
    for _ in range(STORED):
        world.store(2)
    world.subscribe()
    # Given anything that a network, an edge and a reader may do
    for step, arguments in steps:
        getattr(world, step)(**arguments)
        # Then at no time there is a hole, a repetition or a step back
        assert world.told == [frame["seq"] for frame in world.log][: len(world.told)]
    # And once things go well, nothing is missing
    world.settle()
    assert world.told == [frame["seq"] for frame in world.log]
