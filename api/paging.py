"""Pages: ``limit`` and the opaque ``cursor`` of every list.

A cursor holds the sort key of the last row shown, so a page begins where the one before ended even when rows were
added meanwhile. It is checked, not signed: whatever it says, only the caller's own rows are read.
"""

import base64
import binascii
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, NamedTuple

from fastapi import Depends, Query

from api.problems import invalid
from shared.cursors import SEQ_MAX

LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 200
_CURSOR_CHARS_MAX: Final = 256
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_KEY: Final = re.compile(r"(\d{1,17})\.([A-Za-z0-9_-]{1,64})")
_VERSION: Final = re.compile(r"[1-9a-f][0-9a-f]{0,6}")
_SEQS: Final = re.compile(r"([ab])\.([0-9a-f]{1,14})\.([0-9a-f]{1,14})")


class PageQuery(NamedTuple):
    """What a list was asked for."""

    limit: int
    cursor: str | None


class SeqRange(NamedTuple):
    """Which messages of a thread: those between two seqs (both exclusive), and from which end."""

    oldest_first: bool
    after: int
    before: int


def page_query(
    limit: Annotated[
        int, Query(ge=1, le=LIMIT_MAX, description="Items on the page, at most.")
    ] = LIMIT_DEFAULT,
    cursor: Annotated[
        str | None,
        Query(max_length=_CURSOR_CHARS_MAX, description="`next_cursor` of the page before."),
    ] = None,
) -> PageQuery:
    """Return the two parameters that every list has."""
    return PageQuery(limit, cursor)


Paging = Annotated[PageQuery, Depends(page_query)]
"""What a route of a list takes."""


def encode_key(at: datetime, name: str) -> str:
    """Return the cursor after a row that is sorted by a time, then an id."""
    micros = (at - _EPOCH) // _MICROSECOND
    return base64.urlsafe_b64encode(f"{micros}.{name}".encode()).decode().rstrip("=")


def decode_key(cursor: str) -> tuple[datetime, str]:
    """Return the sort key in a cursor.

    Raises:
        ProblemError: ``invalid``.
    """
    match = _KEY.fullmatch(_text(cursor))
    if match is None:
        raise _bad_cursor()
    try:
        return _EPOCH + int(match[1]) * _MICROSECOND, match[2]
    except OverflowError as error:
        raise _bad_cursor() from error


def decode_seq_range(cursor: str) -> SeqRange:
    """Return the rest of a listing of messages, as ``next_cursor`` of its last page told it.

    Raises:
        ProblemError: ``invalid``.
    """
    match = _SEQS.fullmatch(cursor)
    if match is None:
        raise _bad_cursor()
    after, before = int(match[2], 16), int(match[3], 16)
    if after > SEQ_MAX or before > SEQ_MAX:
        raise _bad_cursor()
    return SeqRange(match[1] == "a", after, before)


def decode_version(cursor: str) -> int:
    """Return the version after which a page of a message's history begins.

    Raises:
        ProblemError: ``invalid``.
    """
    if _VERSION.fullmatch(cursor) is None:
        raise _bad_cursor()
    return int(cursor, 16)


def _text(cursor: str) -> str:
    try:
        return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        return ""


def _bad_cursor() -> Exception:
    return invalid("/cursor", "is not the next_cursor of a page of this list")
