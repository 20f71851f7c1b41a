"""The start script: prepares once, again when something changed, and hands every word on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

UV = """#!/bin/sh
echo "$@" >> "$UV_CALLS"
case "$1" in
venv)
    for last; do :; done
    mkdir -p "$last/bin"
    ln -sf "$(command -v python3.11 || command -v python3)" "$last/bin/python"
    for program in lilith pytest; do
        printf '#!/bin/sh\\nenv > "$UV_CALLS.env"\\necho %s "$@"\\n' $program > "$last/bin/$program"
        chmod +x "$last/bin/$program"
    done ;;
esac
exit "${UV_FAILS:-0}"
"""


class Checkout:
    """A copy of the script whose ``uv`` only writes down what it was asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "bin").mkdir()
        (path / "bin" / "uv").write_text(UV)
        (path / "bin" / "uv").chmod(0o755)
        shutil.copy(ROOT / "run", path / "run")
        (path / "requirements.lock").write_text("one==1\n")
        (path / "pyproject.toml").write_text("[project]\n")

    def run(
        self, *words: str, fails: bool = False, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``./run`` with ``words``."""
        return subprocess.run(
            [sys.executable, f"{self.path / 'run'}", *words],
            env={
                "PATH": f"{self.path / 'bin'}:{os.environ['PATH']}",
                "UV_CALLS": f"{self.path / 'calls'}",
                "UV_FAILS": "1" if fails else "0",
                **(environment or {}),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self) -> list[str]:
        """Return what ``uv`` was asked for since the last time."""
        path = self.path / "calls"
        if not path.exists():
            return []
        calls = path.read_text().splitlines()
        path.unlink()
        return calls


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def script() -> ModuleType:
    loader = SourceFileLoader("run_script", f"{ROOT / 'run'}")
    spec = spec_from_loader("run_script", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_it_prepares_once_and_hands_the_word_on(checkout: Checkout) -> None:
    # Given a fresh checkout
    # When a word is used twice
    first = checkout.run("token", "--user", "ava")
    prepared = checkout.calls()
    second = checkout.run("token", "--user", "ava")
    # Then the packages were installed once, with hashes, and both went to lilith
    assert first.stdout == second.stdout == "lilith token --user ava\n"
    assert prepared[0].startswith("venv")
    assert "--require-hashes" in prepared[1]
    assert "--no-deps" in prepared[2]
    assert checkout.calls() == []
    assert second.stderr == ""


def test_a_changed_lock_is_installed_into_the_same_environment(checkout: Checkout) -> None:
    # Given a prepared checkout
    checkout.run("ps")
    checkout.calls()
    # When the lock changes
    (checkout.path / "requirements.lock").write_text("one==2\n")
    checkout.run("ps")
    # Then it is installed, and the environment is not made again
    assert [call.split()[0] for call in checkout.calls()] == ["pip", "pip"]


def test_a_failed_installation_is_said_and_tried_again(checkout: Checkout) -> None:
    # Given an installation that fails
    failed = checkout.run("ps", fails=True)
    assert failed.returncode == 1
    assert "failed" in failed.stderr
    checkout.calls()
    # When it is tried again
    assert checkout.run("ps").returncode == 0
    # Then it was not taken for done
    assert checkout.calls()


@pytest.mark.parametrize(
    ("words", "handed_on"),
    [
        (["dev"], "lilith up"),
        (["dev:infra", "--json"], "lilith up --only-servers --json"),
        (["migration:run"], "lilith migrate up"),
        (["migration:revert"], "lilith migrate down"),
        (
            ["test", "--fast", "tests/shared"],
            "pytest -m not slow and not e2e -n 3 --dist loadfile tests/shared",
        ),
        (["test:e2e"], "pytest -m e2e -n 3 --dist loadfile"),
    ],
)
def test_the_words_of_the_platform_are_known(
    checkout: Checkout, words: list[str], handed_on: str
) -> None:
    assert checkout.run(*words).stdout == f"{handed_on}\n"


def test_help_shows_its_own_words_and_those_of_lilith(checkout: Checkout) -> None:
    said = checkout.run("--help").stdout
    assert "./run demo" in said
    assert "./run test" in said
    assert said.endswith("lilith --help\n")


def test_an_environment_whose_python_is_gone_is_made_again(checkout: Checkout) -> None:
    # Given a prepared checkout whose Python was removed with the stamp
    checkout.run("ps")
    checkout.calls()
    (checkout.path / ".venv" / "bin" / "python").unlink()
    (checkout.path / ".venv" / "prepared").unlink()
    # When it is used
    checkout.run("ps")
    # Then the environment is made again
    assert checkout.calls()[0].startswith("venv")


def test_the_environment_of_a_moved_checkout_is_made_again(
    checkout: Checkout, tmp_path: Path
) -> None:
    # Given a prepared checkout that is moved
    checkout.run("ps")
    checkout.calls()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("run", "requirements.lock", "pyproject.toml", ".venv", "bin"):
        shutil.move(tmp_path / name, moved / name)
    checkout.path = moved
    # When it is used
    checkout.run("ps")
    # Then the environment, whose programs hold the old path, is made again
    assert checkout.calls()[0].startswith("venv")


def test_what_is_compiled_is_kept_outside_of_the_sources(checkout: Checkout) -> None:
    # Given a shell that forbids to keep compiled modules, which would make every start slow
    checkout.run("up", environment={"PYTHONDONTWRITEBYTECODE": "1"})
    # Then they are kept, but not beside the sources
    handed_on = (checkout.path / "calls.env").read_text().splitlines()
    assert f"PYTHONPYCACHEPREFIX={checkout.path / '.venv' / 'compiled'}" in handed_on
    assert "PYTHONDONTWRITEBYTECODE=1" not in handed_on


def test_old_web_pages_without_node_do_not_stop_anything(checkout: Checkout) -> None:
    # Given web sources and a Node that is too old
    (checkout.path / "web").mkdir()
    (checkout.path / "web" / "package.json").write_text("{}")
    for program, said in (("node", "v18.1.0"), ("npm", "9")):
        (checkout.path / "bin" / program).write_text(f"#!/bin/sh\necho {said}\n")
        (checkout.path / "bin" / program).chmod(0o755)
    # When the platform is started
    done = checkout.run("up")
    # Then it starts, and says what is missing
    assert done.stdout == "lilith up\n"
    assert "Node 20.19" in done.stderr


def test_the_script_uses_nothing_but_the_standard_library(script: ModuleType) -> None:
    modules = {value.__name__ for value in vars(script).values() if isinstance(value, ModuleType)}
    assert modules <= set(sys.stdlib_module_names)
