"""The two interface descriptions: complete, consistent, and true to the structs."""

import json
import re
from typing import Any, get_args

import jsonschema
import msgspec

from api.app import openapi_document
from shared.protocol import (
    COMMANDS,
    MEANING,
    AnyFrame,
    CloseCode,
    ErrorCode,
    Message,
    SendMessage,
    Thread,
)
from shared.protocol.asyncapi import asyncapi_document


def refs_in(value: Any) -> set[str]:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        found = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return found.union(*(refs_in(item) for item in value.values()))
    if isinstance(value, list):
        return set[str]().union(*(refs_in(item) for item in value))
    return set()


def resolved(document: dict[str, Any], ref: str) -> Any:  # noqa: ANN401 - JSON
    target: Any = document
    for part in ref.removeprefix("#/").split("/"):
        target = target[part.replace("~1", "/").replace("~0", "~")]
    return target


def test_every_reference_of_both_documents_leads_somewhere() -> None:
    for document in (openapi_document(), asyncapi_document()):
        references = refs_in(document)
        assert references
        for ref in references:
            assert resolved(document, ref)


def test_every_schema_is_valid_json_schema() -> None:
    for document in (openapi_document(), asyncapi_document()):
        for schema in document["components"]["schemas"].values():
            jsonschema.Draft202012Validator.check_schema(schema)


def test_asyncapi_has_every_command_and_every_frame() -> None:
    document = asyncapi_document()
    commands = {f"client.{tag}" for tag in COMMANDS}
    frames = {f"server.{frame.__struct_config__.tag}" for frame in get_args(AnyFrame)}
    assert set(document["components"]["messages"]) == commands | frames
    assert set(document["channels"]["messaging"]["messages"]) == commands | frames
    received = {name for name, one in document["operations"].items() if one["action"] == "receive"}
    assert received == commands
    assert set(document["operations"]) - received == frames
    assert document["channels"]["messaging"]["address"] == "/ws/messaging"


def test_asyncapi_names_every_code() -> None:
    document = asyncapi_document()
    assert [one["code"] for one in document["x-error-codes"]] == [str(code) for code in ErrorCode]
    assert [one["code"] for one in document["x-close-codes"]] == [int(code) for code in CloseCode]
    assert {one["code"]: one["reconnect"] for one in document["x-close-codes"]}[4503] is False


def test_a_real_frame_satisfies_its_schema() -> None:
    document = asyncapi_document()
    frame = {"type": "message.send", "thread_id": "a", "client_msg_id": "b", "body": "c"}
    payload = document["components"]["messages"]["client.message.send"]["payload"]
    schema = {**payload, "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(frame)
    del frame["body"]
    assert not jsonschema.Draft202012Validator(schema).is_valid(frame)


def test_operations_have_names_tags_summaries_and_documented_errors() -> None:
    document = openapi_document()
    names = []
    for path, operations in document["paths"].items():
        assert path.startswith("/api/")
        assert not path.startswith("/api/v1/")
        for operation in operations.values():
            names.append(operation["operationId"])
            assert re.fullmatch(r"[a-z]+_[a-z]+", operation["operationId"])
            assert operation["tags"]
            assert operation["summary"]
            assert {"401", "422", "429", "500", "503"} <= set(operation["responses"])
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"]
    assert len(names) == len(set(names))
    assert document["openapi"] == "3.1.0"
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_rest_sends_the_fields_of_the_frame() -> None:
    schema = openapi_document()["components"]["schemas"]["SendMessage"]
    wanted = {field.name for field in msgspec.structs.fields(SendMessage)} - {"ref"}
    assert set(schema["properties"]) == wanted
    assert schema["required"] == ["thread_id", "client_msg_id", "body"]


def test_objects_are_those_of_the_protocol() -> None:
    schemas = openapi_document()["components"]["schemas"]
    for shape in (Thread, Message):
        names = [field.name for field in msgspec.structs.fields(shape)]
        assert schemas[shape.__name__]["required"] == names


def test_documents_are_json() -> None:
    assert json.loads(json.dumps(openapi_document()))
    assert json.loads(json.dumps(asyncapi_document()))
    assert len(MEANING) == len(ErrorCode)
