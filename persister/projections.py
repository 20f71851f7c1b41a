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
    MessageNew,
    ThreadArchived,
    ThreadChanged,
    decode_event,
    digest_of,
)
from shared.subjects import thread_of

MESSAGE_SENT: Final = "message.sent"
"""Kind of the outbox row that a new message leaves."""

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
    """The rows of a batch, in the order of the log."""

    def __init__(self) -> None:
        self.messages: list[MessageRow] = []
        self.outbox: list[OutboxRecord] = []
        self.events: list[EventRow] = []

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
            case ThreadChanged() | ThreadArchived():
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
        self.outbox.append(
            OutboxRecord(MESSAGE_SENT, event.thread_id, event.message_id, _ENCODER.encode(sent))
        )

    def keep(self, seqs: Collection[int]) -> None:
        """Forget the messages whose seq is not among ``seqs``: they are stored already, at a lower one."""
        kept = [message.seq in seqs for message in self.messages]
        self.messages = [row for row, keep in zip(self.messages, kept, strict=True) if keep]
        self.outbox = [row for row, keep in zip(self.outbox, kept, strict=True) if keep]

    def tails(self) -> dict[str, Tail]:
        """Return where each thread of the batch ends."""
        tails = {
            message.thread_id: Tail(message.seq, message.seq, message.sent_at)
            for message in self.messages
        }
        for event in self.events:
            tail = tails.get(event.thread_id)
            if tail is None:
                tails[event.thread_id] = Tail(event.seq, 0, event.at)
            elif event.seq > tail.seq:
                tails[event.thread_id] = tail._replace(seq=event.seq)
        return tails

    def receipts(self) -> dict[tuple[str, str], tuple[int, datetime]]:
        """Return how far each sender has read: (thread, user) to (seq, time)."""
        return {
            (message.thread_id, message.sender_id): (message.seq, message.sent_at)
            for message in self.messages
            if message.kind == "text"
        }


def project(deliveries: Sequence[Delivery]) -> Rows:
    """Return the rows of a batch of events, ascending by seq.

    Raises:
        msgspec.DecodeError, ValueError: One of them is poison.
    """
    rows = Rows()
    for delivery in deliveries:
        rows.add(delivery)
    return rows
