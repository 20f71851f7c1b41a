"""The fold: what a client that was away is sent of a stretch of the log, against a model written another way."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edge.fold import Stored, fold
from shared.cursors import cursor_suffix
from shared.events import (
    AnyThreadEvent,
    MessageDeleted,
    MessageNew,
    MessageUpdated,
    ThreadMember,
    encode_event,
    frame_of,
)
from shared.identity import ThreadId, UserId

THREAD = ThreadId("0" * 32)
READER = UserId("ava")
Frame = dict[str, Any]


def message(number: int, body: str = "hello", **fields: Any) -> MessageNew:  # noqa: ANN401
    chosen: dict[str, Any] = {
        "attachments": [{"kind": "image", "upload_id": "u"}],
        "metadata": {"a": 1},
        **fields,
    }
    return MessageNew(
        message_id=f"{number:032x}",
        thread_id=THREAD,
        client_msg_id="c",
        sender_id="ben",
        kind="text",
        body=body,
        reply_to=None,
        sent_at="2026-11-24T00:00:00.000Z",
        **chosen,
    )


def edit(number: int, body: str, at: str = "edited", **fields: Any) -> MessageUpdated:  # noqa: ANN401
    return MessageUpdated(
        thread_id=THREAD,
        event_id="e",
        message_id=f"{number:032x}",
        body=body,
        edited_at=at,
        editor_id="ben",
        **fields,
    )


def deletion(number: int, at: str = "deleted", **fields: Any) -> MessageDeleted:  # noqa: ANN401
    return MessageDeleted(
        thread_id=THREAD,
        event_id="e",
        message_id=f"{number:032x}",
        deleted_at=at,
        by="ben",
        **fields,
    )


def membership(change: Any, user: str = READER) -> ThreadMember:  # noqa: ANN401
    return ThreadMember(
        thread_id=THREAD, event_id="e", at="t", by="ben", user_id=user, role="member", change=change
    )


def shown(*events: AnyThreadEvent, reader: str = READER) -> list[Frame]:
    """The frames of a stretch, as a client reads them."""
    stretch = [Stored(seq, encode_event(event)) for seq, event in enumerate(events, start=1)]
    suffix = cursor_suffix(THREAD).encode()
    frames, prev_seq = [], 0
    for seq, payload in fold(stretch, UserId(reader)).shown:
        frames.append(json.loads(frame_of(payload, seq, prev_seq, suffix)))
        prev_seq = seq
    return frames


def test_an_untouched_stretch_is_what_came_live() -> None:
    events: list[AnyThreadEvent] = [message(1), edit(7, "of an older message"), message(2)]
    suffix = cursor_suffix(THREAD).encode()
    live = [
        json.loads(frame_of(encode_event(event), seq, seq - 1, suffix))
        for seq, event in enumerate(events, start=1)
    ]
    assert shown(*events) == live


def test_a_deleted_message_keeps_its_place_and_nothing_else() -> None:
    first, change, gone = shown(message(1, "secret"), edit(1, "secret too"), deletion(1, "noon"))
    assert (first["body"], first["attachments"], first["metadata"]) == ("", [], {})
    assert (first["deleted_at"], first["quote"], first["reactions"]) == ("noon", None, [])
    assert (change["type"], change["body"]) == ("message.updated", "")
    assert gone["deleted_at"] == "noon"
    assert [frame["seq"] for frame in (first, change, gone)] == [1, 2, 3]


def test_an_edited_message_has_its_present_body_everywhere() -> None:
    first, *edits = shown(message(1, "a"), edit(1, "b", "1st"), edit(1, "c", "2nd"))
    assert (first["body"], first["edited_at"], first["deleted_at"]) == ("c", "2nd", None)
    assert first["metadata"] == {"a": 1}
    assert [(frame["body"], frame["edited_at"]) for frame in edits] == [("c", "2nd"), ("c", "2nd")]


def test_deleted_is_final() -> None:
    first, gone, late, again = shown(
        message(1), deletion(1, "noon"), edit(1, "back", "later"), deletion(1, "night")
    )
    assert (first["body"], first["deleted_at"], first["edited_at"]) == ("", "noon", None)
    assert (late["body"], gone["deleted_at"], again["deleted_at"]) == ("", "noon", "night")


def test_a_deletion_for_oneself_empties_it_for_oneself_only() -> None:
    stretch = (message(1, "x"), deletion(1, visible_to=[READER]), message(2))
    mine, theirs = shown(*stretch), shown(*stretch, reader="ben")
    assert [frame["body"] for frame in mine if "body" in frame] == ["", "hello"]
    assert [(frame["seq"], frame["prev_seq"]) for frame in mine] == [(1, 0), (2, 1), (3, 2)]
    assert [(frame["seq"], frame["prev_seq"]) for frame in theirs] == [(1, 0), (3, 1)]
    assert theirs[0]["body"] == "x"
    assert all("visible_to" not in frame for frame in mine)


def test_metadata_that_looks_like_an_audience_is_none() -> None:
    (frame,) = shown(message(1, metadata={"visible_to": []}))
    assert frame["metadata"] == {"visible_to": []}


def test_nothing_is_shown_between_leaving_and_joining_again() -> None:
    frames = shown(message(1), membership("removed"), message(2), membership("joined"), message(3))
    assert [frame["seq"] for frame in frames] == [1, 2, 4, 5]
    stretch = [Stored(1, encode_event(membership("left"))), Stored(2, encode_event(message(1)))]
    folded = fold(stretch, READER)
    assert ([event.seq for event in folded.shown], folded.is_over) == ([1], True)
    assert not fold(stretch, UserId("ben")).is_over


def test_the_second_copy_of_a_message_is_passed_over() -> None:
    assert [frame["seq"] for frame in shown(message(1), message(2), message(1))] == [1, 2]


@st.composite
def stretches(draw: st.DrawFn) -> list[AnyThreadEvent]:
    """Messages, edits and deletions of them in any order, some for some users only."""
    events: list[AnyThreadEvent] = []
    for number in range(draw(st.integers(0, 30))):
        target = draw(st.integers(0, 5))
        viewers = draw(st.sampled_from([None, None, None, [READER], ["ben"], []]))
        kind = draw(st.sampled_from(["new", "new", "edit", "delete"]))
        if kind == "new":
            events.append(message(100 + number if target else target, f"body {number}"))
        elif kind == "edit":
            events.append(edit(target, f"edit {number}", f"at {number}", visible_to=viewers))
        else:
            events.append(deletion(target, f"at {number}", visible_to=viewers))
    return events


@given(stretches())
def test_a_client_that_applies_the_fold_ends_where_one_that_was_there_ended(
    events: list[AnyThreadEvent],
) -> None:
    # Given what somebody saw who was there all the time: a reader of every visible event, in order
    visible = [
        (seq, event)
        for seq, event in enumerate(events, start=1)
        if event.visible_to is None or READER in event.visible_to
    ]
    texts: dict[str, str] = {}
    deleted: set[str] = set()
    seen: set[str] = set()
    expected: list[int] = []
    for seq, event in visible:
        if isinstance(event, MessageNew):
            if event.message_id in seen:
                continue
            seen.add(event.message_id)
            texts.setdefault(event.message_id, event.body)
        expected.append(seq)
        if isinstance(event, MessageUpdated) and event.message_id not in deleted:
            texts[event.message_id] = event.body
        elif isinstance(event, MessageDeleted):
            deleted.add(event.message_id)
            texts[event.message_id] = ""
    # When somebody who was away is sent the fold
    frames = shown(*events)
    # Then no event is missing, the chain is whole, and each text is the present one from the first frame on
    assert [frame["seq"] for frame in frames] == expected
    assert [frame["prev_seq"] for frame in frames] == [0, *expected][:-1]
    changed = {e.message_id for _, e in visible if isinstance(e, MessageUpdated | MessageDeleted)}
    for frame in frames:
        if "body" in frame and frame["message_id"] in changed:
            assert frame["body"] == texts[frame["message_id"]]
        if frame["type"] == "message.new":
            assert (frame["deleted_at"] is not None) == (frame["message_id"] in deleted)
