"""One line of chat, key by key, and texts of others that must not command the terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.line_editor import LINE_CHARS_MAX, Key, LineEditor, last_columns, printable


def lines_of(data: bytes) -> list[str | Key]:
    return [event for event in LineEditor().feed(data) if event is not Key.EDITED]


def test_typed_lines_come_out_in_order() -> None:
    assert lines_of(b"hello\rworld\n") == ["hello", "world"]


def test_a_character_may_arrive_in_pieces() -> None:
    editor = LineEditor()
    for byte in "Grüße 👋".encode():
        editor.feed(bytes([byte]))
    assert editor.text == "Grüße 👋"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (b"abc\x7f\x08", "a"),
        (b"\x7f", ""),
        (b"one two\x17", "one"),
        (b"one two \x17", "one"),
        (b"one two\x15", ""),
        (b"a\tb", "a b"),
        (b"a\x1b[Db", "ab"),
        (b"a\x1b[1;5Cb", "ab"),
        (b"a\x1bOAb", "ab"),
        (b"a\x1bxb", "ab"),
        (b"a\x00\x07b", "ab"),
    ],
    ids=repr,
)
def test_keys_edit_the_line(keys: bytes, text: str) -> None:
    editor = LineEditor()
    editor.feed(keys)
    assert editor.text == text


def test_control_d_ends_an_empty_line_only() -> None:
    assert lines_of(b"\x04") == [Key.END]
    assert lines_of(b"text\x04") == []


def test_a_line_has_an_end() -> None:
    editor = LineEditor()
    editor.feed(b"x" * (LINE_CHARS_MAX + 100))
    assert len(editor.text) == LINE_CHARS_MAX


def test_every_change_is_told_so_that_the_other_side_sees_typing() -> None:
    assert LineEditor().feed(b"a\x1b[D") == [Key.EDITED]


@given(st.binary(max_size=40))
def test_no_input_breaks_the_editor(data: bytes) -> None:
    editor = LineEditor()
    editor.feed(data)
    assert all(character.isprintable() for character in editor.text)


def test_a_message_cannot_command_the_terminal() -> None:
    assert printable("\x1b]0;owned\x07\x1b[2J\r") == "\ufffd]0;owned\ufffd\ufffd[2J\ufffd"
    assert "\u202e" not in printable("abc\u202edef")


def test_lines_and_emoji_stay_as_they_are_meant() -> None:
    family = "👩\u200d👧"
    assert printable(f"one\n{family}") == f"one\n         {family}"


@given(st.text(max_size=80))
def test_nothing_but_line_breaks_and_joiners_is_left_of_control_characters(text: str) -> None:
    assert all(c.isprintable() or c in "\n\u200d" for c in printable(text))


def test_the_end_of_a_long_line_is_shown() -> None:
    assert last_columns("abcdef", 3) == "def"
    assert last_columns("ab", 3) == "ab"
    assert last_columns("日本語", 5) == "本語"
