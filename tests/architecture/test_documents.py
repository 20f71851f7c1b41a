"""Documents are true: generated ones are fresh, links lead somewhere, commands exist."""

import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from prometheus_client import generate_latest

from cli import generate
from cli.main import app
from tests.architecture.commands import words_of_run, wrong_commands
from tests.architecture.repository import ROOT, documents, files, read

README_LINES_MAX: Final = 250
_LINK: Final = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_CODE: Final = re.compile(r"```.*?```", re.DOTALL)
# A path below one of our folders, in backticks.
_FILE: Final = re.compile(
    r"`((?:analytics|api|cli|deploy|docs|edge|migrations|nats|persister|sdk|shared|tests)/[\w./-]*)`"
)
_LOCK_PIN: Final = re.compile(r"^([a-z0-9._-]+)==(\S+)", re.MULTILINE)


@pytest.mark.parametrize("name", list(generate.documents()))
def test_a_generated_file_is_fresh(name: str) -> None:
    assert name not in generate.stale(), "write it anew: python -m cli.generate"


def test_a_stale_file_is_noticed_and_written_anew(tmp_path: Path) -> None:
    # Given a copy of the generated files with one that is missing and one that is old
    for name in generate.documents():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    assert set(generate.write(tmp_path)) == set(generate.documents())
    (tmp_path / "docs/codes.md").write_text("old")
    (tmp_path / ".env.example").unlink()
    # When they are compared, then written
    assert set(generate.stale(tmp_path)) == {"docs/codes.md", ".env.example"}
    generate.write(tmp_path)
    # Then nothing is stale
    assert generate.stale(tmp_path) == []


def test_every_metric_that_a_process_exposes_is_documented() -> None:
    page = read("docs/metrics.md")
    exposed = {
        match
        for service in generate.SERVICE_METRICS.values()
        for match in re.findall(
            r"^# TYPE (\w+) \w+$", generate_latest(service("0").registry).decode(), re.MULTILINE
        )
    }
    ours = {name for name in exposed if name.startswith("messaging_")} - {"messaging_build_info"}
    missing = [
        name
        for name in ours
        if f"`{name}`" not in page and not name.startswith("messaging_process_")
    ]
    # A histogram or counter also exposes when it was created.
    assert not [name for name in missing if not name.endswith("_created")]
    assert ours, "no metric found: does the exposition still look like this?"


def test_every_metric_in_the_documents_exists() -> None:
    page = read("docs/metrics.md")
    for name in documents():
        for metric in re.findall(r"`(messaging_[a-z_]+)(?:\{[^`]*)?`", read(name)):
            known = f"`{metric}`" in page or metric in {"messaging_", "messaging_build_info"}
            assert known, f"{name} names {metric}, which no process exposes"


def broken_links(name: str, text: str) -> Iterator[str]:
    """The relative links of a page that lead nowhere."""
    for target in _LINK.findall(_CODE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        if not there.exists():
            yield f"{name} links to {target}, which does not exist"
        elif anchor and anchor not in anchors(there.read_text(encoding="utf-8")):
            yield f"{name} links to {target}, which has no such heading"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = _HEADING.findall(_CODE.sub("", text))
    return {
        re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-")
        for title in titles
    }


@pytest.mark.parametrize("name", documents())
def test_every_link_leads_somewhere(name: str) -> None:
    assert not list(broken_links(name, read(name)))


def test_a_broken_link_is_found() -> None:
    links = "[a](nowhere.md) [b](#layout) [c](README.md#other) [d](https://x.example)"
    found = list(broken_links("README.md", links))
    assert [line.split()[3].rstrip(",") for line in found] == ["nowhere.md", "README.md#other"]


def missing_files(text: str) -> list[str]:
    """The files and folders of ours that a page names and that are not there."""
    named = set(_FILE.findall(text))
    return sorted(name for name in named if not (ROOT / name).exists())


@pytest.mark.parametrize("name", documents())
def test_every_file_that_a_document_names_exists(name: str) -> None:
    assert missing_files(read(name)) == []


def test_a_file_that_does_not_exist_is_found() -> None:
    text = "`edge/nothing.py` and `edge/`, `shared/bus`, `migrations/versions`, `docs/no.md`, `a/b`"
    assert missing_files(text) == ["docs/no.md", "edge/nothing.py"]


@pytest.mark.parametrize("name", [*documents(), "compose.yaml", ".env.example", "run"])
def test_every_command_in_a_document_works(name: str) -> None:
    assert not list(wrong_commands(read(name), app, words_of_run(read("run"))))


@pytest.mark.parametrize(
    "text",
    [
        "say `./run demos` to it",
        "lilith fly",
        "`lilith migrate sideways`",
        "./run ps --jsn",
        "./run token --role client",
    ],
)
def test_a_command_that_does_not_work_is_found(text: str) -> None:
    assert list(wrong_commands(text, app, {"test"}))


def test_a_command_that_works_is_not_found() -> None:
    text = (
        "./run test --fast -k x\n./run token --user ava | cat\n`./run token` and `lilith ps --json`"
    )
    assert not list(wrong_commands(text, app, {"test"}))


def test_the_readme_can_be_read_in_a_sitting() -> None:
    text = read("README.md")
    assert text.count("\n") <= README_LINES_MAX
    for needed in ("./run demo", "./run chat", "./run test", "## Promises", "## Not yet", "Apache"):
        assert needed in text


def test_the_decisions_are_numbered_and_listed() -> None:
    records = [name for name in files() if re.fullmatch(r"docs/adr/\d{4}-[a-z-]+\.md", name)]
    index = read("docs/adr/README.md")
    assert [int(Path(name).name[:4]) for name in records] == list(range(1, len(records) + 1))
    for name in records:
        text = read(name)
        assert f"({Path(name).name})" in index, f"{name} is not in docs/adr/README.md"
        for heading in ("**Decision:", "## Context", "## Consequences", "## Would change it"):
            assert heading in text, f"{name} lacks {heading}"


def test_the_changelog_has_an_unreleased_section() -> None:
    headings = re.findall(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"


def pins(name: str) -> dict[str, str]:
    """The pinned version of each package in a lock."""
    return dict(_LOCK_PIN.findall(read(name)))


def test_the_lock_holds_every_dependency_at_an_allowed_version() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    locked, runtime = pins("requirements.lock"), pins("deploy/requirements.lock")
    for text in project["dependencies"]:
        assert _allows(text, runtime), f"{text} is not in deploy/requirements.lock: write it anew"
    extras = itertools.chain.from_iterable(project["optional-dependencies"].values())
    for text in (*project["dependencies"], *extras):
        assert _allows(text, locked), f"{text} is not in requirements.lock: write it anew"
    assert runtime.items() <= locked.items(), "the image would run other versions than the tests"


@pytest.mark.parametrize("name", ["requirements.lock", "deploy/requirements.lock"])
def test_a_lock_has_hashes_and_names_no_package_index(name: str) -> None:
    text = read(name)
    assert not re.search(r"://|--(?:extra-)?index-url|--find-links", text)
    blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    assert blocks


def _allows(text: str, locked: dict[str, str]) -> bool:
    requirement = Requirement(text)
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    return name in locked and Version(locked[name]) in requirement.specifier
