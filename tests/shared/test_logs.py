"""Logs: one line per event in one shape, whoever wrote it, without secrets."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from shared.logs import MASK, configure_logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave the logs of the test process as they were."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_both_libraries_write_the_same_shape() -> None:
    # Given logs for machines
    stream = io.StringIO()
    configure_logs(service="edge", node="edge-0", stream=stream)
    # When the standard library and structlog write
    logging.getLogger("library").warning("lost %s", "it", extra={"stream": "MSG_0"})
    structlog.get_logger("ours").info("found", count=3)
    # Then both lines say who, when, what and with which fields
    first, second = lines(stream)
    assert first.pop("at") <= second.pop("at")
    identity = {"service": "edge", "node": "edge-0"}
    assert first == {
        "event": "lost it",
        "level": "warning",
        "logger": "library",
        "stream": "MSG_0",
        **identity,
    }
    assert second == {
        "event": "found",
        "level": "info",
        "logger": "ours",
        "count": 3,
        **identity,
    }


def test_an_exception_is_one_line() -> None:
    # Given an exception
    stream = io.StringIO()
    configure_logs(service="api", stream=stream)
    # When it is logged
    try:
        int("broken\nin two")
    except ValueError:
        logging.getLogger("library").exception("failed")
    # Then the whole traceback is a field of one line
    (line,) = lines(stream)
    assert "ValueError: invalid literal" in line["exception"]


@pytest.mark.parametrize("key", ["token", "password", "authorization", "body", "secret", "dsn"])
def test_what_looks_like_a_secret_is_masked(key: str) -> None:
    stream = io.StringIO()
    configure_logs(service="api", stream=stream)
    structlog.get_logger().info("login", **{key: "hunter2"})
    logging.getLogger("library").info("login", extra={key: "hunter2"})
    assert "hunter2" not in stream.getvalue()
    assert [line[key] for line in lines(stream)] == [MASK, MASK]


def test_less_than_the_level_is_not_shown() -> None:
    stream = io.StringIO()
    configure_logs(service="api", level="WARNING", stream=stream)
    logging.getLogger("library").info("quiet")
    structlog.get_logger().info("quiet")
    assert stream.getvalue() == ""


def test_for_people_it_is_text_without_colours_when_it_is_no_terminal() -> None:
    stream = io.StringIO()
    configure_logs(service="api", form="console", stream=stream)
    logging.getLogger("library").info("hello")
    assert "hello" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_configuring_twice_does_not_write_twice() -> None:
    stream = io.StringIO()
    configure_logs(service="api", stream=io.StringIO())
    configure_logs(service="api", stream=stream)
    logging.getLogger("library").info("once")
    assert len(lines(stream)) == 1
