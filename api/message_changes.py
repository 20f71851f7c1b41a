"""Editing and deleting messages, and the versions of one: one function per command, for every door.

The api decides, the log orders: a command is checked against everything that the log held of the thread when it came,
stored on the thread's subject, and answered with what is true from then on. The id of the event follows from the
message and the state it was decided on, so a command that is repeated, or raced by its own repetition, is one event.
"""

from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response

from api.access import access_of
from api.dependencies import (
    Caller,
    Parts,
    add_header,
    json_answer,
    object_id_of,
    parts_of,
    read_body,
)
from api.limits import counted
from api.openapi import EditList, accepted, described, problems
from api.paging import Paging, decode_version
from api.positions import HEADER, Position, wait_for_every_log, wait_for_log, wait_for_position
from api.problems import ProblemError, invalid, not_found
from api.queries import messages as queries
from shared.access import AccessEntry, Member
from shared.cursors import cursor_suffix, encode_cursor
from shared.events import MessageDeleted, MessageUpdated, decode_event, encode_event, timestamp
from shared.identity import ThreadId, UserId, derived_id
from shared.protocol import BODY_CHARS_MAX, ErrorCode, Message
from shared.subjects import msg_subject

router = APIRouter(tags=["messages"])

_STORE_TIMEOUT_S: Final = 5.0
_MODERATORS: Final = ("owner", "admin")
_Event = TypeVar("_Event", MessageUpdated, MessageDeleted)


class EditMessage(msgspec.Struct, frozen=True):
    """The new text of a message, kept as it is; empty only with attachments."""

    body: Annotated[str, msgspec.Meta(max_length=BODY_CHARS_MAX)]


class Effect(NamedTuple):
    """What a command did, or had done before: the position of its event, and the message from then on."""

    thread_id: ThreadId
    seq: int
    cursor: str
    message: Message


class _Target(NamedTuple):
    """A message that somebody wants to change, as they see it, and what decides whether they may."""

    entry: AccessEntry
    member: Member
    kind: Literal["text", "system"]
    deleted: bool
    changed_seq: int
    message: Message


@router.put(
    "/messages/{message_id}",
    operation_id="messages_edit",
    summary="Change the text of one's own message",
    responses={
        200: described(
            Message, "The message as it is now. `Messaging-Cursor` names the position of the edit."
        ),
        **problems(
            ErrorCode.BAD_FRAME,
            ErrorCode.FORBIDDEN,
            ErrorCode.NOT_FOUND,
            ErrorCode.GONE,
            ErrorCode.UNSUPPORTED,
            ErrorCode.THREAD_ARCHIVED,
        ),
    },
    openapi_extra=accepted(EditMessage),
    dependencies=[Depends(counted)],
)
async def put_message(request: Request, identity: Caller, message_id: str) -> Response:
    """Edit a message; the same text again changes nothing and is answered alike."""
    body = await read_body(request, EditMessage)
    effect = await edit_message(parts_of(request), identity.user_id, message_id, body.body)
    add_header(request, HEADER, effect.cursor)
    return json_answer(msgspec.json.encode(effect.message))


@router.delete(
    "/messages/{message_id}",
    operation_id="messages_delete",
    summary="Delete a message for all",
    status_code=204,
    responses={
        204: {
            "description": "It is deleted. `Messaging-Cursor` names the position of the deletion."
        },
        **problems(ErrorCode.FORBIDDEN, ErrorCode.NOT_FOUND),
    },
    dependencies=[Depends(counted)],
)
async def remove_message(
    request: Request,
    identity: Caller,
    message_id: str,
    scope: Annotated[Literal["all"], Query(description="For whom: everybody.")] = "all",
) -> Response:
    """Delete a message: its place stays, its content is gone for ever. Again changes nothing and is answered alike."""
    del scope
    effect = await delete_message(parts_of(request), identity.user_id, message_id)
    add_header(request, HEADER, effect.cursor)
    return Response(status_code=204)


@router.get(
    "/messages/{message_id}/history",
    operation_id="messages_history",
    summary="The versions of a message",
    responses={
        200: described(
            EditList, "Oldest first, the current one included; of a deleted message there are none."
        ),
        **problems(ErrorCode.NOT_FOUND),
    },
)
async def get_history(
    request: Request, identity: Caller, page: Paging, message_id: str, position: Position = None
) -> Response:
    """Return what a message said, to those who may see it."""
    parts = parts_of(request)
    asked = object_id_of(message_id)
    after = 0 if page.cursor is None else decode_version(page.cursor)
    await wait_for_position(parts, identity.user_id, position)
    thread_id = await _thread_of(parts, identity.user_id, asked)
    if thread_id is None:
        raise not_found()
    async with parts.connection() as connection:
        body = await connection.fetchval(
            queries.HISTORY, thread_id, identity.user_id, asked, after, page.limit
        )
    if body is None:
        raise not_found()
    return json_answer(body)


async def edit_message(
    parts: Parts, user_id: UserId, message_id: str, body: str, *, thread_id: str | None = None
) -> Effect:
    """Change the text of a message. Its author may, while they may write to the thread.

    Args:
        parts: Of this process.
        user_id: Who wants it.
        message_id: As the caller gave it.
        body: The new text; its length is checked.
        thread_id: Where the message must be, when the caller says so.

    Raises:
        ProblemError: ``not_found``; ``forbidden``: another's; ``gone``: deleted; ``thread_archived``; ``invalid``: no
            text and no attachment; ``unavailable``: the persister is too far behind to decide.
        BusError: It may be stored or not; the same command again is safe.
    """
    target = await _target(parts, user_id, message_id, thread_id)
    message = target.message
    if message.sender_id != user_id or target.kind != "text":
        raise ProblemError(ErrorCode.FORBIDDEN)
    if target.deleted:
        raise ProblemError(ErrorCode.GONE)
    if not body and not message.attachments:
        raise invalid("/body", "may be empty only with attachments")
    if body == message.body:
        return _effect(message, target.changed_seq)
    if (why := target.entry.why_not_send(user_id)) is not None:
        raise ProblemError(why)
    event = MessageUpdated(
        thread_id=message.thread_id,
        event_id=derived_id("edit", message.message_id, str(target.changed_seq), body),
        message_id=message.message_id,
        body=body,
        edited_at=timestamp(),
        editor_id=user_id,
    )
    seq, stored = await _store(parts, event)
    edited = msgspec.structs.replace(message, body=body, edited_at=stored.edited_at)
    return _effect(edited, seq)


async def delete_message(
    parts: Parts, user_id: UserId, message_id: str, *, thread_id: str | None = None
) -> Effect:
    """Delete a message for all. Its author may, and the thread's owner and admins; in an archived thread too.

    Args:
        parts: Of this process.
        user_id: Who wants it.
        message_id: As the caller gave it.
        thread_id: Where the message must be, when the caller says so.

    Raises:
        ProblemError: ``not_found``; ``forbidden``; ``unavailable``: the persister is too far behind to decide.
        BusError: It may be stored or not; the same command again is safe.
    """
    target = await _target(parts, user_id, message_id, thread_id)
    message = target.message
    is_own = message.sender_id == user_id and target.kind == "text"
    if not is_own and target.member.role not in _MODERATORS:
        raise ProblemError(ErrorCode.FORBIDDEN)
    if target.deleted:
        return _effect(message, target.changed_seq)
    event = MessageDeleted(
        thread_id=message.thread_id,
        # One per message, whoever deletes it: deleted is final.
        event_id=derived_id("delete", message.message_id),
        message_id=message.message_id,
        deleted_at=timestamp(),
        by=user_id,
    )
    seq, stored = await _store(parts, event)
    deleted = msgspec.structs.replace(
        message,
        body="",
        attachments=[],
        reactions=[],
        metadata={},
        quote=None,
        edited_at=None,
        deleted_at=stored.deleted_at,
    )
    return _effect(deleted, seq)


async def _target(parts: Parts, user_id: UserId, message_id: str, thread_id: str | None) -> _Target:
    asked = object_id_of(message_id)
    wanted = None if thread_id is None else object_id_of(thread_id)
    parts.require_fabric()
    found = await _thread_of(parts, user_id, asked)
    if found is None:
        # It may have been sent a moment ago. Once everything is read that was stored by now, it is nowhere.
        await wait_for_every_log(parts)
        found = await _thread_of(parts, user_id, asked)
    if found is None or wanted not in (None, found):
        raise not_found()
    await wait_for_log(parts, found)
    async with parts.connection() as connection:
        entry, member = await access_of(connection, found, user_id)
        row = await connection.fetchrow(
            queries.TO_CHANGE, found, user_id, cursor_suffix(found), asked
        )
    if row is None:
        raise not_found()
    return _Target(
        entry=entry,
        member=member,
        kind=row["kind"],
        deleted=row["deleted"],
        changed_seq=row["changed_seq"],
        message=msgspec.json.decode(row["object"], type=Message),
    )


async def _thread_of(parts: Parts, user_id: UserId, message_id: str) -> ThreadId | None:
    async with parts.connection() as connection:
        found = await connection.fetchval(queries.FIND_THREAD, message_id, user_id)
    return None if found is None else ThreadId(found.hex)


async def _store(parts: Parts, event: _Event) -> tuple[int, _Event]:
    """Store an event, and return its seq and the event under it: an equal one, when it was stored before."""
    thread_id = ThreadId(event.thread_id)
    ack = await parts.bus.store(
        msg_subject(thread_id),
        encode_event(event),
        message_id=event.event_id,
        timeout_s=_STORE_TIMEOUT_S,
    )
    if ack.duplicate:
        stored = await parts.bus.get_seq(ack.stream, ack.seq)
        if stored is not None:
            earlier = decode_event(stored.payload)
            # The id is a function of what is asked, so only the time and the name of who asked first may differ.
            assert isinstance(earlier, type(event))  # noqa: S101
            event = earlier
    return ack.seq, event


def _effect(message: Message, seq: int) -> Effect:
    thread_id = ThreadId(message.thread_id)
    return Effect(thread_id, seq, encode_cursor(thread_id, seq), message)
