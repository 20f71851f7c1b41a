"""Sessions of the asking user over REST: log out everywhere."""

import asyncio
import time

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import Caller, parts_of
from api.limits import counted
from api.openapi import problems
from api.queries import standing as queries
from api.standing import record
from api.thread_changes import settle

router = APIRouter(tags=["me"])


@router.post(
    "/sessions/revoke",
    operation_id="sessions_revoke",
    summary="Log out everywhere: every token issued until now is refused, this one too",
    status_code=204,
    responses={204: {"description": "All earlier tokens are refused and their sockets closed."}, **problems()},
    dependencies=[Depends(counted)],
)  # fmt: skip
async def revoke_sessions(request: Request, identity: Caller) -> Response:
    """Refuse the caller's tokens from now on, and close their sockets with 4501."""
    parts = parts_of(request)
    parts.require_fabric()
    # Tokens tell their time in seconds: those of this one are refused too, and the answer comes when it is over, so
    # that a token made after it is a good one.
    min_iat = int(time.time()) + 1
    async with parts.connection() as connection, connection.transaction():
        await connection.execute(queries.REVOKE, identity.user_id, min_iat)
        await record(
            connection,
            identity.user_id,
            actor_id=identity.user_id,
            action="sessions.revoke",
            details={"min_iat": min_iat},
        )
    await settle(parts, identity.user_id)
    await asyncio.sleep(max(0.0, min_iat - time.time()))
    return Response(status_code=204)
