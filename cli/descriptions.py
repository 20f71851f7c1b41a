"""``openapi`` and ``asyncapi``: the interfaces described by the code itself. Nothing needs to run."""

from typing import Any


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the REST interface."""
    from api.app import openapi_document as document

    return document()


def asyncapi_document() -> dict[str, Any]:
    """Return the AsyncAPI 3 document of the WebSocket interface."""
    from shared.protocol.asyncapi import asyncapi_document as document

    return document()
