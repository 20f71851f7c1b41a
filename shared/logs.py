"""Structured logs: one line per event on stderr, JSON for machines or colours for people. Configured once a process.

Records of the standard library (uvicorn, asyncpg, nats-py, our own ``logging.getLogger``) and of structlog come out in
the same shape. No token, password or message body is ever logged; keys that look like one are masked all the same.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog

MASK: Final = "…"
_SECRET_KEYS: Final = frozenset(
    {"authorization", "body", "cookie", "dsn", "jwt", "nats_url", "password", "secret", "token"}
)
# uvicorn tells four lines about every start and stop; what matters of them shows in /readyz.
_NOISY: Final = {
    "uvicorn.access": logging.WARNING,
    "uvicorn.error": logging.WARNING,
    "asyncio": logging.WARNING,
}


def configure_logs(
    *,
    service: str,
    node: str = "",
    level: str = "INFO",
    form: Literal["json", "console"] = "json",
    stream: TextIO | None = None,
) -> None:
    """Send every record of this process to ``stream`` (stderr) as one line.

    Args:
        service: ``edge``, ``persister``, …: the field ``service`` of every line.
        node: ``edge-0``: the field ``node``, left out when empty.
        level: Least level that is shown.
        form: ``json``, or ``console`` with colours on a terminal.
        stream: Where to write; tests give their own.
    """
    target = sys.stderr if stream is None else stream
    identity = {"service": service, **({"node": node} if node else {})}
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _adding(identity),
        _mask_secrets,
        structlog.processors.StackInfoRenderer(),
    ]
    if form == "json":
        rendering: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(sort_keys=False, default=str),
        ]
    else:
        # Plain: the default prints the local variables of every frame, passwords in addresses among them.
        plain = structlog.dev.plain_traceback
        colours = target.isatty()
        rendering = [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain)]
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name, least in _NOISY.items():
        logging.getLogger(name).setLevel(least)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _adding(fields: dict[str, str]) -> structlog.typing.Processor:
    def add(
        _logger: object, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        event.update(fields)
        return event

    return add


def _mask_secrets(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key in _SECRET_KEYS.intersection(event):
        event[key] = MASK
    return event
