"""What the server says on the WebSocket: one struct per frame, tagged by ``type``.

Objects (Thread, Participant, Message, …) are those of protocol, section 3; REST answers with the same shapes.
``UNSET`` fields are left out of the frame.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from shared.protocol.codes import ErrorCode


class Participant(msgspec.Struct, frozen=True):
    """A member of a thread, as other members see them."""

    user_id: str
    name: str | None
    avatar_url: str | None
    role: Literal["owner", "admin", "member"]
    joined_at: str
    read_seq: int
    delivered_seq: int
    presence: Literal["online", "offline", "unknown"]


class Message(msgspec.Struct, frozen=True):
    """A message as it is now. Deleted: empty body, attachments, reactions and metadata."""

    message_id: str
    thread_id: str
    client_msg_id: str
    sender_id: str
    kind: Literal["text", "system"]
    body: str
    attachments: list[dict[str, Any]]
    reply_to: str | None
    quote: dict[str, Any] | None
    metadata: dict[str, Any]
    sent_at: str
    edited_at: str | None
    deleted_at: str | None
    reactions: list[dict[str, Any]]
    pinned: bool
    seq: int
    cursor: str


class Thread(msgspec.Struct, frozen=True):
    """A conversation as the asking user sees it."""

    thread_id: str
    kind: Literal["direct", "group", "broadcast"]
    title: str | None
    metadata: dict[str, Any]
    owner_id: str
    created_at: str
    archived_at: str | None
    participants: list[Participant]
    participant_count: int
    last_message: Message | None
    unread: int
    read_seq: int
    last_seq: int
    cursor: str
    tags: list[dict[str, Any]]
    pinned: bool
    muted_until: str | None
    draft: str | None
    me_archived: bool


class Detail(msgspec.Struct, frozen=True):
    """One problem of a refused input: where (JSON Pointer) and what."""

    path: str
    problem: str


class Frame(msgspec.Struct, frozen=True, tag_field="type"):
    """Base of every server frame."""


class Features(msgspec.Struct, frozen=True):
    """What this installation has switched on."""

    clips: bool
    analytics: bool
    typing: bool
    receipts: bool


class Quota(msgspec.Struct, frozen=True):
    """Whether this user's messages are counted, and how many are left (null: unlimited)."""

    gated: bool
    remaining: int | None


class RateLimit(msgspec.Struct, frozen=True):
    """So many counted commands per window, over all nodes and both doors."""

    limit: int
    window_ms: int


class Limits(msgspec.Struct, frozen=True):
    """The limits that a client should know."""

    frame_bytes: int
    body_chars: int
    attachments: int
    subscriptions: int
    rate: RateLimit | None


class Hello(Frame, frozen=True, tag="hello"):
    """The first frame of an authenticated session."""

    protocol: str
    session_id: str
    user_id: str
    node: str
    heartbeat_s: float
    server_time: str
    token_expires_at: str
    features: Features
    quota: Quota
    limits: Limits


class Ack(Frame, frozen=True, tag="ack"):
    """The command with this ``ref`` took effect. The other fields depend on the command."""

    ref: str
    token_expires_at: str | UnsetType = UNSET
    message_id: str | UnsetType = UNSET
    thread_id: str | UnsetType = UNSET
    client_msg_id: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    read_seq: int | UnsetType = UNSET
    cursor: str | UnsetType = UNSET
    sent_at: str | UnsetType = UNSET
    duplicate: bool | UnsetType = UNSET
    recovered: bool | UnsetType = UNSET
    participants: list[Participant] | UnsetType = UNSET
    participant_count: int | UnsetType = UNSET


class Error(Frame, frozen=True, tag="error"):
    """A command was refused and changed nothing."""

    code: ErrorCode
    message: str
    retryable: bool
    ref: str | UnsetType = UNSET
    retry_after_ms: int | UnsetType = UNSET
    details: list[Detail] | UnsetType = UNSET


class NewMessage(Message, frozen=True, tag_field="type", tag="message.new"):
    """A message of a subscribed thread; ``prev_seq`` is the event before it that this session may see."""

    prev_seq: int


class MessageUpdated(Frame, frozen=True, tag="message.updated"):
    """The body of a message of a subscribed thread changed."""

    thread_id: str
    message_id: str
    body: str
    edited_at: str
    seq: int
    prev_seq: int
    cursor: str


class MessageDeleted(Frame, frozen=True, tag="message.deleted"):
    """A message of a subscribed thread was deleted."""

    thread_id: str
    message_id: str
    deleted_at: str
    seq: int
    prev_seq: int
    cursor: str


class ThreadMember(Frame, frozen=True, tag="thread.member"):
    """The members of a subscribed thread changed. For a removed member it is the last event."""

    thread_id: str
    at: str
    user_id: str
    role: Literal["owner", "admin", "member"]
    change: Literal["joined", "left", "removed", "role"]
    by: str
    seq: int
    prev_seq: int
    cursor: str


ResetReason = Literal["gap", "generation", "slow"]
"""``gap``: events are missing in the log; ``generation``: the log was begun anew; ``slow``: read too slowly."""


class ThreadReset(Frame, frozen=True, tag="thread.reset"):
    """The subscription of this thread is over: reload it over REST, then subscribe again."""

    thread_id: str
    reason: ResetReason


class SyncRequired(Frame, frozen=True, tag="sync.required"):
    """Activity may have been missed: ask ``GET /api/sync`` with the last sync cursor."""

    reason: str


class MessageRead(Frame, frozen=True, tag="message.read"):
    """A member has read everything of others up to ``seq``."""

    thread_id: str
    user_id: str
    seq: int
    at: str


class ThreadUpdated(Frame, frozen=True, tag="thread.updated"):
    """Fields of a subscribed thread changed."""

    thread_id: str
    at: str
    changed: dict[str, Any]
    seq: int
    prev_seq: int
    cursor: str


class ThreadArchived(Frame, frozen=True, tag="thread.archived"):
    """A subscribed thread was archived for all."""

    thread_id: str
    at: str
    reason: Literal["user", "inactivity", "deactivation"]
    seq: int
    prev_seq: int
    cursor: str


class ThreadCreated(Frame, frozen=True, tag="thread.created"):
    """A thread with this user was made; goes to every session of every member."""

    thread: Thread


class LastMessage(msgspec.Struct, frozen=True):
    """The preview of a thread's last message."""

    message_id: str
    sender_id: str
    preview: str
    sent_at: str


class ThreadActivity(Frame, frozen=True, tag="thread.activity"):
    """A thread of this user moved; goes to every session, subscribed or not, at most once a second."""

    thread_id: str
    cursor: str
    unread: int
    unread_total: int
    last_message: LastMessage | None
    me: dict[str, Any]


class TypingActive(Frame, frozen=True, tag="typing.active"):
    """Somebody types, or stopped. Receivers clear it themselves after ``expires_in_ms``."""

    thread_id: str
    user_id: str
    active: bool
    expires_in_ms: int


class ServerDraining(Frame, frozen=True, tag="server.draining"):
    """This node stops soon; it takes sends until it closes with 1012."""

    reconnect_after_ms: int


class CaughtUp(Frame, frozen=True, tag="thread.caught_up"):
    """The replay of a subscription is complete up to this cursor; what follows is live."""

    thread_id: str
    cursor: str


class Pong(Frame, frozen=True, tag="pong"):
    """The answer to ``ping``."""

    ref: str | UnsetType = UNSET


AnyFrame = (
    Hello
    | Ack
    | Error
    | NewMessage
    | MessageUpdated
    | MessageDeleted
    | MessageRead
    | ThreadMember
    | ThreadReset
    | SyncRequired
    | ThreadUpdated
    | ThreadArchived
    | ThreadCreated
    | ThreadActivity
    | TypingActive
    | ServerDraining
    | CaughtUp
    | Pong
)
