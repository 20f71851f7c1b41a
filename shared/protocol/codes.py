"""Error codes and close codes: one list for WebSocket and REST. Source: protocol, section 1."""

from enum import IntEnum, StrEnum
from typing import Final


class ErrorCode(StrEnum):
    """What went wrong, in a word that clients may switch on. The HTTP status is in ``HTTP_STATUS``."""

    BAD_FRAME = "bad_frame"
    UNKNOWN_TYPE = "unknown_type"
    INVALID = "invalid"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CONFLICT = "conflict"
    GONE = "gone"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported"
    THREAD_ARCHIVED = "thread_archived"
    RATE_LIMITED = "rate_limited"
    LIMIT_REACHED = "limit_reached"
    QUOTA_EXHAUSTED = "quota_exhausted"
    LOCKED = "locked"
    QUOTA_UNAVAILABLE = "quota_unavailable"
    BANNED = "banned"
    BLOCKED = "blocked"
    POLICY_REJECTED = "policy_rejected"
    HELD = "held"
    FEATURE_DISABLED = "feature_disabled"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


HTTP_STATUS: Final[dict[ErrorCode, int]] = {
    ErrorCode.BAD_FRAME: 400,
    ErrorCode.UNKNOWN_TYPE: 400,
    ErrorCode.INVALID: 422,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.CONFLICT: 409,
    ErrorCode.GONE: 410,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.UNSUPPORTED: 415,
    ErrorCode.THREAD_ARCHIVED: 423,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.LIMIT_REACHED: 422,
    ErrorCode.QUOTA_EXHAUSTED: 402,
    ErrorCode.LOCKED: 402,
    ErrorCode.QUOTA_UNAVAILABLE: 503,
    ErrorCode.BANNED: 403,
    ErrorCode.BLOCKED: 403,
    ErrorCode.POLICY_REJECTED: 403,
    ErrorCode.HELD: 403,
    ErrorCode.FEATURE_DISABLED: 403,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.INTERNAL: 500,
}

RETRYABLE: Final = frozenset(
    {ErrorCode.RATE_LIMITED, ErrorCode.QUOTA_UNAVAILABLE, ErrorCode.UNAVAILABLE, ErrorCode.INTERNAL}
)
"""Codes after which the same command, sent again with the same ids, may succeed."""

MEANING: Final[dict[ErrorCode, str]] = {
    ErrorCode.BAD_FRAME: "The frame is not a JSON object.",
    ErrorCode.UNKNOWN_TYPE: "No command has this type.",
    ErrorCode.INVALID: "A field is missing, of the wrong type or out of its limits; see the details.",
    ErrorCode.UNAUTHORIZED: "The token is missing, expired or refused. Get a new one.",
    ErrorCode.FORBIDDEN: "You can see this but may not do that to it.",
    ErrorCode.NOT_FOUND: "There is nothing here that you may see.",
    ErrorCode.METHOD_NOT_ALLOWED: "This resource does not take that method.",
    ErrorCode.CONFLICT: "The same id was used before with another content.",
    ErrorCode.GONE: "It was here once and will not come back.",
    ErrorCode.TOO_LARGE: "The body is larger than the limit.",
    ErrorCode.UNSUPPORTED: "This protocol, upgrade or media type is not supported here.",
    ErrorCode.THREAD_ARCHIVED: "The thread is archived; nothing can be sent to it.",
    ErrorCode.RATE_LIMITED: "Too many requests; wait as long as it says.",
    ErrorCode.LIMIT_REACHED: "A limit of this system is reached; see the message.",
    ErrorCode.QUOTA_EXHAUSTED: "No messages are left in your quota.",
    ErrorCode.LOCKED: "This content has to be unlocked first.",
    ErrorCode.QUOTA_UNAVAILABLE: "The quota cannot be checked at the moment; try again.",
    ErrorCode.BANNED: "This account is banned.",
    ErrorCode.BLOCKED: "Messages cannot be sent in this conversation.",
    ErrorCode.POLICY_REJECTED: "The message was rejected by a policy of this platform.",
    ErrorCode.HELD: "The message waits for review.",
    ErrorCode.FEATURE_DISABLED: "This feature is switched off on this installation.",
    ErrorCode.UNAVAILABLE: "This cannot be done at the moment; try again with the same ids.",
    ErrorCode.INTERNAL: "Something went wrong on our side; try again with the same ids.",
}
"""One sentence per code: the default text of an error, and the text of ``/problems/<code>``."""


class CloseCode(IntEnum):
    """Why the server closes a WebSocket. 4000 to 4499: reconnect; 4500 to 4999: do not."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    TOKEN_EXPIRED = 4401
    SLOW_CLIENT = 4408
    POSITION_LOST = 4409
    RATE_LIMITED = 4429
    AUTHENTICATION_MISSING = 4500
    TOKEN_INVALID = 4501
    BANNED = 4503
    TOO_MANY_SESSIONS = 4504


CLOSE_REASONS: Final[dict[CloseCode, str]] = {
    CloseCode.NORMAL: "goodbye",
    CloseCode.GOING_AWAY: "going away",
    CloseCode.PROTOCOL_ERROR: "protocol error",
    CloseCode.UNSUPPORTED_DATA: "text frames only",
    CloseCode.INVALID_DATA: "not UTF-8",
    CloseCode.POLICY_VIOLATION: "too many bad frames",
    CloseCode.TOO_BIG: "frame over 64 KiB",
    CloseCode.INTERNAL_ERROR: "internal error",
    CloseCode.SERVICE_RESTART: "restarting, reconnect with jitter",
    CloseCode.TRY_AGAIN_LATER: "overloaded or fabric lost, try again later",
    CloseCode.TOKEN_EXPIRED: "token expired",
    CloseCode.SLOW_CLIENT: "slow client, reconnect and resume",
    CloseCode.POSITION_LOST: "position lost, reconnect and resume",
    CloseCode.RATE_LIMITED: "rate limited",
    CloseCode.AUTHENTICATION_MISSING: "authentication missing or late",
    CloseCode.TOKEN_INVALID: "token invalid",
    CloseCode.BANNED: "banned or deactivated",
    CloseCode.TOO_MANY_SESSIONS: "too many sessions, the oldest is closed",
}


def may_reconnect(code: int) -> bool:
    """Return whether a client should come back after this close code."""
    return not 4500 <= code <= 4999
