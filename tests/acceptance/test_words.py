"""The command line as people use it: chat, tail, seed, stop and start again."""

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from cli.addresses import Addresses
from cli.bots import living_bots
from cli.people import BOTS, PEOPLE, Person
from lilith_client import Client, Event
from tests.acceptance.platform import Platform
from tests.support.eventually import eventually

SHOWN_WITHIN_S: Final = 20.0
POLL_S: Final = 0.02


class Talk:
    """``lilith chat`` in a process, over pipes."""

    def __init__(self, platform: Platform, user: str, other: str) -> None:
        self.process = platform.lilith(
            *("chat", "--user", user, "--with", other),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._read = b""

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    @property
    def output(self) -> str:
        assert self.process.stdout is not None
        source = self.process.stdout.fileno()
        while select.select([source], [], [], 0)[0] and (data := os.read(source, 65_536)):
            self._read += data
        return self._read.decode(errors="replace")

    def shows(self, pattern: str) -> bool:
        return re.search(pattern, self.output, re.MULTILINE) is not None

    def waits_for(self, pattern: str) -> None:
        deadline = time.monotonic() + SHOWN_WITHIN_S
        while not self.shows(pattern):
            assert time.monotonic() < deadline, f"no {pattern} in:\n{self.output}"
            time.sleep(POLL_S)


@contextmanager
def talk(platform: Platform, user: str, other: str) -> Iterator[Talk]:
    started = Talk(platform, user, other)
    with killed_at_the_end(started.process):
        yield started


@contextmanager
def killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[None]:
    """Leave neither the process nor its pipes behind."""
    with process:
        try:
            yield
        finally:
            process.kill()


def test_two_people_chat_in_two_processes_on_two_edges(platform: Platform) -> None:
    with talk(platform, "ava", "ben") as ava, talk(platform, "ben", "ava") as ben:
        # Given two chats, each on another edge by itself
        ava.waits_for(r"^-- connected to edge-1")
        ben.waits_for(r"^-- connected to edge-0")
        ava.waits_for(r"you are ava")
        ben.waits_for(r"you are ben")
        # When each says a line
        ava.say("hello ben")
        ben.waits_for(r"^\d\d:\d\d:\d\d (Ava Lindqvist|ava): hello ben$")
        ben.say("hello ava \x1b[31mred")
        # Then the other shows it with sender and time, and nothing in it commands the terminal
        ava.waits_for(r"^\d\d:\d\d:\d\d (Ben Okafor|ben): hello ava \ufffd\[31mred$")
        ava.waits_for(r"^\d\d:\d\d:\d\d (Ava Lindqvist|ava): hello ben  ✓ sent$")
        # And both leave without an error, by the end of the input and by Ctrl+C
        assert ava.process.stdin is not None
        ava.process.stdin.close()
        assert ava.process.wait(20) == 0
        ben.process.send_signal(signal.SIGINT)
        assert ben.process.wait(20) == 0
        # And a line is shown once
        assert ben.output.count("hello ben") == 1
    # And next time the conversation is there, with the names of both
    with talk(platform, "ben", "ava") as again:
        again.waits_for(r"^\d\d:\d\d:\d\d Ava Lindqvist: hello ben$")
        again.waits_for(r"^\d\d:\d\d:\d\d Ben Okafor: hello ava")


def test_a_piped_line_is_stored_before_the_chat_ends_and_is_there_next_time(
    platform: Platform,
) -> None:
    process = platform.lilith(
        *("chat", "--user", "pipe-a", "--with", "pipe-b"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with killed_at_the_end(process):
        output, _ = process.communicate("one\n\ntwo\n", timeout=30)
    assert process.returncode == 0, output
    assert output.count("✓ sent") == 2
    with talk(platform, "pipe-b", "pipe-a") as other:
        other.waits_for(r"pipe-a: one$")
        other.waits_for(r"pipe-a: two$")


def test_a_killed_edge_is_a_note_and_not_the_end_of_the_chat(platform: Platform) -> None:
    with talk(platform, "note-a", "note-b") as chat:
        chat.waits_for(r"you are note-a")
        node = re.search(r"connected to (edge-\d)", chat.output)
        assert node is not None
        platform.kill9(node[1])
        chat.waits_for(r"^-- connection lost .*trying again in")
        chat.say("still here")
        chat.waits_for(r"note-a: still here  ✓ sent$")


class Terminal:
    """``lilith chat`` in a process, in a terminal of its own."""

    def __init__(self, platform: Platform, user: str, other: str) -> None:
        self._ours, self.theirs = pty.openpty()
        self.before = self.settings()
        self._shown = b""
        self.process = platform.lilith(
            *("chat", "--user", user, "--with", other),
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
        )

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def shows(self, text: str) -> bool:
        while select.select([self._ours], [], [], 0)[0]:
            self._shown += os.read(self._ours, 65_536)
        return text.encode() in self._shown

    def waits_for(self, text: str) -> None:
        deadline = time.monotonic() + SHOWN_WITHIN_S
        while not self.shows(text):
            assert time.monotonic() < deadline, f"no {text} in:\n{self._shown!r}"
            time.sleep(POLL_S)

    def settings(self) -> bytes:
        done = subprocess.run(["stty", "-g"], stdin=self.theirs, capture_output=True, check=True)
        return done.stdout

    def close(self) -> None:
        os.close(self._ours)
        os.close(self.theirs)


@contextmanager
def terminal(platform: Platform, user: str, other: str) -> Iterator[Terminal]:
    started = Terminal(platform, user, other)
    try:
        with killed_at_the_end(started.process):
            yield started
    finally:
        started.close()


def test_in_a_terminal_lines_are_edited_and_typing_is_seen(platform: Platform) -> None:
    # Given two chats in real terminals
    with (
        terminal(platform, "tty-a", "tty-b") as ours,
        terminal(platform, "tty-b", "tty-a") as other,
    ):
        ours.waits_for("you are tty-a")
        other.waits_for("you are tty-b")
        # When a line is typed with a mistake in it
        ours.type(b"helpo\x7f\x7flo")
        # Then the other side sees that somebody types, and the line is still ours
        other.waits_for("tty-a is typing…")
        assert not other.shows("hello")
        # When it is sent
        ours.type(b"\r")
        # Then it is the corrected one, for both
        ours.waits_for("tty-a: hello  ✓ sent")
        other.waits_for("tty-a: hello\r\n")
        # And who wrote it sees that it was read
        ours.waits_for("✓✓ read by tty-b")
        # And Ctrl+D and Ctrl+C leave, with the terminal as it was
        ours.type(b"\x04")
        other.process.send_signal(
            signal.SIGINT
        )  # What the key makes in a terminal that controls it.
        for chat in (ours, other):
            assert chat.process.wait(20) == 0
            assert chat.settings() == chat.before


async def test_tail_prints_events_as_lines_of_json(platform: Platform) -> None:
    async with platform.client("tail-a", on_event=lambda _event: None) as client:
        thread = await platform.rest("tail-a").create_thread(["tail-b"])
        # Given a tail of one of the two
        process = platform.lilith("tail", "--user", "tail-b", stdout=subprocess.PIPE)
        with killed_at_the_end(process):
            assert (await next_event(process))["type"] == "client.connected"
            await asyncio.sleep(1.0)  # It subscribes; nothing on its output says when it has.
            # When the other one writes
            await client.send(thread["thread_id"], "hello")
            # Then the event is a line of its own
            while (event := await next_event(process))["type"] != "message.new":
                pass
            assert (event["body"], event["sender_id"]) == ("hello", "tail-a")
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait, 20) == 0


async def next_event(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next line of a tail."""
    assert process.stdout is not None
    event: dict[str, Any] = json.loads(await asyncio.to_thread(process.stdout.readline))
    return event


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_demo_data_is_made_once_and_survives_a_restart_of_everything(
    own_platform: Platform,
) -> None:
    platform = own_platform
    # Given a fresh platform with the default limits
    await asyncio.to_thread(platform.start)
    # When it is seeded twice
    began = time.monotonic()
    first = await seeded(platform)
    took_s = time.monotonic() - began
    second = await seeded(platform)
    # Then the first time was quick (on a loaded machine) and the second added nothing
    assert took_s < 30.0
    assert first["known"] == 0
    assert second == {**first, "sent": 0, "known": first["sent"]}
    before = await platform.rows("SELECT message_id, seq, body FROM messages ORDER BY seq")
    assert len(before) == first["sent"]
    threads = await platform.rest("ava").threads()
    # When everything stops and starts again
    stopped_in_s = await asyncio.to_thread(platform.stop)
    assert stopped_in_s < 15.0
    began = time.monotonic()
    await asyncio.to_thread(platform.start)
    assert time.monotonic() - began < 30.0
    # Then history is the same, over every door
    assert await platform.rows("SELECT message_id, seq, body FROM messages ORDER BY seq") == before
    assert await platform.rest("ava").threads() == threads
    # And conversations go on after it
    async with platform.client("ava", on_event=lambda _event: None) as ava:
        sent = await ava.send(threads[0]["thread_id"], "and we are back")
        assert sent.seq > threads[0]["last_seq"]


async def seeded(platform: Platform) -> dict[str, int]:
    """Run ``lilith seed --json``."""
    process = platform.lilith("seed", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = await asyncio.to_thread(process.communicate, timeout=60)
    assert process.returncode == 0, errors
    assert "of" in errors, "progress is on stderr"
    found: dict[str, int] = json.loads(output)
    return found


@pytest.mark.slow
async def test_bots_type_write_and_answer_and_stop_when_told(platform: Platform) -> None:
    # Given the demo's people in the demo's threads
    await seeded(platform)
    events: list[Event] = []
    addresses, stop = Addresses(platform.api, platform.edges), asyncio.Event()

    def token_for(person: Person) -> str:
        return platform.token(person.user_id, role=person.role)

    living = asyncio.create_task(living_bots(addresses, token_for, stop=stop))
    ava = Client(platform.edges, token_for(PEOPLE["ava"]), api=platform.api, on_event=events.append)
    async with ava:
        [with_cleo] = [
            thread
            for thread in await platform.rest("ava").threads()
            if {member["user_id"] for member in thread["participants"]} == {"ava", "cleo"}
        ]
        await ava.subscribe(with_cleo["thread_id"])

        # When somebody writes to a bot (which may still be coming in: then it is told again)
        def answered() -> bool:
            return any(event.message and event.message.sender_id in BOTS for event in events)

        for attempt in range(5):
            await ava.send(with_cleo["thread_id"], f"hello? {attempt}")
            try:
                await eventually(answered, within_s=5.0)
            except AssertionError:
                continue
            break
        # Then it types and answers
        assert answered()
        kinds = [event.type for event in events]
        assert "typing.active" in kinds
    # And the end comes at once
    stop.set()
    await asyncio.wait_for(living, 3.0)
