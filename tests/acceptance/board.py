"""A thread as one client shows it: every change that arrived, merged by ``message_id`` as a program would."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from lilith_client import (
    CAUGHT_UP,
    CONNECTED,
    Client,
    Event,
    Message,
    MessageDeleted,
    MessageUpdated,
    Position,
)
from tests.acceptance.platform import Platform

PAGE: Final = 200


class Shown(NamedTuple):
    """One message on the board."""

    body: str
    edited: bool
    deleted: bool


class Board:
    """One user on one edge, looking at one thread. ``changes``: its events with a position, as they arrived."""

    def __init__(self, platform: Platform, user: str, thread_id: str, *, edge: int) -> None:
        self.thread_id = thread_id
        self.changes: list[Event] = []
        self.kinds: list[str] = []
        self.nodes: list[str] = []
        self.messages: dict[str, Shown] = {}
        self.client: Client = platform.client(user, edge=edge, on_event=self._note)

    @property
    def caught_up(self) -> int:
        """How often a replay ended."""
        return self.kinds.count(CAUGHT_UP)

    async def look(self, *, after: Position | str | None = None) -> bool:
        """Subscribe; return whether the edge replays what was missed."""
        return (await self.client.subscribe(self.thread_id, after=after)).recovered

    def position(self) -> Position:
        """Return where the board is."""
        found = self.client.position(self.thread_id)
        assert found is not None
        return found

    def _note(self, event: Event) -> None:
        self.kinds.append(event.type)
        if event.type == CONNECTED:
            self.nodes.append(event.data["hello"]["node"])
        if event.thread_id != self.thread_id or "prev_seq" not in event.data:
            return
        self.changes.append(event)
        match event.change:
            case Message() as message:
                assert message.message_id not in self.messages, "a message is new once"
                self.messages[message.message_id] = _shown(event.data)
            case MessageUpdated(message_id=message_id, body=body):
                assert message_id in self.messages, "an edit follows its message"
                self.messages[message_id] = Shown(body, edited=True, deleted=False)
            case MessageDeleted(message_id=message_id):
                old = self.messages[message_id]
                self.messages[message_id] = old._replace(body="", deleted=True)
            case _:
                pass


def assert_in_order_once(changes: Sequence[Event]) -> None:
    """Check that every change has its own place, and that each comes after the one before."""
    seqs = [event.data["seq"] for event in changes]
    assert seqs == sorted(set(seqs))


def assert_linked(changes: Sequence[Event]) -> None:
    """Check that each change names the one before it: no hole, as the edge tells it."""
    for earlier, later in pairwise(changes):
        assert later.data["prev_seq"] == earlier.data["seq"]


async def as_it_is(platform: Platform, user: str, thread_id: str) -> dict[str, Shown]:
    """Return the whole thread as REST shows it now, oldest message first."""
    rest, found, after = platform.rest(user), dict[str, Shown](), 0
    while True:
        page = await rest.messages(thread_id, after=after, limit=PAGE)
        found |= {item["message_id"]: _shown(item) for item in page}
        if len(page) < PAGE:
            return found
        after = page[-1]["seq"]


def _shown(message: dict[str, Any]) -> Shown:
    edited, deleted = message["edited_at"] is not None, message["deleted_at"] is not None
    return Shown(message["body"], edited, deleted)
