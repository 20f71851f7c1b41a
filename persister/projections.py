"""Which rows a durable event becomes. Pure: no I/O, no clock.

The table to which a new durable event is added: ``Rows.add`` has one case per event, and the type checker names the
one that was forgotten.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, assert_never

import msgspec

from shared.bus import Delivery
from shared.events import (
    AnyThreadEvent,
    MessageDeleted,
    MessageNew,
    MessageUpdated,
    ThreadArchived,
    ThreadChanged,
    ThreadMember,
    decode_event,
    digest_of,
)
from shared.subjects import thread_of

MESSAGE_SENT: Final = "message.sent"
MESSAGE_UPDATED: Final = "message.updated"
MESSAGE_DELETED: Final = "message.deleted"
"""Kinds of the outbox rows that a new, an edited and a deleted message leave."""

_ENCODER: Final = msgspec.json.Encoder()


class Sent(msgspec.Struct, frozen=True):
    """What an outbox row says of a new message: the data of ``messaging.message.sent`` without its recipients."""

    message_id: str
    thread_id: str
    sender_id: str
    seq: int
    sent_at: str
    kind: str
    attachments: list[dict[str, Any]]


class Changed(msgspec.Struct, frozen=True):
    """What an outbox row says of an edit or a deletion: the data of ``messaging.message.updated`` and ``.deleted``."""

    message_id: str
    thread_id: str
    seq: int
    at: str


class MessageRow(NamedTuple):
    """A row of ``messages``, in the order of ``queries.MESSAGE_COLUMNS``."""

    thread_id: str
    seq: int
    message_id: str
    client_msg_id: str
    sender_id: str
    kind: str
    body: str
    attachments: str
    reply_to: str | None
    metadata: str
    sent_at: datetime
    changed_seq: int
    content_digest: bytes


class EventRow(NamedTuple):
    """A row of ``thread_events``."""

    thread_id: str
    seq: int
    event_id: str
    type: str
    payload: str
    at: datetime


class EditRow(NamedTuple):
    """What ``queries.EDIT_MESSAGES`` needs of an edit."""

    thread_id: str
    seq: int
    event_id: str
    message_id: str
    body: str
    at: datetime
    editor_id: str


class DeletionRow(NamedTuple):
    """What ``queries.DELETE_MESSAGES`` needs of a deletion."""

    thread_id: str
    seq: int
    message_id: str
    at: datetime


class OutboxRecord(NamedTuple):
    """A row of ``persister_outbox``, in the order of ``queries.OUTBOX_COLUMNS``."""

    kind: str
    subject: str
    message_id: str
    payload: bytes


class Tail(NamedTuple):
    """Where a thread ends after the batch; ``message_seq`` 0 when the batch has no message of it."""

    seq: int
    message_seq: int
    at: datetime


class Rows:
    """The rows of a batch, in the order of the log.

    Deletions are applied before edits, whatever their order: deleted is final, so the outcome is the same.
    """

    def __init__(self) -> None:
        self.messages: list[MessageRow] = []
        self.edits: list[EditRow] = []
        self.deletions: list[DeletionRow] = []
        self.events: list[EventRow] = []
        # By the seq of the event that leaves it.
        self._outbox: dict[int, OutboxRecord] = {}

    def add(self, delivery: Delivery) -> None:
        """Add the rows of one event.

        Raises:
            msgspec.DecodeError: Not an event of ours.
            ValueError: It contradicts its subject or holds a malformed time.
        """
        event = decode_event(delivery.payload)
        if event.thread_id != thread_of(delivery.subject):
            raise ValueError(f"an event of thread {event.thread_id} on {delivery.subject}")
        self._add(event, delivery)

    def _add(self, event: AnyThreadEvent, delivery: Delivery) -> None:
        match event:
            case MessageNew():
                self._add_message(event, delivery.seq)
            case MessageUpdated():
                self._add_edit(event, delivery.seq)
            case MessageDeleted():
                self._add_deletion(event, delivery.seq)
            case ThreadChanged() | ThreadArchived() | ThreadMember():
                self.events.append(
                    EventRow(
                        event.thread_id,
                        delivery.seq,
                        event.event_id,
                        str(event.__struct_config__.tag),
                        delivery.payload.decode(),
                        datetime.fromisoformat(event.at),
                    )
                )
            case _:
                assert_never(event)

    def _add_message(self, event: MessageNew, seq: int) -> None:
        attachments, metadata = event.attachments, event.metadata
        self.messages.append(
            MessageRow(
                event.thread_id,
                seq,
                event.message_id,
                event.client_msg_id,
                event.sender_id,
                event.kind,
                event.body,
                _ENCODER.encode(attachments).decode() if attachments else "[]",
                event.reply_to,
                _ENCODER.encode(metadata).decode() if metadata else "{}",
                datetime.fromisoformat(event.sent_at),
                seq,
                digest_of(event),
            )
        )
        sent = Sent(
            event.message_id,
            event.thread_id,
            event.sender_id,
            seq,
            event.sent_at,
            event.kind,
            attachments,
        )
        self._outbox[seq] = OutboxRecord(
            MESSAGE_SENT, event.thread_id, event.message_id, _ENCODER.encode(sent)
        )

    def _add_edit(self, event: MessageUpdated, seq: int) -> None:
        self.edits.append(
            EditRow(
                event.thread_id,
                seq,
                event.event_id,
                event.message_id,
                event.body,
                datetime.fromisoformat(event.edited_at),
                event.editor_id,
            )
        )
        self._announce(MESSAGE_UPDATED, event, seq, event.edited_at)

    def _add_deletion(self, event: MessageDeleted, seq: int) -> None:
        at = datetime.fromisoformat(event.deleted_at)
        self.deletions.append(DeletionRow(event.thread_id, seq, event.message_id, at))
        self._announce(MESSAGE_DELETED, event, seq, event.deleted_at)

    def _announce(
        self, kind: str, event: MessageUpdated | MessageDeleted, seq: int, at: str
    ) -> None:
        changed = Changed(event.message_id, event.thread_id, seq, at)
        self._outbox[seq] = OutboxRecord(
            kind, event.thread_id, event.event_id, _ENCODER.encode(changed)
        )

    def keep_messages(self, seqs: Collection[int]) -> None:
        """Forget the messages whose seq is not among ``seqs``: they are stored already, at a lower one."""
        self._silence(self.messages, seqs)
        self.messages = [message for message in self.messages if message.seq in seqs]

    def keep_changes(self, seqs: Collection[int]) -> None:
        """Announce no edit and no deletion whose seq is not among ``seqs``: they changed nothing.

        They moved the thread's tail all the same: whoever saw them live has a cursor that points at them.
        """
        self._silence(self.edits, seqs)
        self._silence(self.deletions, seqs)

    def outbox(self) -> list[OutboxRecord]:
        """Return what others are to be told, in the order of the log."""
        return [self._outbox[seq] for seq in sorted(self._outbox)]

    def tails(self) -> dict[str, Tail]:
        """Return where each thread of the batch ends."""
        tails = {
            message.thread_id: Tail(message.seq, message.seq, message.sent_at)
            for message in self.messages
        }
        others: list[EventRow | EditRow | DeletionRow] = [
            *self.events,
            *self.edits,
            *self.deletions,
        ]
        for event in others:
            tail = tails.get(event.thread_id)
            if tail is None:
                tails[event.thread_id] = Tail(event.seq, 0, event.at)
            elif event.seq > tail.seq:
                tails[event.thread_id] = tail._replace(seq=event.seq)
        return tails

    def receipts(self) -> dict[tuple[str, str], tuple[int, datetime]]:
        """Return how far each sender has read: (thread, user) to (seq, time).

        Ascending by key, as ``persister.receipts`` takes them: two transactions never lock the same rows crosswise.
        """
        read = {
            (message.thread_id, message.sender_id): (message.seq, message.sent_at)
            for message in self.messages
            if message.kind == "text"
        }
        return dict(sorted(read.items()))

    def _silence(
        self, rows: Sequence[MessageRow | EditRow | DeletionRow], seqs: Collection[int]
    ) -> None:
        for row in rows:
            if row.seq not in seqs:
                self._outbox.pop(row.seq, None)


def project(deliveries: Sequence[Delivery]) -> Rows:
    """Return the rows of a batch of events, ascending by seq.

    Raises:
        msgspec.DecodeError, ValueError: One of them is poison.
    """
    rows = Rows()
    for delivery in deliveries:
        rows.add(delivery)
    return rows
