"""Pages and documents for people and generators: landing page, both interfaces, every error code.

The pages are small and complete: script and style come from this process, nothing from a foreign host, so they work in
a closed network. The web application will take over ``/``.
"""

import html
from importlib.resources import files
from typing import Any, Final

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.openapi import problem_catalogue
from api.problems import not_found
from shared.protocol.asyncapi import asyncapi_document

_PAGES: Final = files("api") / "pages"
_ASSETS: Final = {
    "docs.js": "text/javascript; charset=utf-8",
    "docs.css": "text/css; charset=utf-8",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_LINKS: Final = (
    ("/docs", "REST interface, readable"),
    ("/openapi.json", "REST interface, OpenAPI 3.1"),
    ("/docs/asyncapi", "WebSocket interface, readable"),
    ("/asyncapi.json", "WebSocket interface, AsyncAPI 3"),
    ("/problems", "Every error code"),
    ("/livez", "Is this process alive?"),
    ("/readyz", "Does it take work?"),
    ("/metrics", "Prometheus metrics"),
)

router = APIRouter(include_in_schema=False)


@router.get("/", operation_id="page_landing")
async def landing() -> Response:
    """Show where everything is."""
    items = "".join(f'<li><a href="{path}">{path}</a> {text}</li>' for path, text in _LINKS)
    return _page(
        "Lilith Messaging", f"<h1>Lilith Messaging</h1><p>This is the api.</p><ul>{items}</ul>"
    )


@router.get("/openapi.json", operation_id="document_openapi")
async def openapi(request: Request) -> Response:
    """Return the description of the REST interface."""
    return _document(request.app.openapi())


@router.get("/asyncapi.json", operation_id="document_asyncapi")
async def asyncapi() -> Response:
    """Return the description of the WebSocket interface."""
    return _document(asyncapi_document())


@router.get("/docs", operation_id="page_docs")
async def docs() -> Response:
    """Show the description of the REST interface."""
    return _viewer("REST interface", "/openapi.json")


@router.get("/docs/asyncapi", operation_id="page_docs_asyncapi")
async def docs_asyncapi() -> Response:
    """Show the description of the WebSocket interface."""
    return _viewer("WebSocket interface", "/asyncapi.json")


@router.get("/docs/assets/{name}", operation_id="page_asset")
async def asset(name: str) -> Response:
    """Return script or style of the pages."""
    if name not in _ASSETS:
        raise not_found()
    headers = {"Cache-Control": "public, max-age=300"}
    return Response((_PAGES / name).read_bytes(), headers=headers, media_type=_ASSETS[name])


@router.get("/problems", operation_id="page_problems")
async def problems() -> Response:
    """Show every error code."""
    rows = "".join(_problem_row(entry) for entry in problem_catalogue())
    return _page("Problems", f"<h1>Problems</h1><table>{rows}</table>")


@router.get("/problems/{code}", operation_id="page_problem")
async def problem(code: str) -> Response:
    """Show one error code: what the ``type`` of a problem points to."""
    for entry in problem_catalogue():
        if entry["code"] == code:
            title = html.escape(entry["title"])
            return _page(title, f"<h1>{title}</h1><table>{_problem_row(entry)}</table>")
    raise not_found()


def _problem_row(entry: dict[str, Any]) -> str:
    code, meaning = html.escape(entry["code"]), html.escape(entry["meaning"])
    link = f'<a href="/problems/{code}"><code>{code}</code></a>'
    return f"<tr><td>{link}</td><td>{entry['status']}</td><td>{meaning}</td></tr>"


def _viewer(title: str, document: str) -> Response:
    body = (
        f'<h1>{title}</h1><p>From <a href="{document}">{document}</a>.</p>'
        f'<main id="document" data-source="{document}">Loading…</main>'
        "<noscript>This page needs its script; the document itself is plain JSON.</noscript>"
        '<script src="/docs/assets/docs.js" defer></script>'
    )
    return _page(title, body)


def _page(title: str, body: str) -> Response:
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="stylesheet" href="/docs/assets/docs.css"></head><body>{body}</body></html>'
    )
    return Response(text, headers={"Content-Security-Policy": _POLICY}, media_type="text/html")


def _document(document: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
