"""The wire protocol: frames, events, error codes, close codes. Pure, and the source of every other description.

AsyncAPI, TypeScript types and the pages under ``docs/`` are generated from here. Adding an ephemeral event touches this
package and ``edge/commands.py``; a durable one also the api's file of that concept and ``persister/projections.py``.
"""

from typing import Final

from shared.protocol.codes import (
    CLOSE_REASONS,
    HTTP_STATUS,
    MEANING,
    RETRYABLE,
    CloseCode,
    ErrorCode,
    may_reconnect,
)
from shared.protocol.commands import (
    ATTACHMENTS_MAX,
    BODY_CHARS_MAX,
    COMMANDS,
    FRAME_BYTES_MAX,
    METADATA_BYTES_MAX,
    AnyCommand,
    AttachmentRef,
    Auth,
    MarkRead,
    Ping,
    SendMessage,
    StartTyping,
    StopTyping,
    SubscribeThread,
    UnsubscribeThread,
)
from shared.protocol.frames import (
    Ack,
    AnyFrame,
    CaughtUp,
    Detail,
    Error,
    Features,
    Hello,
    LastMessage,
    Limits,
    Message,
    MessageDeleted,
    MessageRead,
    MessageUpdated,
    NewMessage,
    Participant,
    Pong,
    Quota,
    RateLimit,
    ResetReason,
    ServerDraining,
    SyncRequired,
    Thread,
    ThreadActivity,
    ThreadArchived,
    ThreadCreated,
    ThreadMember,
    ThreadReset,
    ThreadUpdated,
    TypingActive,
)
from shared.protocol.parsing import (
    FrameError,
    check_content,
    find_unstorable,
    parse_command,
    parse_object,
)

SUBPROTOCOL: Final = "messaging.v1.json"
PATH: Final = "/ws/messaging"
SUBSCRIPTIONS_MAX: Final = 128
"""Threads that one session may be subscribed to."""

UNREAD_MAX: Final = 1_000
"""Unread counts, of one thread and in total, are exact below it; at it they mean "so many or more"."""

TYPING_EXPIRES_MS: Final = 6_000
TYPING_REFRESH_S: Final = 3.0

__all__ = [
    "ATTACHMENTS_MAX",
    "BODY_CHARS_MAX",
    "CLOSE_REASONS",
    "COMMANDS",
    "FRAME_BYTES_MAX",
    "HTTP_STATUS",
    "MEANING",
    "METADATA_BYTES_MAX",
    "PATH",
    "RETRYABLE",
    "SUBPROTOCOL",
    "SUBSCRIPTIONS_MAX",
    "TYPING_EXPIRES_MS",
    "TYPING_REFRESH_S",
    "UNREAD_MAX",
    "Ack",
    "AnyCommand",
    "AnyFrame",
    "AttachmentRef",
    "Auth",
    "CaughtUp",
    "CloseCode",
    "Detail",
    "Error",
    "ErrorCode",
    "Features",
    "FrameError",
    "Hello",
    "LastMessage",
    "Limits",
    "MarkRead",
    "Message",
    "MessageDeleted",
    "MessageRead",
    "MessageUpdated",
    "NewMessage",
    "Participant",
    "Ping",
    "Pong",
    "Quota",
    "RateLimit",
    "ResetReason",
    "SendMessage",
    "ServerDraining",
    "StartTyping",
    "StopTyping",
    "SubscribeThread",
    "SyncRequired",
    "Thread",
    "ThreadActivity",
    "ThreadArchived",
    "ThreadCreated",
    "ThreadMember",
    "ThreadReset",
    "ThreadUpdated",
    "TypingActive",
    "UnsubscribeThread",
    "check_content",
    "find_unstorable",
    "may_reconnect",
    "parse_command",
    "parse_object",
]
