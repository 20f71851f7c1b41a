"""The objects of the protocol as this client hands them out. Fields that a newer server adds are ignored."""

from typing import Any, Final, Literal

import msgspec

MESSAGE_NEW: Final = "message.new"
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
    """The outcome of a subscription. ``recovered`` False: the client is filling the gap over REST."""

    cursor: str
    recovered: bool
    participants: list[dict[str, Any]] = msgspec.field(default_factory=list)
    participant_count: int = 0


class Position(msgspec.Struct, frozen=True):
    """A place in one thread: the opaque cursor, and its ``seq`` when known (REST fills a gap exactly then)."""

    cursor: str
    seq: int | None = None


class Event(msgspec.Struct, frozen=True):
    """Something that happened: a frame of the server as it came, or ``client.*`` from this client.

    ``source`` says how it came: ``live`` (the socket), ``history`` (REST, after a gap) or ``client``.
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
    def message(self) -> Message | None:
        """The message of a ``message.new``, None for every other type."""
        return msgspec.convert(self.data, Message) if self.type == MESSAGE_NEW else None
