"""What the log holds: the durable events of a thread as stored on ``msg.<sh>.<thread>``. Pure: no I/O.

The stored payload is the wire frame without the fields that only its position gives (``seq``, ``prev_seq``,
``cursor``) and, for a message, without those that are constant while it is new. ``frame_of`` appends both as bytes:
an edge never decodes what it fans out.
"""

from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from shared.cursors import cursor_suffix
from shared.identity import ThreadId, content_digest

_NEW_MESSAGE_PREFIX: Final = b'{"type":"message.new"'
_NEW_MESSAGE_CONSTANTS: Final = (
    b',"quote":null,"edited_at":null,"deleted_at":null,"reactions":[],"pinned":false'
)


class ThreadEvent(msgspec.Struct, frozen=True, tag_field="type"):
    """Base of every durable event."""


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


AnyThreadEvent = MessageNew | ThreadChanged | ThreadArchived

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


def frame_in(thread_id: ThreadId, payload: bytes, seq: int, prev_seq: int) -> bytes:
    """Return ``frame_of`` for a thread whose suffix is not at hand."""
    return frame_of(payload, seq, prev_seq, cursor_suffix(thread_id).encode())


def timestamp(moment: datetime | None = None) -> str:
    """Return a time (default: now) as the wire has it: RFC 3339, UTC, milliseconds, ``Z``."""
    moment = datetime.now(UTC) if moment is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
