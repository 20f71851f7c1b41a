"""The words of the command line, as documents and configuration may use them."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import typer
from typer.main import get_command

_RUN_WORD: Final = re.compile(r'word == "([a-z:0-9]+)"|^    "([a-z:0-9]+)": \[', re.MULTILINE)
_SAID: Final = re.compile(r"(?:\./run|(?<![\w./-])lilith)((?: [a-z][a-z:0-9-]*)+)([^`#|)]*)")
_HELP: Final = "--help"


class Options(NamedTuple):
    """What one command takes."""

    known: frozenset[str]
    required: frozenset[str]


def commands_of(app: typer.Typer) -> dict[tuple[str, ...], Options]:
    """Return the options of every command of ``app`` by its words: ``("migrate", "up")``."""
    found: dict[tuple[str, ...], Options] = {}

    def walk(command: object, words: tuple[str, ...]) -> None:
        children = getattr(command, "commands", None)
        if children is None:
            parameters = getattr(command, "params", [])
            known = {name for one in parameters for name in (*one.opts, *one.secondary_opts)}
            required = {one.opts[0] for one in parameters if one.required}
            found[words] = Options(
                frozenset(known | {_HELP}),
                frozenset(name for name in required if name.startswith("-")),
            )
            return
        for name, child in children.items():
            walk(child, (*words, name))

    walk(get_command(app), ())
    return found


def words_of_run(text: str) -> set[str]:
    """Return the words that ``run`` itself knows, read from its text."""
    return {one or other for one, other in _RUN_WORD.findall(text)}


def wrong_commands(text: str, app: typer.Typer, own: set[str]) -> Iterator[str]:
    """Yield what ``text`` tells somebody to type that would not work; ``own`` are the words of ``run``."""
    commands = commands_of(app)
    for line in text.splitlines():
        for match in _SAID.finditer(line):
            words = tuple(match[1].split())
            if match[0].startswith("./run") and words[0] in own:
                continue
            command = next((one for one in commands if words[: len(one)] == one), None)
            if command is None:
                yield f"'{match[0].strip()}' is no command"
                continue
            given = {part.partition("=")[0] for part in match[2].split() if part[:1] == "-"}
            options = commands[command]
            if unknown := given - options.known:
                yield f"'{match[0].strip()}' has unknown options: {', '.join(sorted(unknown))}"
            # A line that is a command from its beginning is there to be copied.
            if line.startswith(("./run", "lilith")) and (missing := options.required - given):
                yield f"'{match[0].strip()}' lacks {', '.join(sorted(missing))}"
