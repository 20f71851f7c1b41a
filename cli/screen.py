"""The two ends of a chat on this machine: a terminal, or a pipe. Both give lines and take lines."""

import asyncio
import os
import shutil
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol, TextIO

from typing_extensions import override

from cli.line_editor import Key, LineEditor, last_columns

_PROMPT: Final = "> "
_DIM: Final = "\x1b[2m{}\x1b[0m"
_CHUNK_BYTES: Final = 4_096
_LINES_MAX: Final = 1_000


class Screen(Protocol):
    """Where the chat happens."""

    interactive: bool
    on_typing: Callable[[], None]

    async def next_line(self) -> str | None:
        """Return the next line that was typed, None at the end of the input."""

    def show(self, text: str) -> None:
        """Print a message, above what is being typed."""

    def note(self, text: str) -> None:
        """Print something about the chat itself, discreetly."""

    def status(self, text: str) -> None:
        """Show what holds at the moment (somebody types), replacing what held before."""


@contextmanager
def open_screen() -> Iterator[Screen]:
    """Return the screen for this process's input and output, and leave the terminal as it was."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        before = termios.tcgetattr(sys.stdin)
        tty.setcbreak(sys.stdin)  # Key by key, without echo; Ctrl+C stays a signal.
        screen = TerminalScreen(sys.stdin, sys.stdout)
        try:
            yield screen
        finally:
            screen.close()
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    else:
        yield PipeScreen(sys.stdin, sys.stdout)


class PipeScreen(Screen):
    """Plain lines: for scripts, tests and ``tee``."""

    interactive = False

    def __init__(self, source: TextIO, target: TextIO) -> None:
        self.on_typing = lambda: None
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._room = threading.BoundedSemaphore(_LINES_MAX)
        # A thread, because a file cannot be waited for; a daemon, because it may read for ever.
        threading.Thread(target=self._read, args=(source,), daemon=True).start()

    @override
    async def next_line(self) -> str | None:
        line = await self._lines.get()
        self._room.release()
        return line

    @override
    def show(self, text: str) -> None:
        print(text, file=self._target, flush=True)

    @override
    def note(self, text: str) -> None:
        self.show(f"-- {text}")

    @override
    def status(self, text: str) -> None:
        pass  # A log is no place for what is over a moment later.

    def _read(self, source: TextIO) -> None:
        for line in source:
            self._put(line.rstrip("\n"))
        self._put(None)

    def _put(self, line: str | None) -> None:
        self._room.acquire()
        with suppress(RuntimeError):  # The chat is over and its loop closed.
            self._loop.call_soon_threadsafe(self._lines.put_nowait, line)


class TerminalScreen(Screen):
    """A terminal: what arrives is printed above the line that is being typed."""

    interactive = True

    def __init__(self, source: TextIO, target: TextIO) -> None:
        self.on_typing = lambda: None
        self._source = source
        self._target = target
        self._editor = LineEditor()
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._status = ""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(source.fileno(), self._typed)
        self._draw()

    @override
    async def next_line(self) -> str | None:
        return await self._lines.get()

    @override
    def show(self, text: str) -> None:
        self._target.write(f"\r\x1b[J{text}\n")
        self._draw()

    @override
    def note(self, text: str) -> None:
        self.show(_DIM.format(f"-- {text}"))

    @override
    def status(self, text: str) -> None:
        if text != self._status:
            self._status = text
            self._draw()

    def close(self) -> None:
        """Leave the terminal with an empty line."""
        self._loop.remove_reader(self._source.fileno())
        self._target.write("\r\x1b[J")
        self._target.flush()

    def _typed(self) -> None:
        data = os.read(self._source.fileno(), _CHUNK_BYTES)
        for event in self._editor.feed(data) if data else [Key.END]:
            if event is Key.EDITED:
                self.on_typing()
            else:
                self._lines.put_nowait(None if event is Key.END else str(event))
        if not data:
            self._loop.remove_reader(self._source.fileno())  # The terminal is gone.
        self._draw()

    def _draw(self) -> None:
        status = f"({self._status}) " if self._status else ""
        columns = shutil.get_terminal_size().columns - len(status) - len(_PROMPT) - 1
        typed = last_columns(self._editor.text, max(1, columns))
        shown = _DIM.format(status) if status else ""
        self._target.write(f"\r\x1b[J{shown}{_PROMPT}{typed}")
        self._target.flush()
