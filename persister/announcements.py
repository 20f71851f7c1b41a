"""Domain events as platform services get them: CloudEvents in structured JSON, without bodies. Pure: no I/O."""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from persister.projections import MESSAGE_DELETED, MESSAGE_UPDATED, Changed, Sent
from persister.receipts import Read
from shared.bus import OutgoingMessage

SOURCE: Final = "/lilith/persister"
CLOUDEVENT_HEADERS: Final[Mapping[str, str]] = {"content-type": "application/cloudevents+json"}
MESSAGE_SENT_EVENT: Final = "messaging.message.sent"
MESSAGE_READ_EVENT: Final = "messaging.message.read"
CHANGE_EVENTS: Final[Mapping[str, str]] = {
    MESSAGE_UPDATED: "messaging.message.updated",
    MESSAGE_DELETED: "messaging.message.deleted",
}

_ENCODER: Final = msgspec.json.Encoder()


class CloudEvent(msgspec.Struct, frozen=True):
    """A domain event in structured JSON (CloudEvents 1.0). ``data`` is JSON already."""

    id: str
    type: str
    subject: str
    time: str
    data: msgspec.Raw
    specversion: str = "1.0"
    source: str = SOURCE
    datacontenttype: str = "application/json"


class Member(msgspec.Struct, frozen=True):
    """A present member of a thread, and what they have not read in it."""

    user_id: str
    visible_from: int
    unread: int


def message_sent(
    payload: bytes, sent: Sent, members: Iterable[Member], counts: Mapping[str, int]
) -> OutgoingMessage:
    """Return the event of a new message.

    Args:
        payload: Its outbox row's: the event's data without recipients, which are appended as bytes.
        sent: The same, decoded.
        members: The present members; those who may see it are the recipients, without the sender.
        counts: Number of members of the threads that are too big to name them.
    """
    if sent.thread_id in counts:
        recipients = b',"recipient_count":%d}' % (counts[sent.thread_id] - 1)
    else:
        users = [
            member.user_id
            for member in members
            if member.user_id != sent.sender_id and member.visible_from <= sent.seq
        ]
        recipients = b',"recipients":%b}' % _ENCODER.encode(users)
    event_id = f"{sent.message_id}.sent"
    return _event(
        MESSAGE_SENT_EVENT, event_id, sent.thread_id, sent.sent_at, payload[:-1] + recipients
    )


def message_changed(kind: str, event_id: str, payload: bytes, changed: Changed) -> OutgoingMessage:
    """Return the event of an edit or a deletion; ``event_id`` is the stored event's."""
    return _event(
        CHANGE_EVENTS[kind], f"{event_id}.changed", changed.thread_id, changed.at, payload
    )


def message_read(payload: bytes, read: Read) -> OutgoingMessage:
    """Return the event of a read marker that moved."""
    event_id = f"{read.thread_id}.{read.user_id}.{read.seq}.read"
    return _event(MESSAGE_READ_EVENT, event_id, read.thread_id, read.read_at, payload)


def _event(kind: str, event_id: str, subject: str, time: str, data: bytes) -> OutgoingMessage:
    event = CloudEvent(id=event_id, type=kind, subject=subject, time=time, data=msgspec.Raw(data))
    return OutgoingMessage(kind, _ENCODER.encode(event), event_id, CLOUDEVENT_HEADERS)
