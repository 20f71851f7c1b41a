"""What a client may ask on the WebSocket: one struct per command, tagged by ``type``.

Field limits are in the types, so the decoder refuses what breaks them. Ids are checked by the edge, because a
malformed id and a foreign one are the same ``not_found``. Unknown fields are ignored. Source: protocol, section 1.
"""

from typing import Annotated, Any, Final

import msgspec

BODY_CHARS_MAX: Final = 4_000
REF_CHARS_MAX: Final = 64
ATTACHMENTS_MAX: Final = 10
METADATA_BYTES_MAX: Final = 4_096
FRAME_BYTES_MAX: Final = 65_536
NESTING_MAX: Final = 8
NUMBER_MAX: Final = 2**53

Ref = Annotated[str, msgspec.Meta(max_length=REF_CHARS_MAX)]
Body = Annotated[str, msgspec.Meta(max_length=BODY_CHARS_MAX)]
Position = Annotated[int, msgspec.Meta(ge=0)]


class AttachmentRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attachment by reference: exactly one of the two ids."""

    clip_id: str | None = None
    upload_id: str | None = None


class Command(msgspec.Struct, frozen=True, tag_field="type"):
    """Base of every command. With ``ref`` it gets exactly one ``ack`` or ``error`` (``ping``: ``pong``)."""


class Auth(Command, frozen=True, tag="auth"):
    """Authenticate as the first frame, or renew the token later."""

    token: str
    ref: Ref | None = None


class SendMessage(Command, frozen=True, tag="message.send"):
    """Send a message. The triple (thread, sender, ``client_msg_id``) names it for ever."""

    thread_id: str
    client_msg_id: str
    body: Body
    attachments: Annotated[list[AttachmentRef], msgspec.Meta(max_length=ATTACHMENTS_MAX)] = (
        msgspec.field(default_factory=list)
    )
    reply_to: str | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    ref: Ref | None = None


class MarkRead(Command, frozen=True, tag="message.mark_read"):
    """Mark everything of others as read, up to a message or up to a position; exactly one of the two is given."""

    thread_id: str
    message_id: str | None = None
    seq: Position | None = None
    ref: Ref | None = None


class StartTyping(Command, frozen=True, tag="typing.start"):
    """Say that the user is typing in a thread; refresh while it lasts."""

    thread_id: str
    ref: Ref | None = None


class StopTyping(Command, frozen=True, tag="typing.stop"):
    """Say that the user stopped typing in a thread."""

    thread_id: str
    ref: Ref | None = None


class SubscribeThread(Command, frozen=True, tag="thread.subscribe"):
    """Receive a thread's events from now, or from the position ``after``. Replaces an older subscription."""

    thread_id: str
    after: str | None = None
    ref: Ref | None = None


class UnsubscribeThread(Command, frozen=True, tag="thread.unsubscribe"):
    """Stop receiving a thread's events."""

    thread_id: str
    ref: Ref | None = None


class Ping(Command, frozen=True, tag="ping"):
    """Ask for a ``pong``: for browsers, which cannot send WebSocket pings."""

    ref: Ref | None = None


AnyCommand = (
    Auth
    | SendMessage
    | MarkRead
    | StartTyping
    | StopTyping
    | SubscribeThread
    | UnsubscribeThread
    | Ping
)

COMMANDS: Final[dict[str, type[AnyCommand]]] = {
    "auth": Auth,
    "message.send": SendMessage,
    "message.mark_read": MarkRead,
    "typing.start": StartTyping,
    "typing.stop": StopTyping,
    "thread.subscribe": SubscribeThread,
    "thread.unsubscribe": UnsubscribeThread,
    "ping": Ping,
}
