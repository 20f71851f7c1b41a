"""What the repository holds: the files that are (or will be) under version control."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("analytics", "api", "cli", "edge", "migrations", "persister", "shared")
SERVICES: Final = ("analytics", "api", "edge", "persister")


@cache
def files() -> tuple[str, ...]:
    """Return the path of every file of the project, relative to its root; ignored ones are left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return tuple(sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file()))


def python_files() -> list[str]:
    """Return the path of every Python file, ``run`` included."""
    return [name for name in files() if name.endswith(".py") or name == "run"]


def documents() -> list[str]:
    """Return the path of every Markdown page."""
    return [name for name in files() if name.endswith(".md")]


def text_files() -> list[str]:
    """Return the path of every file that is text."""
    return [name for name in files() if b"\0" not in (ROOT / name).read_bytes()[:4096]]


def read(name: str) -> str:
    """Return the text of a file of the project."""
    return (ROOT / name).read_text(encoding="utf-8")
