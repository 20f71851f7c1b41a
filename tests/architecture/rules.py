"""The rules of the house, each a function: (path, text) → problems, worded as what to do about them."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Final

Rule = Callable[[str, str], Iterator[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef

MODULE_LINES_MAX: Final = 400
TEST_LINES_MAX: Final = 500
FUNCTION_LINES_MAX: Final = 60
POSITIONAL_MAX: Final = 5
PARAMETERS_MAX: Final = 7
FORBIDDEN_NAMES: Final = frozenset(
    {"utils", "util", "helpers", "helper", "common", "core", "manager", "base", "misc"}
)
# Only these may look at the environment: the settings, and what stands above them.
ENVIRONMENT_READERS: Final = ("shared/settings.py", "cli/", "tests/", "bench/", "run")
_ENVIRONMENT: Final = frozenset({"environ", "environb", "getenv", "getenvb"})
_DECLARES: Final = re.compile(r"\.(?:command|callback|get|post|put|patch|delete)\(")
# One letter of each in brackets, or this file would break its own rule.
_UNFINISHED: Final = re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X]|HA[C]K)\b")
_MACHINE_PATH: Final = re.compile(r"(?<![\w.:/-])/(?:work|root|home|Users)/")
_SQL: Final = re.compile(
    r"\s*(?:SELECT\s|INSERT\s+INTO\s|UPDATE\s+\w+\s+SET\s|DELETE\s+FROM\s|WITH\s+\w+\s+AS\s*\(|LOCK\s+TABLE\s"
    r"|CREATE\s+(?:TABLE|INDEX|UNIQUE)|ALTER\s+TABLE|TRUNCATE\s)"
)
_WRITE: Final = re.compile(
    r"\b(?:INSERT\s+INTO|UPDATE(?:\s+ONLY)?|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE(?:\s+TABLE)?)\s+([a-z_]+)"
)
_NOT_A_TABLE: Final = frozenset({"skip", "of", "set", "nowait"})
"""Words after UPDATE in ``FOR UPDATE SKIP LOCKED``, ``FOR UPDATE OF`` and ``DO UPDATE SET``, in lower case."""


def module_fits_in_the_head(path: str, text: str) -> Iterator[str]:
    """A module has at most 400 lines, a test 500."""
    limit = TEST_LINES_MAX if path.startswith("tests/") else MODULE_LINES_MAX
    lines = text.count("\n")
    if lines > limit:
        yield f"{path} has {lines} lines, {limit} are allowed: split it by concept, pull the pure part out"


def function_fits_on_a_screen(path: str, text: str) -> Iterator[str]:
    """A function has at most 60 lines with its docstring."""
    for function in _functions(text):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > FUNCTION_LINES_MAX:
            yield (
                f"{path}:{function.lineno} {function.name} has {lines} lines, {FUNCTION_LINES_MAX} are allowed: "
                "name its steps and make them functions"
            )


def parameters_are_few(path: str, text: str) -> Iterator[str]:
    """A function takes at most 5 positional parameters, and 7 in all.

    What a framework calls by name (a route, a word of the command line) declares an interface instead.
    """
    for function in _functions(text):
        if any(_DECLARES.search(ast.unparse(decorator)) for decorator in function.decorator_list):
            continue
        arguments = function.args
        positional = [*arguments.posonlyargs, *arguments.args]
        if positional and positional[0].arg in {"self", "cls"}:
            positional = positional[1:]
        count, all_ = len(positional), len(positional) + len(arguments.kwonlyargs)
        if count > POSITIONAL_MAX or all_ > PARAMETERS_MAX:
            yield (
                f"{path}:{function.lineno} {function.name} takes {count} positional parameters and {all_} in all "
                f"({POSITIONAL_MAX} and {PARAMETERS_MAX} are allowed): group what belongs together in a type"
            )


def docstrings_promise(path: str, text: str) -> Iterator[str]:
    """Every module says what it is for, every public class and function what it promises."""
    tree = ast.parse(text)
    if not ast.get_docstring(tree) and (tree.body or not path.endswith("__init__.py")):
        yield f"{path} has no docstring: say in its first line what it is for"
    if path.startswith("tests/") or "/versions/" in path:
        return
    for owner, node in _public(tree):
        if ast.get_docstring(node) is None and not _is_override(node):
            yield f"{path}:{node.lineno} {owner}{node.name} has no docstring: say what it promises"


def nothing_is_left_unfinished(path: str, text: str) -> Iterator[str]:
    """No marks of unfinished work: do it now, or file an issue."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _UNFINISHED.search(line):
            yield f"{path}:{number} says {match[0]}: do it now or file an issue"


def no_path_of_a_machine(path: str, text: str) -> Iterator[str]:
    """No path of one developer's machine."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _MACHINE_PATH.search(line):
            yield f"{path}:{number} names {match[0]}…: a path of one machine; make it relative or a setting"


def no_python_under_nats(path: str, text: str) -> Iterator[str]:
    """nats/ holds configuration only: Python there becomes part of the package of nats-py."""
    del text
    if path.startswith("nats/") and path.endswith((".py", ".pyi")):
        yield f"{path} would be importable as part of nats-py: move it to shared/bus or cli"


def names_come_from_the_glossary(path: str, text: str) -> Iterator[str]:
    """No module and no class is a drawer for everything."""
    parts = {PurePosixPath(part).stem for part in PurePosixPath(path).parts}
    for name in sorted(parts & FORBIDDEN_NAMES):
        yield f"{path}: '{name}' names no concept; find the word in docs/glossary.md"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and re.search(r"(?:Manager|Helpers?|Utils?)$", node.name):
            yield f"{path}:{node.lineno} class {node.name}: name it after what it is or does"


def only_settings_read_the_environment(path: str, text: str) -> Iterator[str]:
    """One reader of the environment: everything else is handed its settings."""
    if path.startswith(ENVIRONMENT_READERS) or path == "run":
        return
    for node in ast.walk(ast.parse(text)):
        if _reads_environment(node):
            yield (
                f"{path}:{getattr(node, 'lineno', 0)} reads the environment: "
                "add the setting to shared/settings.py and pass it in"
            )


def sql_stays_in_queries(path: str, text: str) -> Iterator[str]:
    """A service's SQL is a named constant of its queries module."""
    parts = PurePosixPath(path)
    if (
        parts.stem == "queries"
        or "queries" in parts.parts
        or path.startswith(("tests/", "migrations/", "bench/"))
    ):
        return
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and _SQL.match(node.value)
        ):
            yield f"{path}:{node.lineno} holds SQL: make it a named constant of a queries module"


def tables_written(text: str) -> set[str]:
    """Return the tables that the SQL constants of a module write."""
    constants = [
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    found = {match[1] for sql in constants for match in _WRITE.finditer(sql)}
    return found - _NOT_A_TABLE


def shared_tables(written: dict[str, set[str]], machinery: frozenset[str]) -> Iterator[str]:
    """One writer per table. ``written`` is service → tables, ``machinery`` what every consumer keeps for itself."""
    owners: dict[str, list[str]] = {}
    for service in sorted(written):
        for table in written[service] - machinery:
            owners.setdefault(table, []).append(service)
    for table, services in sorted(owners.items()):
        if len(services) > 1:
            yield (
                f"table {table} is written by {' and '.join(services)}: move the statement to one owner, "
                "or publish an event that the owner applies"
            )


def _reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and bool({alias.name for alias in node.names} & _ENVIRONMENT)
    return isinstance(node, ast.Attribute) and ast.unparse(node) in {
        f"os.{n}" for n in _ENVIRONMENT
    }


def _functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            yield node


def _public(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        yield "", node
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, Function) and not member.name.startswith("_"):
                    yield f"{node.name}.", member


def _is_override(node: ast.ClassDef | Function) -> bool:
    names = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    return bool(names & {"override", "overload", "setter"})
