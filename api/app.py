"""The application: routes under both prefixes, one shape of error, one door. No I/O here.

``/api/v1`` is an alias of ``/api``; the OpenAPI document names ``/api`` only.
"""

from typing import Any, Final

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from api import (
    admin,
    changes,
    documents,
    me,
    members,
    message_changes,
    messages,
    sessions,
    sync,
    threads,
)
from api.admin import SetBan
from api.dependencies import Parts, caller, known_parameters, welcome
from api.door import Door
from api.limits import limited
from api.message_changes import EditMessage
from api.openapi import openapi_of
from api.problems import ProblemError, answer_problem
from api.thread_bodies import AddMember, CreateThread, PatchThread, ReplaceThread
from shared.health import Checks, health_app
from shared.protocol import FrameError

PREFIX: Final = "/api"
ALIAS: Final = "/api/v1"
_BODIES: Final = (CreateThread, ReplaceThread, PatchThread, AddMember, EditMessage, SetBan)


def create_app(parts: Parts, checks: Checks) -> FastAPI:
    """Return the application that serves REST, the documents and the operations paths.

    Args:
        parts: Everything that requests use.
        checks: What ``/readyz`` reports.
    """
    app = create_routes()

    def operations(inner: ASGIApp) -> Any:  # noqa: ANN401 - uvicorn and Starlette type the same ASGI differently
        return health_app(checks, parts.metrics.registry, otherwise=inner)

    app.add_middleware(operations)
    app.add_middleware(Door, parts=parts)
    return app


def create_routes() -> FastAPI:
    """Return the application without its door: enough for its OpenAPI document, and needing nothing."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    # Who asks and whether they may, before anything is said about the request; then the limit, then the parameters.
    checks = [Depends(caller), Depends(welcome), Depends(limited), Depends(known_parameters)]
    for module in (
        threads,
        changes,
        members,
        messages,
        message_changes,
        me,
        sync,
        sessions,
        admin,
    ):
        app.include_router(module.router, prefix=PREFIX, dependencies=checks)
        app.include_router(
            module.router, prefix=ALIAS, dependencies=checks, include_in_schema=False
        )
    app.include_router(documents.router)
    for kind in (ProblemError, FrameError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, answer_problem)
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(openapi_of(app, _BODIES))
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document; needs no server, no settings and no connection."""
    return create_routes().openapi()
