"""Names of things: ids made by the server, ids made by clients, and the message id that follows from them.

Every id is matched against its pattern *before* anything else looks at it: an unchecked id in a NATS subject would be
a wildcard, an unchecked id in SQL an error of the whole batch. Pure: no I/O.
"""

import hashlib
import re
import time
from typing import Final, NewType

import msgspec
import uuid_utils

from shared.errors import InvalidIdError

ThreadId = NewType("ThreadId", str)
MessageId = NewType("MessageId", str)
ClientMessageId = NewType("ClientMessageId", str)
UserId = NewType("UserId", str)

CLOCK_AHEAD_MS_MAX: Final = 60_000
"""A client's clock may run this far ahead; beyond it the id would look young for too long."""

_HEX_ID: Final = re.compile(r"[0-9a-f]{32}")
_LOOSE_ID: Final = re.compile(
    r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
)
_USER_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UUID7: Final = re.compile(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}")


def new_id() -> str:
    """Return a new UUIDv7 as 32 lower-case hex digits; ids made later sort later (by millisecond)."""
    return uuid_utils.uuid7().hex


def canonical_id(text: object) -> str:
    """Return the 32 lower-case hex digits of an id that may carry hyphens and capitals.

    Raises:
        InvalidIdError: Anything else, a value that is no string included.
    """
    if not isinstance(text, str):
        raise InvalidIdError(text)
    if _HEX_ID.fullmatch(text):
        return text
    if _LOOSE_ID.fullmatch(text):
        return text.replace("-", "").lower()
    raise InvalidIdError(text)


def user_id(text: object) -> UserId:
    """Return the platform's own user id, unchanged, if it is a safe NATS token.

    Raises:
        InvalidIdError: Not 1 to 64 of the letters, digits, ``_`` and ``-``.
    """
    if isinstance(text, str) and _USER_ID.fullmatch(text):
        return UserId(text)
    raise InvalidIdError(text)


def client_message_id(text: object) -> ClientMessageId:
    """Return the canonical form of a client's UUIDv7.

    Raises:
        InvalidIdError: No UUID, or one of another version.
    """
    canonical = canonical_id(text)
    if _UUID7.fullmatch(canonical) is None:
        raise InvalidIdError(text)
    return ClientMessageId(canonical)


def time_ms_of(uuid7_hex: str) -> int:
    """Return the Unix time in milliseconds that a UUIDv7 (or a message id) begins with."""
    return int(uuid7_hex[:12], 16)


def now_ms() -> int:
    """Return the wall clock as Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def message_id(thread_id: ThreadId, sender_id: UserId, client_msg_id: ClientMessageId) -> MessageId:
    """Return the id of a message: a UUIDv8 that is a pure function of the triple.

    The first 48 bits are the time of ``client_msg_id``, the rest SHA-256 over the three, NUL-separated: every node
    computes the same id at any time, ids sort by time, and nobody can aim at another sender's id.
    """
    digest = hashlib.sha256(f"{thread_id}\0{sender_id}\0{client_msg_id}".encode()).hexdigest()
    variant = "89ab"[int(digest[3], 16) & 3]
    return MessageId(f"{client_msg_id[:12]}8{digest[:3]}{variant}{digest[4:19]}")


def derived_id(*parts: str) -> str:
    """Return a UUIDv8 that is a pure function of texts without NUL: a repeated command makes the same event id."""
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:12]}8{digest[13:16]}{variant}{digest[17:32]}"


def content_digest(
    body: str, attachments: list[str], reply_to: str | None, metadata: dict[str, object]
) -> bytes:
    """Return 16 bytes that are equal exactly for equal contents of a message, compared as JSON values.

    Args:
        body: The text as first sent.
        attachments: The ids that the sender attached, in order.
        reply_to: The id answered to, as sent.
        metadata: Any JSON object; key order does not matter and ``1.0`` equals ``1``.
    """
    content = (
        [body, attachments, reply_to, _normal(metadata)]
        if metadata
        else [body, attachments, reply_to, {}]
    )
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).digest()[:16]


def _normal(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normal(item) for item in value]
    return value
