"""The snippet of the client's README does what it says."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.scripted import Api, Edge, Fabric
from tests.support.eventually import eventually

README = Path(__file__).parents[2] / "sdk" / "python" / "README.md"


async def test_the_first_example_sends_and_shows_a_message(
    one_edge: tuple[Fabric, Edge, Api], capsys: pytest.CaptureFixture[str]
) -> None:
    fabric, edge, api = one_edge
    # Given the code of the README
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    example: dict[str, Any] = {}
    exec(code, example)  # noqa: S102 - our own text, which must work as it stands
    # When it runs, and somebody answers
    running = asyncio.create_task(example["main"]([edge.address], api.address, "token", "t"))
    await eventually(lambda: fabric.bodies("t") == ["hello"])
    await edge.post("t", "hi there")
    # Then it shows where its own message is stored, and both messages
    shown = ""

    def everything_is_shown() -> bool:
        nonlocal shown
        shown += capsys.readouterr().out
        return "stored as m3 at 3" in shown and "ava hello" in shown and "ben hi there" in shown

    await eventually(everything_is_shown)
    running.cancel()
    await asyncio.wait([running])
