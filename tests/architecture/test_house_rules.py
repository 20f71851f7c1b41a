"""Every file keeps every rule, and every rule still finds what it is for."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import rules
from tests.architecture.repository import (
    PACKAGES,
    ROOT,
    SERVICES,
    files,
    python_files,
    read,
    text_files,
)
from tests.architecture.rules import Rule

PYTHON_RULES: list[Rule] = [
    rules.module_fits_in_the_head,
    rules.function_fits_on_a_screen,
    rules.parameters_are_few,
    rules.docstrings_promise,
    rules.no_python_under_nats,
    rules.names_come_from_the_glossary,
    rules.only_settings_read_the_environment,
    rules.sql_stays_in_queries,
]
TEXT_RULES: list[Rule] = [rules.nothing_is_left_unfinished, rules.no_path_of_a_machine]
# Kept by whichever service consumes a stream, in the transaction of its rows; a row names its owner.
CONSUMER_TABLES = frozenset({"stream_cursors", "dead_letters"})
PARAMETERS = ", ".join("abcdef")
# (rule, path of the sample, a text that breaks the rule, a text beside it that does not)
SAMPLES: list[tuple[Rule, str, str, str]] = [
    (rules.module_fits_in_the_head, "edge/a.py", "\n" * 401, "\n" * 400),
    (rules.module_fits_in_the_head, "tests/test_a.py", "\n" * 501, "\n" * 500),
    (
        rules.function_fits_on_a_screen,
        "edge/a.py",
        "def f():\n" + "    pass\n" * 60,
        "def f():\n" + "    pass\n" * 59,
    ),
    (
        rules.parameters_are_few,
        "edge/a.py",
        f"def f({PARAMETERS}): ...",
        "class A:\n    def f(self, a, b, c, d, e, *, f, g): ...",
    ),
    (
        rules.parameters_are_few,
        "edge/a.py",
        f"async def f(*, {PARAMETERS}, g, h): ...",
        f"async def f(*, {PARAMETERS}, g): ...",
    ),
    (
        rules.parameters_are_few,
        "api/a.py",
        f"@cache()\ndef f({PARAMETERS}): ...",
        f"@router.get('/a')\ndef f({PARAMETERS}): ...",
    ),
    (rules.docstrings_promise, "edge/a.py", "A = 1", '"""The a."""'),
    (rules.docstrings_promise, "tests/test_a.py", "A = 1", '"""The a."""\ndef test_b(): ...'),
    (
        rules.docstrings_promise,
        "edge/a.py",
        '"""The a."""\nclass A:\n    """An a."""\n    def b(self): ...',
        '"""The a."""\nclass A:\n    """An a."""\n    def _b(self): ...',
    ),
    (
        rules.docstrings_promise,
        "edge/a.py",
        '"""The a."""\nasync def b(): ...',
        '"""The a."""\n@override\nasync def b(): ...',
    ),
    (rules.no_python_under_nats, "nats/hello.py", "", ""),
    (rules.names_come_from_the_glossary, "edge/utils.py", "", ""),
    (rules.names_come_from_the_glossary, "shared/common/ids.py", "", ""),
    (
        rules.names_come_from_the_glossary,
        "edge/a.py",
        "class SessionManager: ...",
        "class Sessions: ...",
    ),
    (rules.only_settings_read_the_environment, "edge/a.py", "import os\nos.environ['A']", "a.environ"),
    (rules.only_settings_read_the_environment, "edge/a.py", "from os import getenv", "from os import path"),
    (rules.sql_stays_in_queries, "edge/a.py", "A = 'SELECT 1'", "A = 'SELECTED'"),
    (rules.sql_stays_in_queries, "api/a.py", "A = f'''\n  INSERT INTO a VALUES ({b})'''", "A = 'INSERT'"),
    (rules.nothing_is_left_unfinished, "edge/a.py", f"# {'todo'.upper()}: later", "# todos are words"),
    (rules.no_path_of_a_machine, "docs/a.md", "see /" + "home/ava/x", "GET /homepage"),
]  # fmt: skip


@pytest.mark.parametrize("rule", PYTHON_RULES, ids=lambda rule: rule.__name__)
def test_every_python_file_keeps_the_rule(rule: Rule) -> None:
    problems = [problem for name in python_files() for problem in rule(name, read(name))]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("rule", TEXT_RULES, ids=lambda rule: rule.__name__)
def test_every_text_keeps_the_rule(rule: Rule) -> None:
    problems = [problem for name in text_files() for problem in rule(name, read(name))]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(("rule", "path", "bad", "good"), SAMPLES)
def test_each_rule_finds_its_bad_sample_and_only_that(
    rule: Rule, path: str, bad: str, good: str
) -> None:
    assert list(rule(path, bad))
    if good:
        assert not list(rule(path, good))


def test_no_rule_is_without_a_sample() -> None:
    assert {rule for rule, *_ in SAMPLES} == {*PYTHON_RULES, *TEXT_RULES}


def test_the_environment_may_be_read_by_settings_and_the_command_line() -> None:
    bad = "import os\nos.environ"
    for name in ("shared/settings.py", "cli/up.py", "run"):
        assert not list(rules.only_settings_read_the_environment(name, bad))


def test_sql_may_stand_in_queries_and_migrations() -> None:
    for name in ("api/queries.py", "api/queries/threads.py", "migrations/versions/0001_a.py"):
        assert not list(rules.sql_stays_in_queries(name, "A = 'SELECT 1'"))


def test_every_table_has_one_writing_service() -> None:
    written: dict[str, set[str]] = {service: set() for service in SERVICES}
    for name in python_files():
        service = name.split("/")[0]
        if service in written and "queries" in name:
            written[service] |= rules.tables_written(read(name))
    problems = list(rules.shared_tables(written, CONSUMER_TABLES))
    assert not problems, "\n".join(problems)
    assert written["edge"] == set(), "an edge holds nothing and writes no table"
    assert written["persister"], "no table found: does tables_written still read the queries?"


def test_a_second_writer_of_a_table_is_found() -> None:
    # Given two services that write the same table, each in its own way
    api = rules.tables_written("A = '''INSERT INTO messages VALUES ($1) ON CONFLICT DO NOTHING'''")
    persister = rules.tables_written(
        "A = f'''WITH gone AS (DELETE FROM messages) UPDATE tails SET a = {b}'''\n"
        "B = 'SELECT a FROM threads FOR UPDATE SKIP LOCKED'"
    )
    # When they are compared
    problems = list(rules.shared_tables({"api": api, "persister": persister}, frozenset()))
    # Then the table and both writers are named
    assert (api, persister) == ({"messages"}, {"messages", "tails"})
    assert len(problems) == 1
    assert "messages is written by api and persister" in problems[0]


def test_the_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "sdk" / "python")}
    checked = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_no_installed_distribution_owns_a_name_of_ours() -> None:
    owners = importlib.metadata.packages_distributions()
    foreign = {
        name: set(owners.get(name, [])) - {"lilith-messaging"}
        for name in (*PACKAGES, "lilith_client", "tests")
    }
    assert not any(foreign.values()), f"rename ours, or drop the dependency: {foreign}"


def test_every_python_file_lies_where_the_rules_look() -> None:
    homes = {*PACKAGES, "sdk", "tests", "bench", "run", "deploy"}
    strays = [name for name in python_files() if name.split("/")[0] not in homes]
    assert not strays, f"put these into a package: {strays}"
    assert "nats/server.conf" in files()
