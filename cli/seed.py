"""``seed``: demo data, made as any client would make it: threads over REST, messages over WebSockets.

The same number gives the same people, threads and messages with the same ids, so seeding again adds nothing.
"""

import asyncio
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from cli.addresses import Addresses, running_platform
from cli.console import stderr_console
from cli.people import (
    CLIENT_LINES,
    CREATOR_LINES,
    DIRECT,
    GROUP_LINES,
    GROUPS,
    OPENINGS,
    PEOPLE,
    Conversation,
    Person,
)
from cli.tokens import token_text
from lilith_client import Client, ClientError, Rest
from lilith_client.ids import unix_ms_of, uuid7
from shared.errors import LilithError

DIRECT_MESSAGES: Final = 14
GROUP_MESSAGES: Final = 20
_KNOWN_MAX: Final = 200

TokenFor = Callable[[Person], str]
Report = Callable[[str], None]


class SeedError(LilithError):
    """The demo data is not complete. Seeding again goes on where this one ended."""


class Seeded(NamedTuple):
    """What seeding did. ``known`` messages had been there already."""

    threads: int
    sent: int
    known: int


@dataclass(slots=True)
class _Progress:
    total: int
    report: Report
    sent: int = 0
    known: int = 0

    def one_more(self, *, known: bool) -> None:
        self.known += known
        self.sent += not known
        done = self.sent + self.known
        if done % 50 == 0 or done == self.total:
            self.report(f"demo data: {done} of {self.total} messages")


def run_seed(data_dir: Path, number: int) -> Seeded:
    """Seed the platform that runs on ``data_dir``, with the progress on stderr.

    Raises:
        LilithError: Nothing runs there, or it refuses.
    """
    addresses, console = running_platform(data_dir), stderr_console()
    seeding = seed(
        addresses,
        lambda person: token_text(data_dir, person.user_id, role=person.role, name=person.name),
        number=number,
        report=lambda line: console.note(line, name="seed"),
    )
    try:
        return asyncio.run(seeding)
    except* (ClientError, TimeoutError) as group:
        raise SeedError(f"not finished, start it again: {group.exceptions[0]}") from group


async def seed(
    addresses: Addresses, token_for: TokenFor, *, number: int = 1, report: Report
) -> Seeded:
    """Make the people, threads and messages of ``number``, leaving alone what is there already.

    Args:
        addresses: Where the platform is.
        token_for: Makes the token of a person.
        number: Which demo data; another number gives other messages in the same threads.
        report: Takes a line about the progress now and then.

    Raises:
        ClientError: The platform refuses, or cannot be reached.
    """
    conversations = list(conversations_of(number))
    progress = _Progress(sum(len(item.lines) for item in conversations), report)
    async with AsyncExitStack() as stack:
        report(f"demo data: {len(PEOPLE)} people come in")
        clients = await _connect(stack, addresses, token_for)
        async with asyncio.TaskGroup() as tasks:
            for conversation in conversations:
                owner = PEOPLE[conversation.members[0]]
                rest = Rest(addresses.api, token_for(owner))
                tasks.create_task(_hold(conversation, rest, clients, number, progress))
    return Seeded(len(conversations), progress.sent, progress.known)


def conversations_of(number: int) -> Iterator[Conversation]:
    """Yield every conversation of the demo data ``number``; the same ones every time."""
    for owner, client in DIRECT:
        key = f"{owner}-{client}"
        draw = random.Random(f"{number}/{key}")  # noqa: S311 - demo data
        lines = [(client, draw.choice(OPENINGS))]
        creator_says = draw.sample(CREATOR_LINES, DIRECT_MESSAGES // 2)
        client_says = draw.sample(CLIENT_LINES, DIRECT_MESSAGES // 2)
        for ours, theirs in zip(creator_says, client_says, strict=True):
            lines += [(owner, ours), (client, theirs)]
        yield Conversation(key, "direct", None, (owner, client), lines[:DIRECT_MESSAGES])
    for key, title, members in GROUPS:
        draw = random.Random(f"{number}/{key}")  # noqa: S311 - demo data
        lines = [
            (draw.choice(members), GROUP_LINES[index % len(GROUP_LINES)])
            for index in range(GROUP_MESSAGES)
        ]
        yield Conversation(key, "group", title, members, lines)


def client_message_id(number: int, key: str, index: int, created_ms: int) -> str:
    """Return the id of one message, for ever the same in a thread made at ``created_ms``."""
    digest = hashlib.sha256(f"{number}/{key}/{index}".encode()).digest()
    return uuid7(created_ms + index, 0, int.from_bytes(digest[:8], "big"))


async def open_thread(rest: Rest, conversation: Conversation) -> dict[str, Any]:
    """Return the conversation's thread, made when it is not there yet."""
    others = conversation.members[1:]
    if conversation.kind == "direct":
        return await rest.create_thread(others)
    for thread in await rest.threads():
        if thread["metadata"].get("demo") == conversation.key:
            return thread
    return await rest.create_thread(
        others,
        kind=conversation.kind,
        title=conversation.title,
        metadata={"demo": conversation.key},
        idempotency_key=f"demo-{conversation.key}",
    )


async def _connect(
    stack: AsyncExitStack, addresses: Addresses, token_for: TokenFor
) -> Mapping[str, Client]:
    clients = {
        person.user_id: Client(
            addresses.edges_for(person.user_id), token_for(person), on_event=lambda _event: None
        )
        for person in PEOPLE.values()
    }
    await asyncio.gather(*(stack.enter_async_context(client) for client in clients.values()))
    return clients


async def _hold(
    conversation: Conversation,
    rest: Rest,
    clients: Mapping[str, Client],
    number: int,
    progress: _Progress,
) -> None:
    """Say every line of a conversation that was not said yet, one after the other."""
    thread = await open_thread(rest, conversation)
    thread_id, created_ms = thread["thread_id"], unix_ms_of(thread["created_at"])
    # The oldest ones: whatever was written since comes after them.
    stored = await rest.messages(thread_id, after=0, limit=_KNOWN_MAX)
    known = {message["client_msg_id"] for message in stored}
    for index, (sender, body) in enumerate(conversation.lines):
        message_id = client_message_id(number, conversation.key, index, created_ms)
        if message_id not in known:
            await clients[sender].send(thread_id, body, client_msg_id=message_id)
        progress.one_more(known=message_id in known)
