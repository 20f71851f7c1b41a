"""``message.send``: from the command to the sender, and from its outcome to the ``ack``."""

from typing import Final

from edge.access import Work, with_thread
from edge.session import Session
from shared.access import AccessEntry
from shared.bus import BusError
from shared.errors import InvalidIdError
from shared.identity import (
    ThreadId,
    canonical_id,
    client_message_id,
    now_ms,
    time_ms_of,
)
from shared.protocol import Ack, Detail, ErrorCode, SendMessage
from shared.rate import GRANTED
from shared.sending import Refused, SendRequest, Sent
from shared.sending.outcomes import RETRY_AFTER_MS

_NO_UUID7: Final = "is no UUIDv7"


def send_message(session: Session, command: SendMessage) -> Work | None:
    """Send a message, after every check that may refuse it. The ack comes when the log has stored it."""
    settings = session.node.settings
    try:
        client_msg_id = client_message_id(command.client_msg_id)
    except InvalidIdError:
        _refuse_client_msg_id(session, command, _NO_UUID7)
        return None
    if time_ms_of(client_msg_id) > now_ms() + settings.clock_ahead_s * 1000:
        _refuse_client_msg_id(session, command, "is too far ahead of the server's clock")
        return None
    try:
        reply_to = None if command.reply_to is None else canonical_id(command.reply_to)
    except InvalidIdError:
        session.fail(ErrorCode.NOT_FOUND, command.ref)
        return None

    def proceed(thread_id: ThreadId, entry: AccessEntry) -> Work | None:
        refusal = entry.why_not_send(session.user_id) or _why_not_attach(session, command)
        if refusal is not None:
            session.fail(refusal, command.ref)
            return None
        request = SendRequest(
            thread_id=thread_id,
            sender_id=session.user_id,
            client_msg_id=client_msg_id,
            body=command.body,
            attachments=[],
            attachment_ids=[],
            reply_to=reply_to,
            metadata=command.metadata,
            kind="text",
        )
        return _take_unit(session, command, request)

    return with_thread(session, command.thread_id, command.ref, proceed)


def _why_not_attach(session: Session, command: SendMessage) -> ErrorCode | None:
    if not command.attachments:
        return None
    if not session.node.settings.messaging_enable_clips:
        return ErrorCode.FEATURE_DISABLED
    # There is nothing to attach yet: no clip or upload exists that the sender could see.
    return ErrorCode.NOT_FOUND


def _refuse_client_msg_id(session: Session, command: SendMessage, problem: str) -> None:
    details = [Detail("/client_msg_id", problem)]
    session.fail(ErrorCode.INVALID, command.ref, details=details)


def _take_unit(session: Session, command: SendMessage, request: SendRequest) -> Work | None:
    # The last question, so that what is refused for another reason costs nothing of the limit.
    wait_ms = session.node.rate.take(session.user_id, now_ms())
    if wait_ms is None:
        return _wait_for_unit(session, command, request)
    if wait_ms != GRANTED:
        session.fail(ErrorCode.RATE_LIMITED, command.ref, retry_after_ms=wait_ms)
        return None
    _submit(session, command, request)
    return None


async def _wait_for_unit(session: Session, command: SendMessage, request: SendRequest) -> None:
    try:
        wait_ms = await session.node.rate.acquire(session.user_id, now_ms())
    except BusError:
        session.fail(ErrorCode.UNAVAILABLE, command.ref, retry_after_ms=RETRY_AFTER_MS)
        return
    if wait_ms != GRANTED:
        session.fail(ErrorCode.RATE_LIMITED, command.ref, retry_after_ms=wait_ms)
    else:
        _submit(session, command, request)


def _submit(session: Session, command: SendMessage, request: SendRequest) -> None:
    def done(outcome: Sent | Refused) -> None:
        if isinstance(outcome, Refused):
            session.fail(outcome.code, command.ref, retry_after_ms=outcome.retry_after_ms)
        elif command.ref is None:
            session.succeed(None)
        else:
            session.succeed(
                Ack(
                    command.ref,
                    message_id=outcome.message_id,
                    thread_id=request.thread_id,
                    client_msg_id=request.client_msg_id,
                    seq=outcome.seq,
                    cursor=outcome.cursor,
                    sent_at=outcome.sent_at,
                    duplicate=outcome.duplicate,
                )
            )

    session.node.typists.sent(request.thread_id, request.sender_id)
    session.node.sender.submit(request, done)
