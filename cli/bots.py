"""Life in the demo: a few people who type, write and answer, gently, for as long as it runs."""

import asyncio
import random
from typing import Final

from cli.addresses import Addresses
from cli.people import ANSWERS, BOTS, CLIENT_LINES, CREATOR_LINES, PEOPLE, Person
from cli.seed import TokenFor
from lilith_client import MESSAGE_NEW, Client, ClientError, Event, Rest, StoppedError

FIRST_PAUSE_S: Final = (4.0, 9.0)
SLOWER: Final = 1.03
"""A demo left running over night must not fill the disk: each message makes the next pause longer."""
SLOWEST: Final = 12.0
TYPING_S: Final = (1.0, 2.5)
THREADS_MAX: Final = 40
PAUSE_AFTER_ERROR_S: Final = 10.0


async def living_bots(
    addresses: Addresses, token_for: TokenFor, *, stop: asyncio.Event, number: int = 1
) -> None:
    """Let the bots live until ``stop`` is set (or this is cancelled); call it after ``seed``.

    They never raise for what the platform does: while it is down they wait for it.
    """
    bots = [Bot(PEOPLE[user_id], addresses, token_for, number) for user_id in BOTS]
    living = [asyncio.create_task(bot.live(), name=f"bot {bot.user_id}") for bot in bots]
    try:
        await stop.wait()
    finally:
        for task in living:
            task.cancel()
        await asyncio.gather(*living, return_exceptions=True)


class Bot:
    """One person: writes into one of their threads now and then, and answers people who are no bots."""

    def __init__(
        self, person: Person, addresses: Addresses, token_for: TokenFor, number: int
    ) -> None:
        self.user_id = person.user_id
        self._person = person
        self._addresses = addresses
        self._token_for = token_for
        self._says = CREATOR_LINES if person.role == "creator" else CLIENT_LINES
        self._draw = random.Random(f"{number}/bot/{person.user_id}")  # noqa: S311 - demo data
        self._threads: list[str] = []
        self._answering: set[str] = set()

    async def live(self) -> None:
        """Live until cancelled, whatever the platform does meanwhile."""
        while True:
            try:
                await self._live_once()
            except* ClientError:
                await asyncio.sleep(PAUSE_AFTER_ERROR_S)

    async def _live_once(self) -> None:
        self._threads.clear()
        self._answering.clear()
        edges = self._addresses.edges_for(self.user_id)
        async with (
            Client(edges, self._token, api=self._addresses.api) as client,
            asyncio.TaskGroup() as tasks,
        ):
            rest = Rest(self._addresses.api, self._token)
            for thread in (await rest.threads())[:THREADS_MAX]:
                await self._join(client, thread["thread_id"])
            tasks.create_task(self._chat(client))
            async for event in client.events():
                await self._react(client, event, tasks)

    async def _token(self) -> str:
        # Fresh at each connection: the demo may run longer than a token lives.
        return self._token_for(self._person)

    async def _join(self, client: Client, thread_id: str) -> None:
        await client.subscribe(thread_id)
        self._threads.append(thread_id)

    async def _chat(self, client: Client) -> None:
        slowness = 1.0
        while True:
            await asyncio.sleep(self._draw.uniform(*FIRST_PAUSE_S) * slowness)
            slowness = min(SLOWEST, slowness * SLOWER)
            if self._threads:
                thread_id, body = self._draw.choice(self._threads), self._draw.choice(self._says)
                await self._say(client, thread_id, body)

    async def _react(self, client: Client, event: Event, tasks: asyncio.TaskGroup) -> None:
        if event.type == "thread.created" and len(self._threads) < THREADS_MAX:
            await self._join(client, event.data["thread"]["thread_id"])
        if event.type != MESSAGE_NEW or event.data["sender_id"] in BOTS:
            return  # Bots that answered each other would never stop.
        if event.source == "live" and event.data["thread_id"] not in self._answering:
            self._answering.add(event.data["thread_id"])
            tasks.create_task(self._answer(client, event.data["thread_id"]))

    async def _answer(self, client: Client, thread_id: str) -> None:
        try:
            await self._say(client, thread_id, self._draw.choice(ANSWERS))
        finally:
            self._answering.discard(thread_id)

    async def _say(self, client: Client, thread_id: str, body: str) -> None:
        """Type for a moment, then send. What the platform refuses just now stays unsaid."""
        try:
            await client.typing(thread_id)
            await asyncio.sleep(self._draw.uniform(*TYPING_S))
            await client.send(thread_id, body)
        except StoppedError:
            raise
        except ClientError:
            pass
