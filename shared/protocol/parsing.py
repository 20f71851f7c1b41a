"""From the bytes of a text frame to a command, or to the exact reason why not.

The common frame takes the fast path: one search for anything unusual, one typed decode. Whatever is unusual or wrong
is read again, slowly, to name the problem: what PostgreSQL would refuse must be refused before it is published.
"""

import json
import math
import re
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from shared.errors import LilithError
from shared.protocol.codes import MEANING, ErrorCode
from shared.protocol.commands import (
    COMMANDS,
    METADATA_BYTES_MAX,
    NESTING_MAX,
    NUMBER_MAX,
    REF_CHARS_MAX,
    AnyCommand,
    AttachmentRef,
    MarkRead,
    SendMessage,
)
from shared.protocol.frames import Detail

T = TypeVar("T")

_DIGITS: Final = bytes.maketrans(b"123456789-", b"0" * 10)
_BLANKS: Final = b" \t\r\n"
_DECODER: Final[msgspec.json.Decoder[AnyCommand]] = msgspec.json.Decoder(AnyCommand)
# A string (an unfinished one runs to the end: time stays linear) or a bracket.
_BRACKET: Final = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_PROBLEM: Final = re.compile(r"(?P<problem>.*?)(?: - at `(?P<path>.*)`)?", re.DOTALL)
_DETAILS_MAX: Final = 10


class FrameError(LilithError):
    """The frame is refused. ``ref`` is set when the frame was an object with a valid one."""

    def __init__(
        self, code: ErrorCode, details: list[Detail] | None = None, ref: str | None = None
    ) -> None:
        super().__init__(MEANING[code])
        self.code = code
        self.details = details or []
        self.ref = ref


def parse_command(data: bytes) -> AnyCommand:
    """Return the command in the bytes of one text frame, which the WebSocket has checked to be UTF-8.

    Raises:
        FrameError: ``bad_frame``, ``unknown_type`` or ``invalid`` with the paths of its problems.
    """
    # Each level of nesting opens with a bracket: without nine of them nothing can be too deep.
    if _is_unusual(data) or data.count(b"{") + data.count(b"[") > NESTING_MAX:
        return _strict(data)
    try:
        command = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _strict(data)
    if type(command) is SendMessage and (
        command.metadata or command.attachments or not command.body
    ):
        check_content(command.body, command.attachments, command.metadata, command.ref)
    elif type(command) is MarkRead:
        _check_mark(command)
    return command


def _is_unusual(data: bytes) -> bool:
    """Return whether there may be an escape (NUL, surrogates) or a number outside a string.

    Texts may look like one too: that only costs the slow path. A regular expression took ten times as long.
    """
    bare = data.translate(_DIGITS, _BLANKS)
    return b"\\u" in data or b":0" in bare or b",0" in bare or b"[0" in bare


def check_content(
    body: str, attachments: list[AttachmentRef], metadata: dict[str, Any], ref: str | None = None
) -> None:
    """Check what the types of a message's content cannot say; REST asks here too.

    Raises:
        FrameError: ``invalid``: an empty message, an attachment without exactly one id, too much metadata.
    """
    details = [
        Detail(f"/attachments/{index}", "give exactly one of clip_id and upload_id")
        for index, item in enumerate(attachments)
        if (item.clip_id is None) == (item.upload_id is None)
    ]
    if not body and not attachments:
        details.append(Detail("/body", "may be empty only with attachments"))
    if len(msgspec.json.encode(metadata)) > METADATA_BYTES_MAX:
        details.append(Detail("/metadata", f"is larger than {METADATA_BYTES_MAX} bytes"))
    if details:
        raise FrameError(ErrorCode.INVALID, details, ref)


def parse_object(data: bytes, shape: type[T]) -> T:
    """Return a JSON object that came another way than the WebSocket (REST body, request), read as strictly as a frame.

    Raises:
        FrameError: ``bad_frame`` or ``invalid`` with the paths of its problems.
    """
    try:
        value = _load(data)
    except RecursionError as error:
        details = [Detail("", f"is nested deeper than {NESTING_MAX}")]
        raise FrameError(ErrorCode.INVALID, details) from error
    if not isinstance(value, dict):
        raise FrameError(ErrorCode.BAD_FRAME)
    if details := find_unstorable(value):
        raise FrameError(ErrorCode.INVALID, details)
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise FrameError(ErrorCode.INVALID, [_detail(error)]) from error


def find_unstorable(value: object) -> list[Detail]:
    """Return the places of a decoded JSON value that cannot be stored: at most ten of them.

    NUL, lone surrogates, numbers beyond 2^53, nesting beyond 8.
    """
    details: list[Detail] = []
    _walk(value, "", 1, details)
    return details[:_DETAILS_MAX]


def _strict(data: bytes) -> AnyCommand:
    try:
        value = _load(data)
    except RecursionError as error:
        details = [Detail("", f"is nested deeper than {NESTING_MAX}")]
        raise FrameError(ErrorCode.INVALID, details, _ref_of(_load(_flat(data)))) from error
    if not isinstance(value, dict):
        raise FrameError(ErrorCode.BAD_FRAME)
    ref = _ref_of(value)
    if details := find_unstorable(value):
        raise FrameError(ErrorCode.INVALID, details, ref)
    kind = value.get("type")
    if not isinstance(kind, str):
        raise FrameError(ErrorCode.INVALID, [Detail("/type", "is missing or no string")], ref)
    if kind not in COMMANDS:
        raise FrameError(ErrorCode.UNKNOWN_TYPE, ref=ref)
    try:
        command = msgspec.convert(value, COMMANDS[kind])
    except msgspec.ValidationError as error:
        raise FrameError(ErrorCode.INVALID, [_detail(error)], ref) from error
    if isinstance(command, SendMessage):
        check_content(command.body, command.attachments, command.metadata, ref)
    elif isinstance(command, MarkRead):
        _check_mark(command)
    return command


def _check_mark(command: MarkRead) -> None:
    if (command.message_id is None) == (command.seq is None):
        details = [Detail("", "give exactly one of message_id and seq")]
        raise FrameError(ErrorCode.INVALID, details, command.ref)


def _load(data: bytes) -> object:
    try:
        return json.loads(data.decode(), parse_constant=_refuse_constant, parse_int=_bounded_int)
    except ValueError as error:
        raise FrameError(ErrorCode.BAD_FRAME) from error


def _flat(data: bytes) -> bytes:
    """Return the frame with ``null`` for every nested value: what Python can read of one that is far too deep."""
    depth, start, kept = 0, 0, []
    for match in _BRACKET.finditer(data):
        if match[0] in (b"[", b"{"):
            depth += 1
            if depth == 2:
                kept.append(data[start : match.start()] + b"null")
        elif match[0] in (b"]", b"}"):
            depth -= 1
            if depth == 1:
                start = match.end()
    return b"".join(kept) + (data[start:] if depth <= 1 else b"")


def _ref_of(value: object) -> str | None:
    ref = value.get("ref") if isinstance(value, dict) else None
    valid = isinstance(ref, str) and len(ref) <= REF_CHARS_MAX and not find_unstorable(ref)
    return ref if valid else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _bounded_int(digits: str) -> int | float:
    # Python refuses to read integers of more than 4,300 digits; infinity is out of range just as well.
    return int(digits) if len(digits) <= 32 else math.inf


def _walk(value: object, path: str, depth: int, details: list[Detail]) -> None:
    if isinstance(value, str):
        if problem := _text_problem(value):
            details.append(Detail(path, problem))
    elif isinstance(value, int | float):
        if not abs(value) <= NUMBER_MAX:
            details.append(Detail(path, "is a number beyond 2^53"))
    elif isinstance(value, dict | list):
        if depth > NESTING_MAX:
            details.append(Detail(path, f"is nested deeper than {NESTING_MAX}"))
            return
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            _walk_key(key, path, details)
            _walk(item, f"{path}/{_escape(key)}", depth + 1, details)


def _walk_key(key: object, path: str, details: list[Detail]) -> None:
    if isinstance(key, str) and (problem := _text_problem(key)):
        details.append(Detail(path, f"has a key that {problem}"))


def _text_problem(text: str) -> str | None:
    if "\0" in text:
        return "contains NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "contains a lone surrogate"
    return None


def _escape(key: object) -> str:
    text = str(key).replace("~", "~0").replace("/", "~1")
    return text.encode("utf-8", "replace").decode()[:64]


def _detail(error: msgspec.ValidationError) -> Detail:
    match = _PROBLEM.fullmatch(str(error))
    if match is None:
        return Detail("", str(error))
    problem, path = match["problem"].replace("`", ""), match["path"] or ""
    if missing := re.fullmatch(r"Object missing required field (\w+)", problem):
        return Detail(f"{_pointer(path)}/{missing[1]}", "is missing")
    return Detail(_pointer(path), problem)


def _pointer(path: str) -> str:
    """Return the JSON Pointer of one of msgspec's paths: ``$.attachments[0].clip_id``."""
    return re.sub(r"\[(\d+|\.\.\.)\]", r"/\1", path.removeprefix("$")).replace(".", "/")
