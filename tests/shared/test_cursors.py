"""Cursors: opaque, exact, and worth nothing in another thread."""

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from shared.cursors import BEGINNING, SEQ_MAX, cursor_suffix, decode_cursor, encode_cursor
from shared.errors import InvalidCursorError
from shared.identity import ThreadId

THREAD = ThreadId("0190a0b1c2d37e4f8a9b0c1d2e3f4a5b")
OTHER = ThreadId("0190a0b1c2d37e4f8a9b0c1d2e3f4a5c")
thread_ids = st.from_regex(r"[0-9a-f]{32}", fullmatch=True).map(ThreadId)
seqs = st.integers(min_value=0, max_value=SEQ_MAX)


@given(thread_ids, seqs)
def test_a_cursor_comes_back_as_the_seq_it_was(thread: ThreadId, seq: int) -> None:
    assert decode_cursor(thread, encode_cursor(thread, seq)) == seq


@given(thread_ids, thread_ids, st.integers(min_value=1, max_value=SEQ_MAX))
def test_a_cursor_of_another_thread_is_refused(one: ThreadId, other: ThreadId, seq: int) -> None:
    assume(cursor_suffix(one) != cursor_suffix(other))
    with pytest.raises(InvalidCursorError):
        decode_cursor(other, encode_cursor(one, seq))


def test_the_beginning_is_the_same_in_every_thread() -> None:
    assert encode_cursor(THREAD, 0) == encode_cursor(OTHER, 0) == BEGINNING == "0"
    assert decode_cursor(THREAD, "0") == decode_cursor(OTHER, "0") == 0


@given(thread_ids, st.text(max_size=30))
def test_a_text_that_is_accepted_is_exactly_the_cursor_of_its_seq(
    thread: ThreadId, text: str
) -> None:
    for candidate in (text, text + cursor_suffix(thread)):
        try:
            seq = decode_cursor(thread, candidate)
        except InvalidCursorError:
            continue
        assert encode_cursor(thread, seq) == candidate


@pytest.mark.parametrize(
    "digits",
    [
        "",
        "0",
        "00",
        "01",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1_0",
        "0x1",
        "A",
        "g",
        "٣",
        "f" * 14,
        "f" * 4000,
    ],
)
def test_malformed_digits_are_refused(digits: str) -> None:
    with pytest.raises(InvalidCursorError):
        decode_cursor(THREAD, digits + cursor_suffix(THREAD))


@pytest.mark.parametrize("cursor", ["", "1", "00", ".", None, 0, 1, ["0"], {}, "\ud800"])
def test_anything_that_is_no_cursor_is_refused(cursor: object) -> None:
    with pytest.raises(InvalidCursorError):
        decode_cursor(THREAD, cursor)


def test_the_largest_seq_fits_and_the_next_does_not() -> None:
    assert decode_cursor(THREAD, encode_cursor(THREAD, SEQ_MAX)) == SEQ_MAX
    with pytest.raises(InvalidCursorError):
        decode_cursor(THREAD, encode_cursor(THREAD, SEQ_MAX + 1))
