"""What goes into the one path to the log, and what comes out. Pure: no I/O."""

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from shared.identity import ClientMessageId, ThreadId, UserId
from shared.protocol import ErrorCode

RETRY_AFTER_MS: Final = 1_000
"""What an ``unavailable`` tells the client to wait. It was already tried for the whole budget, or cannot work now."""


class SendRequest(NamedTuple):
    """One message to store. Membership, limits and form were checked by the caller (``edge``, ``api``).

    ``attachments`` are the resolved descriptors that are stored; ``attachment_ids`` what the sender named.
    """

    thread_id: ThreadId
    sender_id: UserId
    client_msg_id: ClientMessageId
    body: str
    attachments: list[dict[str, Any]]
    attachment_ids: list[str]
    reply_to: str | None
    metadata: dict[str, Any]
    kind: Literal["text", "system"] = "text"


class Sent(NamedTuple):
    """The message is stored and flushed. ``duplicate``: it was before; these are its own ``seq`` and ``sent_at``."""

    message_id: str
    seq: int
    cursor: str
    sent_at: str
    duplicate: bool


class Refused(NamedTuple):
    """The message was not stored now. With ``unavailable`` it may have been: send it again with the same ids."""

    code: ErrorCode
    retry_after_ms: int | None = None


UNAVAILABLE: Final = Refused(ErrorCode.UNAVAILABLE, RETRY_AFTER_MS)
Outcome = Sent | Refused
Done = Callable[[Outcome], None]
