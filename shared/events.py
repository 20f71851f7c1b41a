"""What the log holds: the durable events of a thread as stored on ``msg.<sh>.<thread>``. Pure: no I/O.

The stored payload is the wire frame without the fields that only its position gives (``seq``, ``prev_seq``,
``cursor``) and, for a message, without those that are constant while it is new. ``frame_of`` appends both as bytes:
an edge never decodes what it fans out.
"""

from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

import msgspec

from shared.cursors import cursor_suffix
from shared.identity import ThreadId, content_digest

_NEW_MESSAGE_PREFIX: Final = b'{"type":"message.new"'
_NEW_MESSAGE_CONSTANTS: Final = (
    b',"quote":null,"edited_at":null,"deleted_at":null,"reactions":[],"pinned":false'
)
_MEMBER_PREFIX: Final = b'{"type":"thread.member"'
_VISIBLE_TO: Final = b'"visible_to":'
_MESSAGE_ID: Final = slice(len(b'{"type":"message.new","message_id":"'), 68)
_LEAVES: Final = frozenset({"left", "removed"})


class ThreadEvent(msgspec.Struct, frozen=True, tag_field="type", kw_only=True, omit_defaults=True):
    """Base of every durable event. ``visible_to``: only these users see it; None: everybody who reads the thread."""

    visible_to: list[str] | None = None


class MessageNew(ThreadEvent, frozen=True, tag="message.new"):
    """Somebody wrote a message. Its id is a function of (thread, sender, client id)."""

    message_id: str
    thread_id: str
    client_msg_id: str
    sender_id: str
    kind: Literal["text", "system"]
    body: str
    attachments: list[dict[str, Any]]
    reply_to: str | None
    metadata: dict[str, Any]
    sent_at: str


class ThreadChanged(ThreadEvent, frozen=True, tag="thread.updated"):
    """Fields of the thread changed; ``event_id`` is the outbox row's, known ones are ignored."""

    thread_id: str
    event_id: str
    at: str
    by: str
    changed: dict[str, Any]


class ThreadArchived(ThreadEvent, frozen=True, tag="thread.archived"):
    """The thread was archived for all."""

    thread_id: str
    event_id: str
    at: str
    by: str
    reason: Literal["user", "inactivity", "deactivation"]


class MessageUpdated(ThreadEvent, frozen=True, tag="message.updated"):
    """The body of a message changed."""

    thread_id: str
    event_id: str
    message_id: str
    body: str
    edited_at: str
    editor_id: str


class MessageDeleted(ThreadEvent, frozen=True, tag="message.deleted"):
    """A message was deleted for all. Final: what is stored after it changes nothing."""

    thread_id: str
    event_id: str
    message_id: str
    deleted_at: str
    by: str


class ThreadMember(ThreadEvent, frozen=True, tag="thread.member"):
    """Somebody joined, left, was removed or got another role. Reading of a removed member ends exactly here."""

    thread_id: str
    event_id: str
    at: str
    by: str
    user_id: str
    role: Literal["owner", "admin", "member"]
    change: Literal["joined", "left", "removed", "role"]


AnyThreadEvent = (
    MessageNew | MessageUpdated | MessageDeleted | ThreadChanged | ThreadArchived | ThreadMember
)

_DECODER: Final[msgspec.json.Decoder[AnyThreadEvent]] = msgspec.json.Decoder(AnyThreadEvent)
_ENCODER: Final = msgspec.json.Encoder()


def encode_event(event: AnyThreadEvent) -> bytes:
    """Return the payload to store."""
    return _ENCODER.encode(event)


def decode_event(payload: bytes) -> AnyThreadEvent:
    """Return the event in a stored payload.

    Raises:
        msgspec.DecodeError: Not one of ours (``msgspec.ValidationError`` is one of them): poison for a consumer.
    """
    return _DECODER.decode(payload)


def digest_of(event: MessageNew) -> bytes:
    """Return ``identity.content_digest`` of a message as it was first sent."""
    attachments = [
        str(item.get("clip_id") or item.get("upload_id") or "") for item in event.attachments
    ]
    return content_digest(event.body, attachments, event.reply_to, event.metadata)


class Audience(NamedTuple):
    """Whom an event concerns, where that is not everybody alike.

    ``viewers``: only these see it, None: all. ``leaver``: whose reading ends with it, ``""`` for nobody's.
    ``payload``: what viewers are shown of it.
    """

    viewers: frozenset[str] | None
    leaver: str
    payload: bytes

    def sees(self, user_id: str) -> bool:
        """Return whether the event may be shown to this reader of the thread."""
        return self.viewers is None or user_id in self.viewers


class _Concerned(msgspec.Struct, frozen=True):
    type: str
    visible_to: list[str] | None = None
    user_id: str = ""
    change: str = ""


_CONCERNED: Final = msgspec.json.Decoder(_Concerned)


def audience_of(payload: bytes) -> Audience | None:
    """Return whom a stored event concerns; None for nearly all: everybody alike. Those are not decoded."""
    # Inside a text the quotes would be escaped; as a key of metadata it is decoded in vain.
    if not payload.startswith(_MEMBER_PREFIX) and _VISIBLE_TO not in payload:
        return None
    try:
        event = _CONCERNED.decode(payload)
    except msgspec.DecodeError:
        return Audience(frozenset(), "", payload)
    viewers = None if event.visible_to is None else frozenset(event.visible_to)
    is_end = event.type == "thread.member" and event.change in _LEAVES
    if viewers is not None:
        fields = msgspec.json.decode(payload)
        del fields["visible_to"]  # Who else sees it is nobody's business.
        payload = _ENCODER.encode(fields)
    return Audience(viewers, event.user_id if is_end else "", payload)


def message_id_in(payload: bytes) -> bytes | None:
    """Return the message id of a stored ``message.new``, None of anything else. Nothing is decoded."""
    return payload[_MESSAGE_ID] if payload.startswith(_NEW_MESSAGE_PREFIX) else None


def frame_of(payload: bytes, seq: int, prev_seq: int, suffix: bytes) -> bytes:
    """Return the wire frame of a stored event, without decoding it.

    Args:
        payload: As stored: a JSON object.
        seq: Its position in the stream.
        prev_seq: The event before it that the receiver may see.
        suffix: ``cursor_suffix`` of the thread, as bytes.
    """
    constants = _NEW_MESSAGE_CONSTANTS if payload.startswith(_NEW_MESSAGE_PREFIX) else b""
    position = b',"seq":%d,"prev_seq":%d,"cursor":"%x%b"}' % (seq, prev_seq, seq, suffix)
    return payload[:-1] + constants + position


def changed_message(event: MessageNew, *, edited_at: str | None, deleted_at: str | None) -> bytes:
    """Return the payload for ``frame_of`` of a message that was edited or deleted since it was stored.

    ``event`` has what may be seen now. The type comes last: such a payload says itself what is constant in a new one.
    """
    fields: dict[str, Any] = msgspec.to_builtins(event)
    fields.pop("visible_to", None)
    kind = fields.pop("type")
    return _ENCODER.encode(
        {
            **fields,
            "quote": None,
            "edited_at": edited_at,
            "deleted_at": deleted_at,
            "reactions": [],
            "pinned": False,
            "type": kind,
        }
    )


def frame_in(thread_id: ThreadId, payload: bytes, seq: int, prev_seq: int) -> bytes:
    """Return ``frame_of`` for a thread whose suffix is not at hand."""
    return frame_of(payload, seq, prev_seq, cursor_suffix(thread_id).encode())


def timestamp(moment: datetime | None = None) -> str:
    """Return a time (default: now) as the wire has it: RFC 3339, UTC, milliseconds, ``Z``."""
    moment = datetime.now(UTC) if moment is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
