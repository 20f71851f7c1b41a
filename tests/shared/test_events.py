"""Stored events: what is appended as bytes is exactly what a decoder reads."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from shared.cursors import SEQ_MAX, encode_cursor
from shared.events import (
    AnyThreadEvent,
    MessageNew,
    ThreadArchived,
    ThreadChanged,
    decode_event,
    digest_of,
    encode_event,
    frame_in,
    timestamp,
)
from shared.identity import ThreadId, content_digest
from shared.protocol import AnyFrame, NewMessage
from shared.protocol import ThreadArchived as ArchivedFrame
from shared.protocol import ThreadUpdated as UpdatedFrame

THREAD = ThreadId("0190a0b1c2d37e4f8a9b0c1d2e3f4a5b")
AT = "2026-11-24T10:00:00.000Z"
# What a frame may carry; lone surrogates are refused long before.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
metadata_values = st.dictionaries(
    texts, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts, max_size=3
)


def message(body: str = "hi", metadata: dict[str, Any] | None = None) -> MessageNew:
    return MessageNew(
        message_id="0190a0b1c2d38901bb9e52fdd3c94ea2",
        thread_id=THREAD,
        client_msg_id="0190a0b1c2d37e4f8a9b0c1d2e3f4a5b",
        sender_id="ava",
        kind="text",
        body=body,
        attachments=[],
        reply_to=None,
        metadata=metadata or {},
        sent_at=AT,
    )


EVENTS: list[AnyThreadEvent] = [
    message(),
    ThreadChanged(THREAD, "0190a0b1c2d37e4f8a9b0c1d2e3f4a5d", AT, "ava", {"title": "Trip"}),
    ThreadArchived(THREAD, "0190a0b1c2d37e4f8a9b0c1d2e3f4a5d", AT, "ava", "user"),
]


_FRAMES: msgspec.json.Decoder[AnyFrame] = msgspec.json.Decoder(AnyFrame)


def decode_frame(frame: bytes) -> AnyFrame:
    return _FRAMES.decode(frame)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_from_the_log(event: AnyThreadEvent) -> None:
    assert decode_event(encode_event(event)) == event


@given(
    texts,
    metadata_values,
    st.integers(1, SEQ_MAX),
    st.integers(0, SEQ_MAX),
)
def test_the_frame_of_a_stored_message_is_a_whole_message_new(
    body: str, metadata: dict[str, Any], seq: int, prev_seq: int
) -> None:
    # Given a message as the log holds it
    stored = message(body, metadata)
    # When its frame is made without decoding it
    frame = decode_frame(frame_in(THREAD, encode_event(stored), seq, prev_seq))
    # Then a client reads every field of message.new, and the position, but never who else may see it
    fields = msgspec.structs.asdict(stored)
    del fields["visible_to"]
    assert frame == NewMessage(
        **fields,
        quote=None,
        edited_at=None,
        deleted_at=None,
        reactions=[],
        pinned=False,
        seq=seq,
        cursor=encode_cursor(THREAD, seq),
        prev_seq=prev_seq,
    )


@given(texts, metadata_values)
def test_no_text_can_add_or_repeat_a_field_of_its_frame(
    body: str, metadata: dict[str, Any]
) -> None:
    frame = frame_in(THREAD, encode_event(message(body, metadata)), 7, 6)
    names = [name for name, _ in json.loads(frame, object_pairs_hook=list)]
    assert sorted(names) == sorted({"type", *NewMessage.__struct_fields__})


@pytest.mark.parametrize(("event", "kind"), [(EVENTS[1], UpdatedFrame), (EVENTS[2], ArchivedFrame)])
def test_the_frame_of_a_thread_event_carries_its_position(
    event: AnyThreadEvent, kind: type[AnyFrame]
) -> None:
    frame = decode_frame(frame_in(THREAD, encode_event(event), 9, 4))
    assert isinstance(frame, kind)
    assert isinstance(frame, UpdatedFrame | ArchivedFrame)
    assert (frame.seq, frame.prev_seq, frame.cursor) == (9, 4, encode_cursor(THREAD, 9))


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"{}", b'{"type":"message.sold"}', b'{"type":"message.new"}', b"\xff", b"{"],
)
def test_a_payload_that_is_none_of_ours_is_an_error(payload: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_event(payload)


def test_a_stored_message_has_the_digest_of_what_was_sent() -> None:
    resolved = [{"kind": "clip", "clip_id": "a", "name": "n"}, {"kind": "file", "upload_id": "b"}]
    stored = msgspec.structs.replace(
        message(metadata={"n": 1}), attachments=resolved, reply_to=THREAD
    )
    assert digest_of(stored) == content_digest("hi", ["a", "b"], THREAD, {"n": 1.0})
    assert digest_of(stored) != digest_of(message())


def test_a_later_version_may_add_fields() -> None:
    payload = encode_event(message())[:-1] + b',"mood":"good"}'
    assert decode_event(payload) == message()


def test_a_time_is_utc_with_milliseconds_and_z() -> None:
    moment = datetime(2026, 11, 24, 11, 0, 0, 999_999, timezone(timedelta(hours=1)))
    assert timestamp(moment) == "2026-11-24T10:00:00.999Z"
    assert timestamp(moment.replace(microsecond=0)) == "2026-11-24T10:00:00.000Z"


def test_a_time_by_default_is_now() -> None:
    before = datetime.now(UTC)
    told = datetime.fromisoformat(timestamp())
    assert before - timedelta(milliseconds=1) <= told <= datetime.now(UTC)
