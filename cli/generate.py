"""The second copies: documents and configuration that the code knows better. ``python -m cli.generate`` writes them.

Each text here is a pure function of the code; ``tests/architecture`` fails while a committed copy differs.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, get_args, get_origin

from prometheus_client import Counter, Gauge, Histogram
from pydantic.fields import FieldInfo
from typing_extensions import override

from cli.descriptions import asyncapi_document, openapi_document
from shared import metrics
from shared.protocol import CLOSE_REASONS, HTTP_STATUS, MEANING, RETRYABLE, may_reconnect
from shared.provision.authorization import render_authorization
from shared.settings import Settings, describe, parse_duration
from shared.subjects import ROLES

ROOT: Final = Path(__file__).parents[1]
_HOW: Final = "by `python -m cli.generate`; a test keeps it fresh. Do not edit."
# (title, names that begin so); the first that fits takes a setting.
_GROUPS: Final = (
    ("Database", ("DATABASE_",)),
    ("NATS", ("NATS_", "MESSAGING_STREAMS", "MESSAGING_REPLICAS", "MESSAGING_LOG_BYTES", "MESSAGING_PLATFORM_")),
    ("Tokens", ("JWT_",)),
    ("Features", ("MESSAGING_ENABLE_",)),
    ("Limits", ("MESSAGING_THROTTLE_", "MESSAGING_CONNECTIONS_")),
    (
        "Timings",
        ("MESSAGING_LOG_AGE", "MESSAGING_DEDUPE_", "MESSAGING_HOLD_", "MESSAGING_PUBLISH_", "MESSAGING_NODE_LEASE"),
    ),
    ("Logs", ("LOG_",)),
    ("Addresses", ("",)),
)  # fmt: skip
SERVICE_METRICS: Final = {
    "Edge": metrics.EdgeMetrics,
    "Persister": metrics.PersisterMetrics,
    "Analytics": metrics.AnalyticsMetrics,
    "Api": metrics.ApiMetrics,
}
_DURATIONS: Final = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def documents() -> dict[str, str]:
    """Return the text of every generated file by its path in the repository."""
    return {
        ".env.example": environment_example(),
        "docs/asyncapi.json": _json_text(asyncapi_document()),
        "docs/codes.md": codes_page(),
        "docs/configuration.md": configuration_page(),
        "docs/metrics.md": metrics_page(),
        "docs/openapi.json": _json_text(openapi_document()),
        "nats/authorization.conf": render_authorization(),
    }


def stale(root: Path = ROOT) -> list[str]:
    """Return the generated files that differ from the code, or are missing."""
    return [
        name
        for name, text in documents().items()
        if not (root / name).exists() or (root / name).read_text(encoding="utf-8") != text
    ]


def write(root: Path = ROOT) -> list[str]:
    """Write every generated file that differs; return their paths."""
    texts, changed = documents(), stale(root)
    for name in changed:
        (root / name).write_text(texts[name], encoding="utf-8")
    return changed


def environment_example() -> str:
    """Return ``.env.example``: every setting, commented out with its default."""
    lines = [
        f"# Every setting of the platform. Generated from shared/settings.py {_HOW.replace('`', '')}",
        "# Copy what differs from the default into .env; `./run init` writes one with fresh secrets.",
        "# A secret may come from a file instead: JWT_SECRET_FILE=/run/secrets/jwt.",
    ]
    for title, rows in _groups():
        lines += ["", f"# {title}"]
        for row in rows:
            lines += [f"# {row['description']}", f"#{row['name']}={row['value']}"]
    lines += [
        "",
        "# For compose.yaml: the password of each NATS user; letters and digits, a letter first",
    ]
    lines += [f"#{name}=" for name in nats_password_names()]
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """Return ``docs/configuration.md``: every setting in tables, by what it is about."""
    parts = [_CONFIGURATION_HEAD]
    for title, rows in _groups():
        parts.append(
            f"\n## {title}\n\n| variable | values | default | meaning |\n|---|---|---|---|\n"
        )
        for row in rows:
            default = f"`{row['value']}`" if row["value"] else "empty"
            meaning = row["description"].replace("|", "\\|")
            parts.append(f"| `{row['name']}` | {row['values']} | {default} | {meaning} |\n")
    names = ", ".join(f"`{name}`" for name in nats_password_names())
    parts.append(_CONFIGURATION_TAIL.format(names=names))
    return "".join(parts)


def codes_page() -> str:
    """Return ``docs/codes.md``: error codes and close codes."""
    errors = "".join(
        f"| `{code}` | {HTTP_STATUS[code]} | {'yes' if code in RETRYABLE else 'no'} | {MEANING[code]} |\n"
        for code in HTTP_STATUS
    )
    closes = "".join(
        f"| {code.value} | {'yes' if may_reconnect(code) else 'no'} | {reason} |\n"
        for code, reason in CLOSE_REASONS.items()
    )
    return _CODES_PAGE.format(how=_HOW, errors=errors, closes=closes)


def metrics_page() -> str:
    """Return ``docs/metrics.md``: every metric of every service."""
    parts = [_METRICS_HEAD]
    for title, recorded in _recorded_metrics().items():
        parts.append(f"\n## {title}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n")
        for name, kind, labels, meaning in recorded:
            shown = ", ".join(f"`{label}`" for label in labels if label) or "none"
            parts.append(f"| `{name}` | {kind} | {shown} | {meaning} |\n")
    return "".join(parts)


def nats_password_names() -> list[str]:
    """Return the variables that hold the passwords of the NATS users."""
    return [f"LILITH_NATS_{role.upper()}_PASSWORD" for role in ROLES]


def main(arguments: list[str]) -> int:
    """Write what is stale; with ``--check`` only say so and return 1."""
    changed = stale() if "--check" in arguments else write()
    for name in changed:
        print(f"{'stale' if '--check' in arguments else 'written'}: {name}")
    return 1 if changed and "--check" in arguments else 0


def _groups() -> list[tuple[str, list[dict[str, str]]]]:
    grouped: dict[str, list[dict[str, str]]] = {title: [] for title, _ in _GROUPS}
    # Constructed without validation: the defaults alone, whatever this environment says.
    for row in describe(Settings.model_construct()):
        field = Settings.model_fields[row["name"].lower()]
        title = next(title for title, begins in _GROUPS if row["name"].startswith(begins))
        value = row["value"].lower() if field.annotation is bool else row["value"]
        value = _duration(field.default) if _is_duration(field) else value
        grouped[title].append({**row, "value": value, "values": _values(field)})
    # The addresses are what everybody changes first.
    return sorted(grouped.items(), key=lambda group: group[0] != "Addresses")


def _values(field: FieldInfo) -> str:
    if _is_duration(field):
        return "duration"
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    if field.annotation is bool:
        return "`true`, `false`"
    return "number" if field.annotation is int else "text"


def _is_duration(field: FieldInfo) -> bool:
    return any(getattr(part, "func", None) is parse_duration for part in field.metadata)


def _duration(seconds: float) -> str:
    for size, unit in _DURATIONS:
        # 24h and 72h say more than 1d and 3d to somebody who reads a log.
        if seconds % size == 0 and (unit != "d" or seconds > 7 * size):
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms"


class _Recorder(metrics.ServiceMetrics):
    """Mixed in before a service's metrics, it keeps what they register."""

    recorded: list[tuple[str, str, tuple[str, ...], str]]

    @override
    def counter(self, name: str, documentation: str, *labels: str) -> Counter:
        self.recorded.append((name, "counter", labels, documentation))
        return super().counter(name, documentation, *labels)

    @override
    def gauge(
        self, name: str, documentation: str, *labels: str, read: Callable[[], float] | None = None
    ) -> Gauge:
        self.recorded.append((name, "gauge", labels, documentation))
        return super().gauge(name, documentation, *labels, read=read)

    @override
    def histogram(
        self,
        name: str,
        documentation: str,
        *labels: str,
        buckets: tuple[float, ...] = metrics.SECONDS,
    ) -> Histogram:
        self.recorded.append((name, "histogram", labels, documentation))
        return super().histogram(name, documentation, *labels, buckets=buckets)

    @override
    def tallies(self, name: str, documentation: str, label: str = "") -> metrics.TallyGroup:
        self.recorded.append((name, "counter", (label,), documentation))
        return super().tallies(name, documentation, label)


def _recorded_metrics() -> dict[str, list[tuple[str, str, tuple[str, ...], str]]]:
    """Return the metrics of each service by its title; what all of them have comes first, and once."""
    everywhere = _record(metrics.ServiceMetrics, "edge", "0")
    found = {"Every process": everywhere}
    for title, service in SERVICE_METRICS.items():
        found[title] = [row for row in _record(service, "0") if row not in everywhere]
    return found


def _record(service: type, *arguments: str) -> list[tuple[str, str, tuple[str, ...], str]]:
    bases = (_Recorder,) if service is metrics.ServiceMetrics else (_Recorder, service)
    recorded: list[tuple[str, str, tuple[str, ...], str]] = []
    type("Recorded", bases, {"recorded": recorded})(*arguments)
    return recorded


def _json_text(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


_CONFIGURATION_HEAD: Final = f"""\
# Configuration

Generated from `shared/settings.py` {_HOW}

Settings come from the environment, then from a file `.env` in the working directory, then from the defaults below.
Every one may be given as `<NAME>_FILE` instead: the path of a file that holds the value, for secrets; it wins over the
plain variable. A duration is a number and a unit: `250ms`, `20s`, `5m`, `72h`, `7d`.

`./run config show` prints what is in force and where it comes from, secrets masked. A `MESSAGING_*` name that is no
setting is reported at start with the nearest one that is. Timings that contradict each other, an impossible value, or
a missing or easily guessed secret stop the start with a sentence that says what to set. `./run init` writes a `.env`
with fresh secrets.
"""
_CONFIGURATION_TAIL: Final = """
## Passwords of the NATS users

`nats/server.conf` and `compose.yaml` read one password for each user: {names}. Letters and digits, a letter first;
`./run init` makes them. The embedded default makes its own and keeps them in the data directory.

## Limits that follow from timings

| limit | computed from | by default |
|---|---|---|
| how far a client's clock may run ahead | a fifth of the dedupe window, at most 60 s | 60 s |
| from which age on a retry first asks | 9/11 of the dedupe window less that clock and the publish budget | 180 s |
| at which age of the oldest unpersisted message sends are refused | half of the log's age | 36 h |
"""
_CODES_PAGE: Final = """\
# Error codes and close codes

Generated from `shared/protocol/codes.py` {how}

## Errors

One list for the WebSocket (`error` frames) and REST (`application/problem+json`). *Again* says whether the same
command, sent again with the same ids, may succeed.

| code | HTTP | again | meaning |
|---|---|---|---|
{errors}
## Close codes of the WebSocket

4000 to 4499: reconnect. 4500 to 4999: do not, until somebody acts.

| code | reconnect | reason |
|---|---|---|
{closes}"""
_METRICS_HEAD: Final = f"""\
# Metrics

Generated from `shared/metrics.py` {_HOW}

Every process answers `/metrics` in the Prometheus text format: the api on its own port, the others on
`MESSAGING_HEALTH_PORT`. Prefix `messaging_`, base units, no ids in labels. `deploy/prometheus.yml` scrapes them all.
Besides those below every process tells its version and service in `messaging_build_info`, and its memory, CPU time and
open files in `messaging_process_*`.
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
