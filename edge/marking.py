"""``message.mark_read``: from what the client names to a position, and from there to the member's read marker.

A position reads everything of others at or below it. One between two messages is taken as the largest message below,
one beyond the end as the newest message. This node knows the messages that came through it; for others it looks into
the log at that very place, and asks the api for what the log does not tell (``svc.message.position``). When the api is
away, a ``seq`` is taken as it is, which marks the same messages as read, and a ``message_id`` is ``unavailable``.
"""

from typing import Final, Literal

import msgspec

from edge.access import Work, with_thread
from edge.node import Node
from edge.receipts import MEMBERS_MAX
from edge.session import Session
from shared.access import AccessEntry
from shared.bus import BusError, NoRespondersError, RequestTimeoutError, ServiceFailedError
from shared.errors import InvalidIdError, LilithError
from shared.events import message_id_in
from shared.identity import MessageId, ThreadId, canonical_id
from shared.protocol import Ack, ErrorCode, MarkRead
from shared.subjects import SVC_MESSAGE_POSITION, msg_subject, stream_of

POSITION_S: Final = 3.0
"""The api waits up to 1.5 s for the persister before it answers ``unknown``."""


class _Position(msgspec.Struct, frozen=True):
    status: Literal["stored", "absent", "unknown"]
    seq: int = 0


_POSITION: Final = msgspec.json.Decoder(_Position)
_UNKNOWN: Final = _Position("unknown")


def mark_read(session: Session, command: MarkRead) -> Work | None:
    """Mark everything up to a message or a position as read. The ack comes when the marker is stored."""
    if not session.node.settings.messaging_enable_read_receipts:
        session.fail(ErrorCode.FEATURE_DISABLED, command.ref)
        return None

    def proceed(thread_id: ThreadId, entry: AccessEntry) -> None:
        # Beside the lane: the commands after it need not wait until the marker's second is over.
        session.node.spawn(_mark(session, command, thread_id, entry))

    return with_thread(session, command.thread_id, command.ref, proceed)


class _RefusedError(LilithError):
    """The message cannot be marked; nothing was changed."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code)
        self.code = code


async def _mark(
    session: Session, command: MarkRead, thread_id: ThreadId, entry: AccessEntry
) -> None:
    node, user_id = session.node, session.user_id
    try:
        if command.message_id is None:
            assert command.seq is not None, "parsing lets exactly one of them through"  # noqa: S101
            seq = await _message_at(node, thread_id, command.seq)
        else:
            visible_from = entry.members[user_id].visible_from
            seq = await _seq_of(node, thread_id, command.message_id, visible_from)
        is_told = len(entry.members) <= MEMBERS_MAX
        read_seq = await node.marks.mark(thread_id, user_id, seq, is_told=is_told)
    except _RefusedError as error:
        session.fail(error.code, command.ref)
    except BusError:
        session.fail(ErrorCode.UNAVAILABLE, command.ref)
    except Exception:
        session.fail(ErrorCode.INTERNAL, command.ref)
        raise
    else:
        session.succeed(None if command.ref is None else Ack(command.ref, read_seq=read_seq))


async def _seq_of(node: Node, thread_id: ThreadId, text: str, visible_from: int) -> int:
    """Return where a message of the thread is.

    Raises:
        _RefusedError: It is unknown or not to be seen, or nobody can tell at the moment.
        BusError: NATS is away.
    """
    try:
        message_id = MessageId(canonical_id(text))
    except InvalidIdError as error:
        raise _RefusedError(ErrorCode.NOT_FOUND) from error
    recent = node.threads.recent(thread_id)
    seq = None if recent is None else recent.seq_of(message_id)
    if seq is None:
        position = await _ask(node, {"thread_id": thread_id, "message_id": message_id})
        if position.status == "unknown":
            raise _RefusedError(ErrorCode.UNAVAILABLE)
        seq = position.seq
    # An absent one is at 0; and a message from before one's own time is none that one may know of.
    if seq == 0 or seq < visible_from:
        raise _RefusedError(ErrorCode.NOT_FOUND)
    return seq


async def _message_at(node: Node, thread_id: ThreadId, seq: int) -> int:
    """Return the largest message at or below ``seq``, as far as anybody can tell now.

    Raises:
        BusError: The end of the thread cannot be read at the moment.
    """
    recent = node.threads.recent(thread_id)
    found = None if recent is None else recent.message_at(seq)
    if found is not None:
        return found
    stream, subject = stream_of(thread_id, node.settings.messaging_streams), msg_subject(thread_id)
    tail = await node.fabric.get_last(stream, subject)
    if tail is None:
        # Nothing of the thread is in the log any more; what the position means is up to history.
        position = await _ask(node, {"thread_id": thread_id, "seq": seq})
        return position.seq if position.status == "stored" else 0
    event = tail if seq >= tail.seq else await node.fabric.get_seq(stream, seq)
    if event is not None and event.subject == subject and message_id_in(event.payload):
        return event.seq
    clamped = min(seq, tail.seq)
    position = await _ask(node, {"thread_id": thread_id, "seq": clamped})
    return position.seq if position.status == "stored" else clamped


async def _ask(node: Node, question: dict[str, str | int]) -> _Position:
    try:
        answer = await node.fabric.request(
            SVC_MESSAGE_POSITION, msgspec.json.encode(question), timeout_s=POSITION_S
        )
        return _POSITION.decode(answer)
    except (NoRespondersError, RequestTimeoutError, ServiceFailedError, msgspec.DecodeError):
        return _UNKNOWN
