"""The asking user over REST."""

from collections.abc import Mapping
from typing import Final, cast

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Caller, Parts, json_answer, parts_of, verdict_of
from api.openapi import Me, MeQuota, Role, UserStanding, described, problems
from api.positions import Position, wait_for_position
from api.queries import users as queries
from api.sync import sync_position
from shared.protocol import (
    ATTACHMENTS_MAX,
    BODY_CHARS_MAX,
    FRAME_BYTES_MAX,
    PATH,
    SUBSCRIPTIONS_MAX,
    UNREAD_MAX,
    Features,
    Limits,
    RateLimit,
)
from shared.settings import Settings
from shared.standing import Verdict

router = APIRouter(tags=["me"])

_STANDING: Final[Mapping[Verdict | None, UserStanding]] = {
    None: "active",
    Verdict.BANNED: "banned",
    Verdict.DEACTIVATED: "deactivated",
}
_UNGATED: Final = MeQuota(gated=False, remaining=None, period_end=None)


@router.get(
    "/me",
    operation_id="me_get",
    summary="Who the caller is, and what is true for them",
    responses={200: described(Me, "The asking user."), **problems()},
)
async def get_me(request: Request, identity: Caller, position: Position = None) -> Response:
    """Return the caller's own view of themselves."""
    parts = parts_of(request)
    await wait_for_position(parts, identity.user_id, position)
    async with parts.connection() as connection:
        sync_cursor = (await sync_position(connection)).encode()
        row = await connection.fetchrow(queries.PROFILE, identity.user_id)
        unread_total = await connection.fetchval(queries.UNREAD_TOTAL, identity.user_id, UNREAD_MAX)
    me = Me(
        user_id=identity.user_id,
        name=row["name"] if row is not None else identity.name,
        avatar_url=row["avatar_url"] if row is not None else None,
        role=cast("Role", identity.role),
        standing=_STANDING[verdict_of(request)],
        unread_total=unread_total,
        quota=_UNGATED,
        limits=_limits(parts.settings),
        features=_features(parts.settings),
        settings={},
        ws_url=_ws_url(parts, request),
        sync_cursor=sync_cursor,
    )
    return json_answer(msgspec.json.encode(me))


def _limits(settings: Settings) -> Limits:
    limit = settings.messaging_throttle_limit
    return Limits(
        frame_bytes=FRAME_BYTES_MAX,
        body_chars=BODY_CHARS_MAX,
        attachments=ATTACHMENTS_MAX,
        subscriptions=SUBSCRIPTIONS_MAX,
        rate=RateLimit(limit, settings.messaging_throttle_ttl) if limit else None,
    )


def _features(settings: Settings) -> Features:
    return Features(
        clips=settings.messaging_enable_clips,
        analytics=settings.messaging_enable_analytics,
        typing=settings.messaging_enable_typing_indicators,
        receipts=settings.messaging_enable_read_receipts,
    )


def _ws_url(parts: Parts, request: Request) -> str:
    """Return where to open the WebSocket: as configured, else the edge's port on the host that was asked."""
    if parts.settings.messaging_ws_url:
        return parts.settings.messaging_ws_url
    host = request.url.hostname or parts.settings.messaging_host
    host = f"[{host}]" if ":" in host else host
    scheme = "wss" if request.url.scheme == "https" else "ws"
    return f"{scheme}://{host}:{parts.settings.messaging_ws_port}{PATH}"
