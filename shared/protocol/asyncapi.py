"""The AsyncAPI document of the WebSocket, generated from the frames themselves. Pure: no I/O.

Every command and frame is a message; its schema is the struct that the edge decodes or encodes, so the document
cannot differ from the code. Operations are the server's: it *receives* commands and *sends* frames.
"""

import typing
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from shared.protocol import PATH, SUBPROTOCOL
from shared.protocol.codes import (
    CLOSE_REASONS,
    HTTP_STATUS,
    MEANING,
    RETRYABLE,
    may_reconnect,
)
from shared.protocol.commands import COMMANDS, AnyCommand
from shared.protocol.frames import AnyFrame

ASYNCAPI_VERSION: Final = "3.0.0"
INTERFACE_VERSION: Final = "1.0.0"
"""Of the protocol ``messaging.v1.json``: the middle number counts additions."""

_CHANNEL: Final = "messaging"
_CHANNEL_REF: Final = f"#/channels/{_CHANNEL}"
_SCHEMA_REF: Final = "#/components/schemas/{name}"
_SECURITY_REF: Final = "#/components/securitySchemes/token"

_ABOUT: Final = (
    "Text frames, one JSON object each, tagged by `type`; unknown fields are ignored. A command with a `ref` gets"
    " exactly one `ack` or `error` that echoes it (`ping`: the `pong`); without `ref`, success is silent.\n\n"
    "Authenticate by `Authorization: Bearer` in the handshake, or by an `auth` frame within 5 seconds; the first"
    " answer is `hello`. Close codes 4000 to 4499 mean reconnect, 4500 to 4999 do not."
)


def asyncapi_document() -> dict[str, Any]:
    """Return the AsyncAPI 3 document as a JSON-ready object."""
    commands, frames = list(COMMANDS.values()), frame_types()
    _, schemas = msgspec.json.schema_components([*commands, *frames], ref_template=_SCHEMA_REF)
    return {
        "asyncapi": ASYNCAPI_VERSION,
        "info": {
            "title": "Lilith Messaging: WebSocket",
            "version": INTERFACE_VERSION,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {_CHANNEL: _channel([*commands, *frames])},
        "operations": {
            **{_key(command): _received(command) for command in commands},
            **{_key(frame): _sent(frame) for frame in frames},
        },
        "components": {
            "schemas": schemas,
            "messages": {_key(shape): _message(shape) for shape in (*commands, *frames)},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "In the handshake, or in the first frame. Never in the URL.",
                }
            },
        },
        "x-error-codes": _error_codes(),
        "x-close-codes": _close_codes(),
    }


def frame_types() -> list[type[AnyFrame]]:
    """Return every frame that the server sends."""
    return list(typing.get_args(AnyFrame))


def _channel(shapes: Sequence[type[msgspec.Struct]]) -> dict[str, Any]:
    return {
        "address": PATH,
        "title": "The conversation of one session",
        "messages": {
            _key(shape): {"$ref": f"#/components/messages/{_key(shape)}"} for shape in shapes
        },
        "bindings": {
            "ws": {
                "method": "GET",
                "headers": {
                    "type": "object",
                    "properties": {
                        "Authorization": {"type": "string", "pattern": "^Bearer .+$"},
                        "Sec-WebSocket-Protocol": {"type": "string", "const": SUBPROTOCOL},
                    },
                },
                "bindingVersion": "0.1.0",
            }
        },
    }


def _message(shape: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        "name": _tag(shape),
        "title": shape.__name__,
        "summary": (shape.__doc__ or "").strip(),
        "contentType": "application/json",
        "payload": {"$ref": _SCHEMA_REF.format(name=shape.__name__)},
    }


def _received(command: type[AnyCommand]) -> dict[str, Any]:
    answers = ["server.pong"] if _tag(command) == "ping" else ["server.ack", "server.error"]
    return {
        "action": "receive",
        "channel": {"$ref": _CHANNEL_REF},
        "summary": (command.__doc__ or "").strip(),
        "messages": [{"$ref": f"{_CHANNEL_REF}/messages/{_key(command)}"}],
        "reply": {
            "channel": {"$ref": _CHANNEL_REF},
            "messages": [{"$ref": f"{_CHANNEL_REF}/messages/{answer}"} for answer in answers],
        },
        "security": [{"$ref": _SECURITY_REF}],
    }


def _sent(frame: type[AnyFrame]) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": _CHANNEL_REF},
        "summary": (frame.__doc__ or "").strip(),
        "messages": [{"$ref": f"{_CHANNEL_REF}/messages/{_key(frame)}"}],
    }


def _error_codes() -> list[dict[str, Any]]:
    return [
        {
            "code": str(code),
            "meaning": meaning,
            "retryable": code in RETRYABLE,
            "http_status": HTTP_STATUS[code],
        }
        for code, meaning in MEANING.items()
    ]


def _close_codes() -> list[dict[str, Any]]:
    return [
        {"code": int(code), "reason": reason, "reconnect": may_reconnect(code)}
        for code, reason in CLOSE_REASONS.items()
    ]


def _tag(shape: type[msgspec.Struct]) -> str:
    return str(shape.__struct_config__.tag)


def _key(shape: type[msgspec.Struct]) -> str:
    """Return the name of a message in the document: both directions may use the same ``type`` one day."""
    side = "client" if _tag(shape) in COMMANDS else "server"
    return f"{side}.{_tag(shape)}"
