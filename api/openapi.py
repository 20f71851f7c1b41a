"""The OpenAPI 3.1 document: FastAPI names the operations, msgspec the shapes, this module joins them.

Answers are built as text by PostgreSQL, so FastAPI never sees their types; each route says which struct describes its
answer, and ``tests/api`` checks real answers against the document.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.problems import PROBLEM_JSON, ProblemBody, title_of
from shared.protocol import (
    HTTP_STATUS,
    MEANING,
    ErrorCode,
    Features,
    Limits,
    Message,
    MessageDeleted,
    MessageUpdated,
    NewMessage,
    Participant,
    SendMessage,
    Thread,
    ThreadArchived,
    ThreadMember,
    ThreadUpdated,
)

TITLE: Final = "Lilith Messaging: REST"
INTERFACE_VERSION: Final = "1.0.0"
"""Of the paths under ``/api``: the middle number counts additions."""

_SCHEMA_REF: Final = "#/components/schemas/{name}"
_ABOUT: Final = (
    "Threads, messages and the asking user. Live delivery is the WebSocket's, see `/docs/asyncapi`.\n\n"
    "Every path is served under `/api/v1` too. Ids are 32 hex digits, times RFC 3339 in UTC. Lists take `limit` and"
    " `cursor` and answer `{items, next_cursor}`. Unknown query parameters are refused. Every error is"
    " `application/problem+json`; switch on its `code`. What you may not see is `not_found`, whatever the reason."
)
_TAGS: Final = [
    {"name": "threads", "description": "Conversations and their members."},
    {"name": "messages", "description": "History, and sending without a WebSocket."},
    {"name": "me", "description": "The asking user, and what changed for them."},
    {
        "name": "admin",
        "description": "For tokens with the role `admin`; everybody else gets `forbidden`.",
    },
]
# What every authenticated route may answer.
_ALWAYS: Final = (
    ErrorCode.UNAUTHORIZED,
    ErrorCode.BANNED,
    ErrorCode.TOO_LARGE,
    ErrorCode.INVALID,
    ErrorCode.RATE_LIMITED,
    ErrorCode.UNAVAILABLE,
    ErrorCode.INTERNAL,
)


Role = Literal["client", "creator", "admin", "service"]
UserStanding = Literal["active", "banned", "deactivated"]


class ThreadList(msgspec.Struct, frozen=True):
    """One page of threads. ``sync_cursor`` is the first page's on all of them."""

    items: list[Thread]
    next_cursor: str | None
    sync_cursor: str


class ParticipantList(msgspec.Struct, frozen=True):
    """One page of members."""

    items: list[Participant]
    next_cursor: str | None


class MessageList(msgspec.Struct, frozen=True):
    """One page of messages."""

    items: list[Message]
    next_cursor: str | None


class Edit(msgspec.Struct, frozen=True):
    """One version of a message; 1 is what was sent."""

    version: int
    body: str
    edited_at: str
    editor_id: str


class EditList(msgspec.Struct, frozen=True):
    """One page of the versions of a message."""

    items: list[Edit]
    next_cursor: str | None


class ChangeList(msgspec.Struct, frozen=True):
    """One page of what changed in a thread; ``cursor`` is where the thread ends."""

    items: list[
        NewMessage | MessageUpdated | MessageDeleted | ThreadUpdated | ThreadArchived | ThreadMember
    ]
    next_cursor: str | None
    cursor: str


class SyncItem(msgspec.Struct, frozen=True):
    """A thread that changed for the asking user; ``removed``: it is theirs no longer."""

    thread_id: str
    cursor: str
    unread: int
    removed: bool


class SyncList(msgspec.Struct, frozen=True):
    """One page of the threads that changed."""

    items: list[SyncItem]
    next_cursor: str | None
    cursor: str


class ThreadWithMessages(Thread, frozen=True):
    """A thread and its latest messages, oldest first."""

    messages: list[Message]


class SentMessage(Message, frozen=True):
    """The message as stored; ``duplicate`` when it had been sent before."""

    duplicate: bool


class MeQuota(msgspec.Struct, frozen=True):
    """Whether the user's messages are counted, how many are left (null: unlimited), until when."""

    gated: bool
    remaining: int | None
    period_end: str | None


class Me(msgspec.Struct, frozen=True):
    """The asking user."""

    user_id: str
    name: str | None
    avatar_url: str | None
    role: Role
    standing: UserStanding
    unread_total: int
    quota: MeQuota
    limits: Limits
    features: Features
    settings: dict[str, Any]
    ws_url: str
    sync_cursor: str


class Ban(msgspec.Struct, frozen=True):
    """A ban: until when (null: for ever), why, since when and by whom."""

    user_id: str
    until: str | None
    reason: str | None
    banned_at: str
    banned_by: str


_SHAPES: Final[tuple[type[msgspec.Struct], ...]] = (
    Ban,
    ThreadList,
    ThreadWithMessages,
    ParticipantList,
    MessageList,
    EditList,
    ChangeList,
    SyncList,
    SentMessage,
    SendMessage,
    Me,
    ProblemBody,
)


def described(shape: type[msgspec.Struct], description: str) -> dict[str, Any]:
    """Return the documentation of an answer with this body."""
    return {"description": description, "content": {"application/json": {"schema": _ref(shape)}}}


def accepted(
    shape: type[msgspec.Struct], media_type: str = "application/json", *, required: bool = True
) -> dict[str, Any]:
    """Return ``openapi_extra`` of a route whose body is this struct."""
    return {"requestBody": {"required": required, "content": {media_type: {"schema": _ref(shape)}}}}


def problems(*codes: ErrorCode, has_tags: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of a route's errors: these, and what every route may answer.

    Args:
        codes: The route's own.
        has_tags: Whether it compares ``If-Match``; a stale one is 412 ``conflict``.
    """
    by_status: dict[int, list[ErrorCode]] = {}
    for code in (*codes, *_ALWAYS):
        by_status.setdefault(HTTP_STATUS[code], []).append(code)
    if has_tags:
        by_status[412] = [ErrorCode.CONFLICT]
    return {
        status: {
            "description": " ".join(f"`{code}`: {MEANING[code]}" for code in dict.fromkeys(group)),
            "content": {PROBLEM_JSON: {"schema": _ref(ProblemBody)}},
        }
        for status, group in by_status.items()
    }


def openapi_of(app: FastAPI, bodies: Sequence[type[msgspec.Struct]]) -> dict[str, Any]:
    """Return the OpenAPI document of an application.

    Args:
        app: Its routes, with ``described``, ``accepted`` and ``problems``.
        bodies: The structs of request bodies that live beside their routes.
    """
    document = get_openapi(
        title=TITLE,
        version=INTERFACE_VERSION,
        openapi_version="3.1.0",
        description=_ABOUT,
        routes=app.routes,
        tags=_TAGS,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    _, schemas = msgspec.json.schema_components([*_SHAPES, *bodies], ref_template=_SCHEMA_REF)
    # REST sends the fields of the frame; its tag and ref belong to the WebSocket.
    send = schemas["SendMessage"]
    for name in ("type", "ref"):
        send["properties"].pop(name)
    send["required"].remove("type")
    document["components"] = {
        "schemas": schemas,
        "securitySchemes": {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "The platform's token: sub, exp and iat, and the role.",
            }
        },
    }
    document["security"] = [{"token": []}]
    for operations in document["paths"].values():
        for operation in operations.values():
            # FastAPI documents its own 422, whose shape is never sent.
            _drop_framework_schema(operation)
    return document


def problem_catalogue() -> list[dict[str, Any]]:
    """Return every code with its status and meaning: what ``/problems/<code>`` shows."""
    return [
        {
            "code": str(code),
            "title": title_of(code),
            "status": HTTP_STATUS[code],
            "meaning": meaning,
        }
        for code, meaning in MEANING.items()
    ]


def _ref(shape: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _SCHEMA_REF.format(name=shape.__name__)}


def _drop_framework_schema(operation: dict[str, Any]) -> None:
    for answer in operation["responses"].values():
        content = answer.get("content", {})
        if PROBLEM_JSON in content:
            content.pop("application/json", None)
