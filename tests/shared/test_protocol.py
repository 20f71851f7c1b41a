"""The wire: every row of the bad-input table, and one answer from both paths of the parser."""

import json
import time
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from shared.protocol import (
    CLOSE_REASONS,
    COMMANDS,
    HTTP_STATUS,
    MEANING,
    RETRYABLE,
    AnyCommand,
    Auth,
    CloseCode,
    ErrorCode,
    FrameError,
    MarkRead,
    Ping,
    SendMessage,
    SubscribeThread,
    find_unstorable,
    may_reconnect,
    parse_command,
    parse_object,
)
from shared.protocol import parsing as paths

THREAD = "0190a0b1c2d37e4f8a9b0c1d2e3f4a5b"
SEND: dict[str, Any] = {
    "type": "message.send",
    "ref": "r1",
    "thread_id": THREAD,
    "client_msg_id": "0190a0b1c2d37e4f8a9b0c1d2e3f4a5c",
    "body": "hi",
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats()
    | st.text(st.characters(), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=20,
)
FIELDS = (
    "type ref token thread_id client_msg_id body attachments reply_to metadata after clip_id "
    "upload_id unknown"
)
field_names = st.sampled_from(FIELDS.split())
field_values = (
    json_values
    | st.sampled_from([*COMMANDS, THREAD, "x" * 65, "x" * 4_001, [], {}])
    | st.lists(st.dictionaries(st.sampled_from(["clip_id", "upload_id"]), st.text()), max_size=11)
)
# Objects that are nearly commands: each is read by both paths of the parser.
almost_commands = st.dictionaries(field_names, field_values, max_size=8) | st.builds(
    lambda kind, fields: {"type": kind, **fields},
    st.sampled_from(list(COMMANDS)),
    st.fixed_dictionaries(
        {"thread_id": st.just(THREAD), "client_msg_id": st.text(max_size=5), "body": st.text()},
        optional={"metadata": json_values, "ref": st.text(max_size=66), "token": st.just("t")},
    ),
)


def encode(value: object, **changes: object) -> bytes:
    if isinstance(value, dict):
        value = {**value, **changes}
    return json.dumps(value).encode()


def refusal(data: bytes) -> FrameError:
    with pytest.raises(FrameError) as caught:
        parse_command(data)
    return caught.value


def outcome_of(read: Any, data: bytes) -> tuple[object, ...]:  # noqa: ANN401 - either path
    try:
        return ("command", read(data))
    except FrameError as error:
        return ("refused", error.code, error.ref, tuple(error.details))


def test_the_fields_of_a_command_arrive() -> None:
    command = parse_command(
        encode(
            SEND,
            metadata={"n": 1, "deep": {"list": [1.5, None, True]}},
            attachments=[{"clip_id": THREAD}],
            reply_to=THREAD,
            unknown=["is", "ignored"],
        )
    )
    assert isinstance(command, SendMessage)
    assert (command.body, command.ref, command.reply_to) == ("hi", "r1", THREAD)
    assert command.metadata == {"n": 1, "deep": {"list": [1.5, None, True]}}
    assert [item.clip_id for item in command.attachments] == [THREAD]


@pytest.mark.parametrize(
    ("frame", "command"),
    [
        ({"type": "ping"}, Ping()),
        ({"type": "ping", "ref": ""}, Ping(ref="")),
        ({"type": "auth", "token": "t", "ref": "1"}, Auth("t", "1")),
        ({"type": "thread.subscribe", "thread_id": "*"}, SubscribeThread("*")),
        ({"type": "message.mark_read", "thread_id": "t", "seq": 7}, MarkRead("t", seq=7)),
        ({"type": "message.mark_read", "thread_id": "t", "message_id": "m"}, MarkRead("t", "m")),
        ({"type": "thread.subscribe", "thread_id": THREAD, "after": "0"}, SubscribeThread(THREAD, "0")),
    ],
)  # fmt: skip
def test_a_short_command_is_read(frame: dict[str, Any], command: AnyCommand) -> None:
    assert parse_command(encode(frame)) == command


@pytest.mark.parametrize("kind", list(COMMANDS))
def test_every_command_is_found_by_its_type(kind: str) -> None:
    fields = {**SEND, "type": kind, "token": "t", "seq": 1}
    assert type(parse_command(encode(fields))) is COMMANDS[kind]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"hello",
        b"{",
        b'{"type":"ping"',
        b'{"type":"ping"}}',
        b'{"type":"ping",}',
        b"{'type':'ping'}",
        b'{"type":"ping","n":01}',
        b'{"type":"ping","n":NaN}',
        b'{"type":"ping","n":Infinity}',
        b'{"type":"ping","n":-Infinity}',
        b'{"type":"ping","x":"\x01"}',
        b'{"type":"ping","x":"\\x"}',
        b'{"type":"auth","token":"\xff"}',
        b"\xef\xbb\xbf{}",
        b"[]",
        b"null",
        b"5",
        b'"ping"',
        b'[{"type":"ping"}]',
        b"[" * 50_000,
    ],
)
def test_what_is_no_json_object_is_a_bad_frame(data: bytes) -> None:
    assert refusal(data).code is ErrorCode.BAD_FRAME


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"body": "a\0b"}, "/body"),
        ({"body": "a\ud800"}, "/body"),
        ({"body": "\udc00\ud800"}, "/body"),
        ({"metadata": {"k": ["a\0"]}}, "/metadata/k/0"),
        ({"metadata": {"a\0": 1}}, "/metadata"),
        ({"metadata": {"a/b~c": "\0"}}, "/metadata/a~1b~0c"),
        ({"unknown": "\ud800"}, "/unknown"),
        ({"metadata": {"n": 2**53 + 1}}, "/metadata/n"),
        ({"metadata": {"n": -(2**53) - 1}}, "/metadata/n"),
        ({"metadata": {"n": 1e300}}, "/metadata/n"),
        ({"metadata": {"n": [[[[[[[1]]]]]]]}}, "/metadata/n/0/0/0/0/0/0"),
        ({"body": 5}, "/body"),
        ({"body": None}, "/body"),
        ({"body": "x" * 4_001}, "/body"),
        ({"body": ""}, "/body"),
        ({"thread_id": ["x"]}, "/thread_id"),
        ({"client_msg_id": {}}, "/client_msg_id"),
        ({"metadata": []}, "/metadata"),
        ({"metadata": {"k": "x" * 4_096}}, "/metadata"),
        ({"attachments": {}}, "/attachments"),
        ({"attachments": [5]}, "/attachments/0"),
        ({"attachments": [{}]}, "/attachments/0"),
        ({"attachments": [{"clip_id": "a", "upload_id": "b"}]}, "/attachments/0"),
        ({"attachments": [{"clip_id": 5}]}, "/attachments/0/clip_id"),
        ({"attachments": [{"clip_id": "a"}] * 11}, "/attachments"),
        ({"reply_to": 5}, "/reply_to"),
        ({"type": 5}, "/type"),
        ({"type": None}, "/type"),
        ({"type": ["message.send"]}, "/type"),
    ],
)
def test_a_wrong_field_is_invalid_and_named(changes: dict[str, Any], path: str) -> None:
    error = refusal(encode(SEND, **changes))
    assert error.code is ErrorCode.INVALID
    assert [detail.path for detail in error.details] == [path]
    assert error.ref == "r1"


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"9" * 5_000, b"9007199254740993"])
def test_a_number_beyond_2_to_the_53_is_invalid(number: bytes) -> None:
    error = refusal(b'{"type":"ping","ref":"r1","n":' + number + b"}")
    assert (error.code, error.ref) == (ErrorCode.INVALID, "r1")
    assert [detail.path for detail in error.details] == ["/n"]


@pytest.mark.parametrize("number", [2**53, -(2**53), 0, 0.5, -1.25])
def test_numbers_up_to_2_to_the_53_are_kept(number: float) -> None:
    command = parse_command(encode(SEND, metadata={"n": number}))
    assert isinstance(command, SendMessage)
    assert command.metadata == {"n": number}


@pytest.mark.parametrize("missing", ["thread_id", "client_msg_id", "body", "type"])
def test_a_missing_field_is_invalid_and_named(missing: str) -> None:
    error = refusal(encode({name: value for name, value in SEND.items() if name != missing}))
    assert (error.code, error.ref) == (ErrorCode.INVALID, "r1")
    assert [detail.path for detail in error.details] == [f"/{missing}"]


def test_the_eighth_level_of_nesting_is_the_last() -> None:
    # The frame is level 1 and metadata level 2.
    allowed = encode(SEND, metadata={"n": [[[[[[]]]]]]})
    assert isinstance(parse_command(allowed), SendMessage)
    assert refusal(encode(SEND, metadata={"n": [[[[[[[]]]]]]]})).code is ErrorCode.INVALID


@pytest.mark.parametrize("depth", [100, 900, 5_000, 30_000])
@pytest.mark.parametrize("brackets", [b"[]", b"{}"])
def test_a_bomb_of_nesting_is_invalid_and_answered_by_its_ref(depth: int, brackets: bytes) -> None:
    opening = brackets[:1] if brackets == b"[]" else b'{"a":'
    bomb = opening * depth + b"1" + brackets[1:] * depth
    frame = b'{"type":"ping","x":' + bomb + b',"ref":"r1"}'
    error = refusal(frame)
    assert error.code is ErrorCode.INVALID
    assert "nested deeper" in error.details[0].problem
    assert error.ref == "r1"


def test_a_bomb_takes_no_time() -> None:
    # An unfinished string after a bomb: a search that starts again at every quote would take minutes.
    frame = b'{"type":"ping","ref":"r1","x":' + b"[" * 5_000 + b'"' + b'\\"' * 28_000
    started = time.monotonic()
    assert refusal(frame).code is ErrorCode.BAD_FRAME
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("kind", ["", "message", "message.sell", "PING", "ping ", "x" * 1_000])
def test_a_type_that_is_no_command_is_unknown(kind: str) -> None:
    error = refusal(encode(SEND, type=kind))
    assert (error.code, error.ref) == (ErrorCode.UNKNOWN_TYPE, "r1")


@pytest.mark.parametrize("ref", [5, None, "x" * 65, ["r"], "a\0", "\ud800"])
def test_a_ref_that_is_none_is_not_echoed(ref: object) -> None:
    assert refusal(encode(SEND, ref=ref, body=5)).ref is None


def test_a_length_counts_code_points() -> None:
    assert isinstance(parse_command(encode(SEND, body="🙂" * 4_000)), SendMessage)
    assert refusal(encode(SEND, body="🙂" * 4_001)).code is ErrorCode.INVALID


def test_a_body_is_kept_as_it_is() -> None:
    body = '  \u202e\u0301 "\\u0041" \n\t🙂 {[1, 2]}  '
    for data in (encode(SEND, body=body), json.dumps({**SEND, "body": body}, ensure_ascii=False)):
        command = parse_command(data if isinstance(data, bytes) else data.encode())
        assert isinstance(command, SendMessage)
        assert command.body == body


def test_many_problems_are_told_up_to_ten() -> None:
    error = refusal(encode(SEND, metadata={str(number): "\0" for number in range(50)}))
    assert len(error.details) == 10


def test_a_message_may_be_empty_with_an_attachment() -> None:
    command = parse_command(encode(SEND, body="", attachments=[{"upload_id": "a"}]))
    assert isinstance(command, SendMessage)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_command_or_a_refusal(data: bytes) -> None:
    outcome_of(parse_command, data)


@given(st.binary(max_size=20), st.integers(0, 150), st.integers(0, 20))
def test_a_damaged_command_is_a_command_or_a_refusal(noise: bytes, at: int, lost: int) -> None:
    data = encode(SEND, metadata={"a": [1, {"b": None}]})
    outcome_of(parse_command, data[:at] + noise + data[at + lost :])


@given(json_values)
def test_arbitrary_json_is_a_command_or_a_refusal(value: object) -> None:
    outcome_of(parse_command, json.dumps(value).encode())


@given(almost_commands, st.booleans())
def test_the_fast_path_and_the_strict_path_agree(value: dict[str, Any], ascii_only: bool) -> None:
    # Given a frame as either kind of client writes it
    text = json.dumps(value, ensure_ascii=ascii_only)
    data = text.encode("utf-8", "surrogatepass")
    # When both paths read it
    fast, strict = outcome_of(parse_command, data), outcome_of(paths._strict, data)
    # Then nothing tells them apart
    assert fast == strict


@given(almost_commands)
def test_whatever_is_accepted_can_be_stored(value: dict[str, Any]) -> None:
    try:
        command = parse_command(json.dumps(value).encode())
    except FrameError:
        return
    assert find_unstorable(msgspec.to_builtins(command)) == []
    msgspec.json.encode(command)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", ErrorCode.BAD_FRAME),
        (b"[]", ErrorCode.BAD_FRAME),
        (b'{"a":NaN}', ErrorCode.BAD_FRAME),
        (b'{"a":"\xff"}', ErrorCode.BAD_FRAME),
        (b'{"thread_id":"a\\u0000"}', ErrorCode.INVALID),
        (b'{"thread_id":"a","x":1e400}', ErrorCode.INVALID),
        (b'{"x":' + b"[" * 5_000 + b"]" * 5_000 + b"}", ErrorCode.INVALID),
        (b"{}", ErrorCode.INVALID),
        (b'{"thread_id":5}', ErrorCode.INVALID),
    ],
)
def test_a_rest_body_is_read_as_strictly_as_a_frame(data: bytes, code: ErrorCode) -> None:
    with pytest.raises(FrameError) as caught:
        parse_object(data, SubscribeThread)
    assert caught.value.code is code
    assert (code is ErrorCode.INVALID) == bool(caught.value.details)


def test_a_rest_body_needs_no_type() -> None:
    assert parse_object(b'{"thread_id":"a","more":1}', SubscribeThread) == SubscribeThread("a")


def test_every_error_code_has_a_status_and_a_sentence() -> None:
    assert set(HTTP_STATUS) == set(MEANING) == set(ErrorCode)
    assert all(text.endswith(".") for text in MEANING.values())
    assert set(RETRYABLE) < set(ErrorCode)


def test_what_may_be_tried_again_is_the_fault_of_the_moment() -> None:
    assert all(HTTP_STATUS[code] in {429, 500, 503} for code in RETRYABLE)
    assert all(code in RETRYABLE for code, status in HTTP_STATUS.items() if status >= 500)


def test_the_number_of_a_close_code_says_whether_to_come_back() -> None:
    assert set(CLOSE_REASONS) == set(CloseCode)
    assert {code.name for code in CloseCode if not may_reconnect(code)} == {
        "AUTHENTICATION_MISSING",
        "TOKEN_INVALID",
        "BANNED",
        "TOO_MANY_SESSIONS",
    }
    # A close frame holds 125 bytes, two of them the code.
    assert all(len(reason.encode()) <= 123 for reason in CLOSE_REASONS.values())
