"""What a person sees: colours only on a terminal, whole lines, and log files that stay bounded."""

import asyncio
import io
from pathlib import Path

import pytest
from typing_extensions import override

from cli import console as module
from cli.console import Console, LogFollower, last_lines, rotate_log
from tests.support.eventually import eventually


class Terminal(io.StringIO):
    """A stream that says that somebody looks at it."""

    @override
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, environment: dict[str, str]) -> str:
    Console(stream, environment).note("hello", name="edge-0")
    return stream.getvalue()


def test_colours_are_for_terminals_whose_owner_did_not_refuse_them() -> None:
    assert shown(Terminal(), {}) == "\x1b[36medge-0     |\x1b[0m hello\n"
    plain = "edge-0     | hello\n"
    assert shown(io.StringIO(), {}) == plain
    assert shown(Terminal(), {"NO_COLOR": "1"}) == plain
    assert shown(Terminal(), {"CI": "true"}) == plain


async def test_lines_appear_whole_and_a_log_that_grew_too_long_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a follower of a log, with a small bound
    monkeypatch.setattr(module, "_LOG_BYTES_MAX", 100)
    path, stream = tmp_path / "edge-0.log", io.StringIO()
    task = asyncio.create_task(LogFollower(path, "edge-0", Console(stream, {})).follow())
    # When a line arrives in two parts, and then more than fits
    with path.open("ab") as log:
        log.write(b"first ")
        log.flush()
        await asyncio.sleep(0.1)
        assert stream.getvalue() == ""
        log.write(b"line\n")
        log.flush()
        await eventually(lambda: stream.getvalue() == "edge-0     | first line\n")
        log.write(b"x" * 120 + b"\n")
        log.flush()
        # Then the file is cut, the old part is kept beside it, and what comes next is shown
        await eventually(lambda: path.stat().st_size == 0)
        assert path.with_name("edge-0.log.1").read_bytes().startswith(b"first line\n")
        log.write(b"next\n")
        log.flush()
        await eventually(lambda: stream.getvalue().endswith("| next\n"))
        # And so is what was written in the last moment
        log.write(b"last\n")
    task.cancel()
    await asyncio.wait({task})
    assert stream.getvalue().endswith("| last\n")


def test_three_older_logs_are_kept(tmp_path: Path) -> None:
    # Given a log that is rotated before each of five runs
    path = tmp_path / "api.log"
    for run in range(5):
        rotate_log(path)
        path.write_text(f"run {run}\n")
    # Then the last one and three before it are there
    names = ["api.log", "api.log.1", "api.log.2", "api.log.3"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert [(tmp_path / name).read_text()[4] for name in names] == list("4321")


def test_the_end_of_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "none.log", lines_max=5) == []
