"""Messages over REST: pages of history, one message, and sending.

``send`` is the same for REST and for ``svc.message.send``: it asks what the edge asks, in the same order, and hands
over to ``shared.sending``. History is text that PostgreSQL built; nothing decodes it here.
"""

from typing import Annotated, Any, Final, NamedTuple

import msgspec
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from api.access import access_of
from api.dependencies import (
    Caller,
    Parts,
    json_answer,
    object_id_of,
    parts_of,
    prefix_of,
    read_body,
    thread_id_of,
)
from api.limits import take_unit
from api.openapi import MessageList, SentMessage, accepted, described, problems
from api.paging import Paging, SeqRange, decode_seq_range
from api.positions import Position, wait_for_position
from api.problems import ProblemError, invalid, not_found
from api.queries import messages as queries
from shared.cursors import SEQ_MAX, cursor_suffix
from shared.errors import InvalidIdError
from shared.identity import (
    ClientMessageId,
    ThreadId,
    UserId,
    canonical_id,
    client_message_id,
    now_ms,
    time_ms_of,
)
from shared.protocol import ErrorCode, Message, SendMessage, check_content
from shared.sending import Refused, SendRequest, Sent

router = APIRouter(tags=["messages"])

_SEQ_END: Final = SEQ_MAX
"""No message has this seq or a larger one: the bound of a page that has no other."""

Seq = Annotated[int | None, Query(ge=0, le=SEQ_MAX)]


class Outcome(NamedTuple):
    """What became of a message: the object Message as its sender sees it, as JSON text."""

    message: bytes
    message_id: str
    duplicate: bool


@router.get(
    "/messages",
    operation_id="messages_list",
    summary="A page of a thread's history",
    responses={
        200: described(
            MessageList,
            "One page: newest first with `before` or neither, oldest first with `after`.",
        ),
        **problems(ErrorCode.NOT_FOUND),
    },
)
async def list_messages(
    request: Request,
    identity: Caller,
    page: Paging,
    *,
    thread_id: Annotated[str, Query(description="The thread.")],
    before: Annotated[Seq, Query(description="Only messages with a smaller seq.")] = None,
    after: Annotated[Seq, Query(description="Only messages with a larger seq.")] = None,
    position: Position = None,
) -> Response:
    """Return messages of one thread, from one of its members' view."""
    parts = parts_of(request)
    wanted = _range(page.cursor, before, after)
    asked = thread_id_of(thread_id)
    await wait_for_position(parts, identity.user_id, position, asked)
    statement = queries.LIST_OLDEST_FIRST if wanted.oldest_first else queries.LIST_NEWEST_FIRST
    async with parts.connection() as connection:
        body = await connection.fetchval(
            statement,
            asked,
            identity.user_id,
            cursor_suffix(asked),
            wanted.after,
            wanted.before,
            page.limit,
        )
    if body is None:
        raise not_found()
    return json_answer(body)


@router.get(
    "/messages/{message_id}",
    operation_id="messages_get",
    summary="One message",
    responses={
        200: described(Message, "The message as it is now."),
        **problems(ErrorCode.NOT_FOUND),
    },
)
async def get_message(
    request: Request, identity: Caller, message_id: str, position: Position = None
) -> Response:
    """Return one message that the caller may see."""
    parts = parts_of(request)
    asked = object_id_of(message_id)
    await wait_for_position(parts, identity.user_id, position)
    async with parts.connection() as connection:
        thread = await connection.fetchval(queries.FIND_THREAD, asked, identity.user_id)
    body = await _one(parts, ThreadId(thread.hex), identity.user_id, asked) if thread else None
    if body is None:
        raise not_found()
    return json_answer(body)


@router.post(
    "/messages",
    operation_id="messages_send",
    summary="Send a message",
    status_code=201,
    responses={
        201: described(SentMessage, "It is stored and flushed."),
        200: described(SentMessage, "It had been sent before: the same message."),
        **problems(
            ErrorCode.BAD_FRAME,
            ErrorCode.FORBIDDEN,
            ErrorCode.NOT_FOUND,
            ErrorCode.CONFLICT,
            ErrorCode.GONE,
            ErrorCode.UNSUPPORTED,
            ErrorCode.THREAD_ARCHIVED,
        ),
    },
    openapi_extra=accepted(SendMessage),
)
async def send_message(request: Request, identity: Caller) -> Response:
    """Send a message; answered when it is stored. The client's id makes a retry safe, for ever."""
    body = await read_body(request, SendMessage)
    outcome = await send(parts_of(request), identity.user_id, body, request)
    text = outcome.message[:-1] + b',"duplicate":%s}' % (b"true" if outcome.duplicate else b"false")
    headers = {"Location": f"{prefix_of(request)}/messages/{outcome.message_id}"}
    return json_answer(text, 200 if outcome.duplicate else 201, headers)


async def send(
    parts: Parts, sender_id: UserId, command: SendMessage, request: Request | None = None
) -> Outcome:
    """Send a message for a user, asking everything that the edge would ask.

    Args:
        parts: Of this process.
        sender_id: Whose message it is.
        command: Decoded; its types and lengths are checked.
        request: Whose answer tells the sender what is left of the rate limit.

    Raises:
        ProblemError: Why not.
        FrameError: ``invalid``: an impossible content.
    """
    check_content(command.body, command.attachments, command.metadata)
    client_msg_id = _client_message_id(parts, command.client_msg_id)
    reply_to = _reply_to(command.reply_to)
    thread_id = thread_id_of(command.thread_id)
    await _check_access(parts, thread_id, sender_id)
    if command.attachments:
        if not parts.settings.messaging_enable_clips:
            raise ProblemError(ErrorCode.FEATURE_DISABLED)
        # Uploads and clips do not exist yet, so no id names one.
        raise not_found()
    await take_unit(parts, sender_id, request)
    outcome = await parts.sender.send(
        SendRequest(
            thread_id=thread_id,
            sender_id=sender_id,
            client_msg_id=client_msg_id,
            body=command.body,
            attachments=[],
            attachment_ids=[],
            reply_to=reply_to,
            metadata=command.metadata,
            kind="text",
        )
    )
    if isinstance(outcome, Refused):
        raise _refusal(outcome)
    stored = None
    if outcome.duplicate:
        # Edited or deleted since, it is answered as it is now.
        stored = await _one(parts, thread_id, sender_id, outcome.message_id)
    if stored is None:
        quote = await _quote_of(parts, thread_id, sender_id, reply_to)
        message = _message(thread_id, sender_id, client_msg_id, command, outcome)
        stored = msgspec.json.encode(
            msgspec.structs.replace(message, reply_to=reply_to, quote=quote)
        )
    return Outcome(stored, outcome.message_id, outcome.duplicate)


def _range(cursor: str | None, before: int | None, after: int | None) -> SeqRange:
    if cursor is None:
        oldest_first = after is not None
        return SeqRange(
            oldest_first,
            # Every seq is above this.
            0 if after is None else after,
            _SEQ_END if before is None else before,
        )
    if before is not None or after is not None:
        raise invalid("/cursor", "says where to go on; give it without before and after")
    return decode_seq_range(cursor)


async def _one(parts: Parts, thread_id: ThreadId, user_id: UserId, message_id: str) -> bytes | None:
    async with parts.connection() as connection:
        body: str | None = await connection.fetchval(
            queries.ONE, thread_id, user_id, cursor_suffix(thread_id), message_id
        )
    return None if body is None else body.encode()


async def _quote_of(
    parts: Parts, thread_id: ThreadId, user_id: UserId, reply_to: str | None
) -> dict[str, Any] | None:
    if reply_to is None:
        return None
    async with parts.connection() as connection:
        quote = await connection.fetchval(queries.QUOTE_OF, thread_id, user_id, reply_to)
    return None if quote is None else msgspec.json.decode(quote, type=dict[str, Any])


async def _check_access(parts: Parts, thread_id: ThreadId, user_id: UserId) -> None:
    async with parts.connection() as connection:
        entry, _member = await access_of(connection, thread_id, user_id)
    if (why := entry.why_not_send(user_id)) is not None:
        raise ProblemError(why)


def _client_message_id(parts: Parts, text: str) -> ClientMessageId:
    try:
        client_msg_id = client_message_id(text)
    except InvalidIdError as error:
        raise invalid("/client_msg_id", "is no UUIDv7") from error
    if time_ms_of(client_msg_id) > now_ms() + parts.settings.clock_ahead_s * 1000:
        raise invalid("/client_msg_id", "is ahead of the server's clock")
    return client_msg_id


def _reply_to(text: str | None) -> str | None:
    try:
        return None if text is None else canonical_id(text)
    except InvalidIdError as error:
        # Only the form is checked: another message's or nobody's id reads as ``quote: null``.
        raise not_found() from error


def _message(
    thread_id: ThreadId,
    sender_id: UserId,
    client_msg_id: ClientMessageId,
    command: SendMessage,
    sent: Sent,
) -> Message:
    return Message(
        message_id=sent.message_id,
        thread_id=thread_id,
        client_msg_id=client_msg_id,
        sender_id=sender_id,
        kind="text",
        body=command.body,
        attachments=[],
        reply_to=None,
        quote=None,
        metadata=command.metadata,
        sent_at=sent.sent_at,
        edited_at=None,
        deleted_at=None,
        reactions=[],
        pinned=False,
        seq=sent.seq,
        cursor=sent.cursor,
    )


def _refusal(refused: Refused) -> ProblemError:
    headers = {}
    if refused.retry_after_ms is not None:
        headers["Retry-After"] = str(max(1, -(-refused.retry_after_ms // 1000)))
    return ProblemError(refused.code, headers=headers)
