"""The objects of the protocol as this client hands them out. Fields that a newer server adds are ignored."""

from typing import Any, Final, Literal

import msgspec

MESSAGE_NEW: Final = "message.new"
MESSAGE_UPDATED: Final = "message.updated"
MESSAGE_DELETED: Final = "message.deleted"
THREAD_MEMBER: Final = "thread.member"
CAUGHT_UP: Final = "thread.caught_up"
SYNC_REQUIRED: Final = "sync.required"
MESSAGE_READ: Final = "message.read"
CONNECTED: Final = "client.connected"
DISCONNECTED: Final = "client.disconnected"
SUBSCRIPTION_ENDED: Final = "client.subscription_ended"
GAP: Final = "client.gap"


class Message(msgspec.Struct, frozen=True):
    """One message as it is now. Deleted ones keep their place, with an empty body."""

    message_id: str
    thread_id: str
    client_msg_id: str
    sender_id: str
    body: str
    sent_at: str
    seq: int
    cursor: str
    kind: str = "text"
    attachments: list[dict[str, Any]] = msgspec.field(default_factory=list)
    reply_to: str | None = None
    quote: dict[str, Any] | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    edited_at: str | None = None
    deleted_at: str | None = None
    reactions: list[dict[str, Any]] = msgspec.field(default_factory=list)
    pinned: bool = False


class MessageUpdated(msgspec.Struct, frozen=True):
    """The body of a message changed; merge it by ``message_id``."""

    thread_id: str
    message_id: str
    body: str
    edited_at: str
    seq: int
    cursor: str


class MessageDeleted(msgspec.Struct, frozen=True):
    """A message was deleted for everybody; it keeps its place, without its content."""

    thread_id: str
    message_id: str
    deleted_at: str
    seq: int
    cursor: str


class ThreadMember(msgspec.Struct, frozen=True):
    """Somebody joined, left, was removed or got another role. One's own removal ends the subscription."""

    thread_id: str
    at: str
    user_id: str
    role: str
    change: str
    by: str
    seq: int
    cursor: str


Change = Message | MessageUpdated | MessageDeleted | ThreadMember
_CHANGES: Final[dict[str, type[Change]]] = {
    MESSAGE_NEW: Message,
    MESSAGE_UPDATED: MessageUpdated,
    MESSAGE_DELETED: MessageDeleted,
    THREAD_MEMBER: ThreadMember,
}


class Hello(msgspec.Struct, frozen=True):
    """What the server says first: who we are, where, and what is allowed."""

    session_id: str
    user_id: str
    node: str
    server_time: str
    token_expires_at: str
    features: dict[str, bool] = msgspec.field(default_factory=dict)
    limits: dict[str, Any] = msgspec.field(default_factory=dict)


class Sent(msgspec.Struct, frozen=True):
    """The outcome of a message that is stored and flushed. ``duplicate``: an earlier attempt had stored it."""

    message_id: str
    thread_id: str
    client_msg_id: str
    seq: int
    cursor: str
    sent_at: str
    duplicate: bool = False


class Subscribed(msgspec.Struct, frozen=True):
    """The outcome of a subscription. ``recovered`` False: the client reads what changed over REST first."""

    cursor: str
    recovered: bool
    participants: list[dict[str, Any]] = msgspec.field(default_factory=list)
    participant_count: int = 0


class Position(msgspec.Struct, frozen=True):
    """A place in one thread: the opaque cursor, and its ``seq`` when known (a second guard against repeats)."""

    cursor: str
    seq: int | None = None


class MessageRead(msgspec.Struct, frozen=True):
    """A member has read everything of others up to ``seq``."""

    thread_id: str
    user_id: str
    seq: int
    at: str


class SyncedThread(msgspec.Struct, frozen=True):
    """A thread that moved, was joined, was read elsewhere, or (``removed``) is the user's no longer."""

    thread_id: str
    cursor: str
    unread: int
    removed: bool


class Synced(msgspec.Struct, frozen=True):
    """What changed since the last time, up to ``cursor``. ``complete``: these are all threads; forget any other."""

    threads: list[SyncedThread]
    cursor: str
    complete: bool


class Event(msgspec.Struct, frozen=True):
    """Something that happened: a frame of the server as it came, or ``client.*`` from this client.

    ``source`` says how it came: ``live`` (the socket), ``history`` (REST, after a gap: present
    state, so an edited message comes once, as it is now) or ``client``.
    """

    type: str
    data: dict[str, Any]
    source: Literal["live", "history", "client"] = "live"

    @property
    def thread_id(self) -> str | None:
        """The thread that the event belongs to, if it belongs to one."""
        found = self.data.get("thread_id")
        return found if isinstance(found, str) else None

    @property
    def change(self) -> Change | None:
        """What happened to a message or a member, as an object; None for every other type."""
        found = _CHANGES.get(self.type)
        return msgspec.convert(self.data, found) if found is not None else None

    @property
    def message(self) -> Message | None:
        """The message of a ``message.new``, None for every other type."""
        return msgspec.convert(self.data, Message) if self.type == MESSAGE_NEW else None

    @property
    def read(self) -> MessageRead | None:
        """Who has read how far, of a ``message.read``; None for every other type."""
        return msgspec.convert(self.data, MessageRead) if self.type == MESSAGE_READ else None
