"""Clients that note what they saw, and the comparison of every place where a message can be seen."""

from collections import defaultdict
from typing import Final, NamedTuple

from lilith_client import Client, Event
from tests.acceptance.platform import Platform

PAGE: Final = 200
IN_POSTGRES: Final = """
    SELECT replace(message_id::text, '-', '') AS message_id, seq, body FROM messages
    WHERE thread_id = $1::uuid ORDER BY seq
"""


class Seen(NamedTuple):
    """A message as one place shows it."""

    message_id: str
    seq: int
    body: str


class Member:
    """One user on one edge, and what arrived there, thread by thread, in order of arrival."""

    def __init__(self, platform: Platform, user: str, *, edge: int) -> None:
        self.user = user
        self.seen: dict[str, list[Seen]] = defaultdict(list)
        self.nodes: list[str] = []
        self.client: Client = platform.client(user, edge=edge, on_event=self._note)

    def _note(self, event: Event) -> None:
        if event.type == "client.connected":
            self.nodes.append(event.data["hello"]["node"])
        if message := event.message:
            self.seen[message.thread_id].append(Seen(message.message_id, message.seq, message.body))


async def over_rest(platform: Platform, user: str, thread_id: str) -> list[Seen]:
    """Return the whole history of a thread, as ``user`` reads it page by page."""
    rest, found = platform.rest(user), list[Seen]()
    while True:
        after = found[-1].seq if found else 0
        page = await rest.messages(thread_id, after=after, limit=PAGE)
        found += [Seen(item["message_id"], item["seq"], item["body"]) for item in page]
        if len(page) < PAGE:
            return found


async def in_postgres(platform: Platform, thread_id: str) -> list[Seen]:
    """Return the rows of a thread."""
    rows = await platform.rows(IN_POSTGRES, thread_id)
    return [Seen(row["message_id"], row["seq"], row["body"]) for row in rows]


def assert_once_and_ascending(seen: list[Seen]) -> None:
    """Check that no message is there twice and that the order is that of ``seq``."""
    assert len({item.message_id for item in seen}) == len(seen)
    seqs = [item.seq for item in seen]
    assert seqs == sorted(set(seqs))


def assert_everyone_keeps_their_order(seen: list[Seen]) -> None:
    """Check that each sender's numbered bodies (``"<sender> <number>"``) are complete and in order."""
    by_sender: dict[str, list[int]] = defaultdict(list)
    for item in seen:
        sender, number = item.body.split(" ")
        by_sender[sender].append(int(number))
    for sender, numbers in by_sender.items():
        assert numbers == list(range(len(numbers))), sender
