"""Was this message stored before? Asked of the stream after a ``duplicate``, and of the api for a late retry."""

from typing import Final, Literal, NamedTuple

import msgspec

from shared.bus import Bus, NoRespondersError, PubAck, RequestTimeoutError, ServiceFailedError
from shared.cursors import encode_cursor
from shared.events import MessageNew, decode_event, digest_of
from shared.identity import MessageId, content_digest
from shared.protocol import ErrorCode
from shared.sending.outcomes import UNAVAILABLE, Outcome, Refused, SendRequest, Sent
from shared.subjects import SVC_MESSAGE_FIND

FIND_TIMEOUT_S: Final = 3.0
"""The api waits up to 2 s for the persister before it answers ``unknown``."""


class Absent(NamedTuple):
    """PostgreSQL does not hold the message, and nothing that it has not read yet could."""


class Unknown(NamedTuple):
    """Nobody can tell at the moment."""


class _Found(msgspec.Struct, frozen=True):
    status: Literal["stored", "absent", "unknown"]
    message_id: str = ""
    seq: int = 0
    sent_at: str = ""
    content_digest: str = ""


class Candidate(NamedTuple):
    """A message on its way: what was asked for, and the bytes that are published."""

    request: SendRequest
    message_id: MessageId
    payload: bytes


def digest_of_request(request: SendRequest) -> bytes:
    """Return what decides whether a second copy has the same content."""
    return content_digest(request.body, request.attachment_ids, request.reply_to, request.metadata)


async def read_duplicate(bus: Bus, candidate: Candidate, ack: PubAck, *, ours: bool) -> Outcome:
    """Return what became of a message whose id the stream knew already.

    Args:
        bus: A connection that may read the stream.
        candidate: What was published.
        ack: The ``duplicate`` that came back.
        ours: Whether an earlier publish of this very call may have been stored: then it is no duplicate for the caller.

    Raises:
        BusError: NATS did not answer.
    """
    stored = await bus.get_seq(ack.stream, ack.seq)
    if stored is None:
        return UNAVAILABLE
    try:
        event = decode_event(stored.payload)
    except msgspec.DecodeError:
        return Refused(ErrorCode.GONE)
    if not isinstance(event, MessageNew) or event.message_id != candidate.message_id:
        # Something else took the id: a void. The message will never be stored under it.
        return Refused(ErrorCode.GONE)
    if digest_of(event) != digest_of_request(candidate.request):
        return Refused(ErrorCode.CONFLICT)
    # The very bytes, after an attempt without an answer: that attempt was stored, and the caller has sent it once.
    duplicate = not (ours and stored.payload == candidate.payload)
    return _sent(candidate, ack.seq, event.sent_at, duplicate=duplicate)


async def find_stored(bus: Bus, candidate: Candidate) -> Outcome | Absent | Unknown:
    """Return what PostgreSQL knows of a message that may have left the stream's memory of ids.

    Raises:
        BusDisconnectedError: NATS is away.
    """
    request = candidate.request
    digest = digest_of_request(request).hex()
    question = {
        "thread_id": request.thread_id,
        "sender_id": request.sender_id,
        "client_msg_id": request.client_msg_id,
        "content_digest": digest,
    }
    try:
        answer = await bus.request(
            SVC_MESSAGE_FIND, msgspec.json.encode(question), timeout_s=FIND_TIMEOUT_S
        )
        found = msgspec.json.decode(answer, type=_Found)
    except (NoRespondersError, RequestTimeoutError, ServiceFailedError, msgspec.DecodeError):
        return Unknown()
    if found.status == "absent":
        return Absent()
    if found.status == "unknown" or found.message_id != candidate.message_id:
        return Unknown()
    if found.content_digest != digest:
        return Refused(ErrorCode.CONFLICT)
    return _sent(candidate, found.seq, found.sent_at, duplicate=True)


def accepted(candidate: Candidate, ack: PubAck, sent_at: str) -> Sent:
    """Return the outcome of a message that was stored by this publish."""
    return _sent(candidate, ack.seq, sent_at, duplicate=False)


def _sent(candidate: Candidate, seq: int, sent_at: str, *, duplicate: bool) -> Sent:
    cursor = encode_cursor(candidate.request.thread_id, seq)
    return Sent(candidate.message_id, seq, cursor, sent_at, duplicate)
