"""Cursors: opaque positions in one thread. Pure: no I/O.

A cursor is ``<seq in hex>.<thread's 32-bit hash in hex>``; the hash makes a cursor of another thread an error instead
of a wrong position. Clients treat it as opaque; ``"0"`` is before everything, in every thread.
"""

from typing import Final

from shared.errors import InvalidCursorError
from shared.identity import ThreadId
from shared.subjects import hash_of

BEGINNING: Final = "0"
SEQ_MAX: Final = 2**53 - 1


def cursor_suffix(thread_id: ThreadId) -> str:
    """Return what follows the seq in every cursor of the thread; the edge keeps it per thread."""
    return f".{hash_of(thread_id):08x}"


def encode_cursor(thread_id: ThreadId, seq: int) -> str:
    """Return the cursor of ``seq`` in the thread; seq 0 is ``"0"``."""
    return f"{seq:x}{cursor_suffix(thread_id)}" if seq else BEGINNING


def decode_cursor(thread_id: ThreadId, cursor: object) -> int:
    """Return the seq of a cursor of this thread.

    Raises:
        InvalidCursorError: Malformed, or a cursor of another thread.
    """
    if cursor == BEGINNING:
        return 0
    if not isinstance(cursor, str) or not cursor.endswith(cursor_suffix(thread_id)):
        raise InvalidCursorError(cursor)
    digits = cursor[: -len(cursor_suffix(thread_id))]
    if not 0 < len(digits) <= 14 or not set(digits) <= set("0123456789abcdef") or digits[0] == "0":
        raise InvalidCursorError(cursor)
    seq = int(digits, 16)
    if seq > SEQ_MAX:
        raise InvalidCursorError(cursor)
    return seq
