"""``chat``: two people in two terminals, over the public interfaces alone."""

import asyncio
import signal
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cli.addresses import Addresses, running_platform
from cli.line_editor import printable
from cli.people import PEOPLE
from cli.screen import Screen, open_screen
from cli.tokens import token_text
from lilith_client import (
    CONNECTED,
    DISCONNECTED,
    GAP,
    SUBSCRIPTION_ENDED,
    Client,
    ClientError,
    Event,
    Position,
    Rest,
)
from shared.errors import ConfigurationError, LilithError

HISTORY: Final = 20
NAMES_EVERY_S: Final = 10.0
NAME_S: Final = 1.0
TYPING_EVERY_S: Final = 3.0
LEAVE_S: Final = 30.0
"""At the end of a piped input: how long what was typed may take to be stored."""
LEAVE_QUICKLY_S: Final = 2.0
_SHOWN_MAX: Final = 2_000
_SENDING_MAX: Final = 200


class ChatError(LilithError):
    """The chat cannot go on; the text says why."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who wants in, and where. Without ``urls`` it is the platform that runs on ``data_dir``."""

    user: str
    data_dir: Path
    urls: Sequence[str] = ()
    api: str | None = None
    token: str | None = None
    edge: int | None = None

    def addresses(self) -> Addresses:
        """Return where the platform is.

        Raises:
            ConfigurationError: Nothing runs there, or only half an address was given.
        """
        if not self.urls and self.api is None:
            return running_platform(self.data_dir)
        if not self.urls or self.api is None:
            raise ConfigurationError("give --url and --api together: WebSocket and REST")
        return Addresses(self.api, self.urls)

    def signed(self) -> str:
        """Return the user's token: the given one, else one made with the key of ``data_dir``.

        Raises:
            ConfigurationError: The user's id is none, or another platform's token is missing.
        """
        if self.token is not None:
            return self.token
        if self.urls:
            raise ConfigurationError("give --token too: this machine's key is not that platform's")
        known = PEOPLE.get(self.user)
        role, name = (known.role, known.name) if known else ("client", None)
        try:
            return token_text(self.data_dir, self.user, role=role, name=name)
        except ValueError as error:
            raise ConfigurationError(f"--user: {error}") from error


def run_chat(access: Access, other: str) -> int:
    """Chat with ``other`` until Ctrl+C, Ctrl+D or the end of the input; return the exit code.

    Raises:
        LilithError: The platform cannot be reached, or refuses.
    """
    return asyncio.run(_run(access, other))


async def _run(access: Access, other: str) -> int:
    addresses, token = access.addresses(), access.signed()
    edges = addresses.edges_for(access.user, edge=access.edge)
    leaving = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, leaving.set)
    client = Client(edges, token, api=addresses.api)
    with open_screen() as screen:
        chat = Chat(client, Rest(addresses.api, token), screen, access.user)
        talking = asyncio.create_task(chat.run(other))
        asked = asyncio.create_task(leaving.wait())
        await asyncio.wait({talking, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not talking.done():
            talking.cancel()
            await asyncio.wait({talking})
            return 0
        asked.cancel()
        try:
            return talking.result()
        except* (ClientError, TimeoutError) as group:
            raise ChatError(_first_text(group)) from group


class Chat:
    """One conversation on one screen."""

    def __init__(self, client: Client, rest: Rest, screen: Screen, user: str) -> None:
        self._client = client
        self._rest = rest
        self._screen = screen
        self._user = user
        self._names: dict[str, str] = {}
        self._names_again_at = 0.0
        self._thread_id = ""
        self._shown: OrderedDict[str, None] = OrderedDict()
        self._sending: set[asyncio.Task[None]] = set()
        self._failed = 0
        self._typists: dict[str, asyncio.TimerHandle] = {}
        self._typed_at = 0.0
        self._telling: asyncio.Task[None] | None = None  # Held, or it may be collected.
        self._own_seq = 0
        self._seen_seq = 0
        self._marking: asyncio.Task[None] | None = None
        self._read: dict[str, int] = {}
        screen.on_typing = self._typing

    async def run(self, other: str) -> int:
        """Talk until the input ends; return 0 when everything typed is stored."""
        async with self._client, asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch())
            await self._enter(other)
            while (line := await self._screen.next_line()) is not None:
                if line.strip():
                    await self._submit(line, tasks)
            if self._sending:
                timeout_s = LEAVE_QUICKLY_S if self._screen.interactive else LEAVE_S
                await asyncio.wait(self._sending, timeout=timeout_s)
            unsent = self._failed + len(self._sending)
            for task in (watching, *self._sending):
                task.cancel()
        if unsent and not self._screen.interactive:
            self._screen.note(f"{unsent} of the messages may not have been sent")
            return 1
        return 0

    async def _enter(self, other: str) -> None:
        """Open the thread, show its latest messages, and follow it from exactly there."""
        opened = await self._rest.create_thread([other])
        self._thread_id = opened["thread_id"]
        thread = await self._rest.thread(self._thread_id)
        self._learn_names(thread)
        for message in thread["messages"][-HISTORY:]:
            self._show(message, mark="")
        after = Position(thread["cursor"], thread["last_seq"])
        subscribed = await self._client.subscribe(self._thread_id, after=after)
        for member in subscribed.participants:
            self._note_read(member["user_id"], member["read_seq"])
        self._screen.note(f"you are {self._user}, talking with {other}; Ctrl+D leaves")

    async def _watch(self) -> None:
        async for event in self._client.events():
            if event.thread_id in {None, self._thread_id}:
                await self._ask_name(event.data.get("sender_id") or event.data.get("user_id"))
                self._react(event)

    async def _ask_name(self, user_id: str | None) -> None:
        """Look a person's name up who had none when we came in: names are told at the first connection."""
        now = time.monotonic()
        if user_id is None or user_id in self._names or now < self._names_again_at:
            return
        self._names_again_at = now + NAMES_EVERY_S
        with suppress(ClientError, TimeoutError):  # Their id will do.
            async with asyncio.timeout(NAME_S):
                self._learn_names(await self._rest.thread(self._thread_id))

    def _learn_names(self, thread: dict[str, Any]) -> None:
        for member in thread["participants"]:
            if member["name"]:
                self._names[member["user_id"]] = printable(member["name"])

    def _react(self, event: Event) -> None:
        data = event.data
        match event.type:
            case "message.new":
                self._end_typing(data["sender_id"])
                self._show(data)
            case "typing.active":
                self._end_typing(data["user_id"])
                if data["active"]:
                    self._begin_typing(data["user_id"], data["expires_in_ms"] / 1000)
            case "message.updated":
                self._screen.note(f"a message was changed: {printable(data['body'])}")
            case "message.deleted":
                self._screen.note("a message was deleted")
            case "message.read":
                self._note_read(data["user_id"], data["seq"])
            case "thread.archived":
                self._screen.note("this conversation was archived")
            case _:
                if text := _about_the_connection(event):
                    self._screen.note(text)

    async def _submit(self, line: str, tasks: asyncio.TaskGroup) -> None:
        while len(self._sending) >= _SENDING_MAX:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        self._typed_at = 0.0
        task = tasks.create_task(self._send(line))
        self._sending.add(task)
        task.add_done_callback(self._sent)
        self._show_status()

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._show_status()

    async def _send(self, line: str) -> None:
        try:
            sent = await self._client.send(self._thread_id, line)
        except ClientError as error:
            self._failed += 1
            self._screen.note(f"NOT SENT ({error}): {printable(line)}")
        else:
            await self._ask_name(self._user)
            own = {"message_id": sent.message_id, "sender_id": self._user, "body": line}
            self._show({**own, "sent_at": sent.sent_at, "seq": sent.seq})

    def _show(self, message: dict[str, Any], *, mark: str = "  ✓ sent") -> None:
        """Print a message once; one's own, which the ack and the thread both bring, with its mark."""
        if message["message_id"] in self._shown:
            return
        self._shown[message["message_id"]] = None
        if len(self._shown) > _SHOWN_MAX:
            self._shown.popitem(last=False)
        at = datetime.fromisoformat(message["sent_at"]).astimezone().strftime("%H:%M:%S")
        sender = message["sender_id"]
        own = mark if sender == self._user else ""
        name = self._names.get(sender) or printable(sender)
        body = "(deleted)" if message.get("deleted_at") else printable(message["body"])
        self._screen.show(f"{at} {name}: {body}{own}")
        if sender == self._user:
            self._own_seq = max(self._own_seq, message["seq"])
            self._show_status()
        else:
            # Whoever writes has read what came before.
            self._note_read(sender, message["seq"])
            self._mark_read(message["seq"])

    def _mark_read(self, seq: int) -> None:
        """Tell the others, at most once a second, that what is on the screen was read."""
        self._seen_seq = max(self._seen_seq, seq)
        hello = self._client.hello
        if hello is None or not hello.features.get("receipts"):
            return
        if self._marking is None or self._marking.done():
            self._marking = asyncio.create_task(self._say_read())

    async def _say_read(self) -> None:
        marked = 0
        # The answer to a mark that follows another one takes the rest of its second.
        while marked < self._seen_seq:
            marked = self._seen_seq
            try:
                await self._client.mark_read(self._thread_id, seq=marked)
            except ClientError:
                return  # The next message includes this one.

    def _note_read(self, user_id: str, seq: int) -> None:
        if user_id != self._user:
            self._read[user_id] = max(self._read.get(user_id, 0), seq)
            self._show_status()

    def _typing(self) -> None:
        """Tell the other side, at most every few seconds, that something is being typed."""
        hello, now = self._client.hello, time.monotonic()
        if hello is None or not hello.features.get("typing"):
            return
        if now - self._typed_at >= TYPING_EVERY_S and self._thread_id:
            self._typed_at = now
            self._telling = asyncio.create_task(self._say_typing())

    async def _say_typing(self) -> None:
        try:
            await self._client.typing(self._thread_id)
        except ClientError:
            return  # Nobody misses it.

    def _begin_typing(self, user_id: str, expires_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._typists[user_id] = loop.call_later(expires_s, self._end_typing, user_id)
        self._show_status()

    def _end_typing(self, user_id: str) -> None:
        if timer := self._typists.pop(user_id, None):
            timer.cancel()
            self._show_status()

    def _show_status(self) -> None:
        parts = [f"{self._names.get(user_id, user_id)} is typing…" for user_id in self._typists]
        if self._sending:
            parts.append(f"sending {len(self._sending)}…")
        elif readers := [
            user_id for user_id, seq in self._read.items() if seq >= self._own_seq > 0
        ]:
            names = ", ".join(self._names.get(user_id, user_id) for user_id in readers)
            parts.append(f"✓✓ read by {names}")
        self._screen.status(", ".join(parts))


def _about_the_connection(event: Event) -> str:
    data = event.data
    match event.type:
        case type_ if type_ == CONNECTED:
            return f"connected to {data['hello']['node']}"
        case type_ if type_ == DISCONNECTED:
            return f"connection lost ({data['reason']}), trying again in {data['retry_in_s']:.1f} s"
        case type_ if type_ == GAP:
            return "some messages could not be loaded: start again to see them"
        case type_ if type_ == SUBSCRIPTION_ENDED:
            return f"this conversation is over for you ({data['reason']})"
    return ""


def _first_text(group: BaseExceptionGroup[BaseException]) -> str:
    """Return what the first of the errors says."""
    error = group.exceptions[0]
    if isinstance(error, BaseExceptionGroup):
        return _first_text(error)
    return str(error) or "nobody answers there"
