"""What a person types, key by key: enough of an editor for one line of chat. Pure: bytes in, keys out."""

import codecs
import unicodedata
from enum import Enum
from typing import Final

LINE_CHARS_MAX: Final = 4_000
_SHOWN_AS: Final = {"\n": "\n         ", "\t": " ", "\u200d": "\u200d"}
_ESCAPE: Final = "\x1b"
_END_OF_TEXT: Final = "\x04"
_ERASE_LINE: Final = "\x15"
_ERASE_WORD: Final = "\x17"
_BACKSPACES: Final = "\x7f\x08"


class Key(Enum):
    """What a key did, when it was no completed line."""

    EDITED = "the line changed"
    END = "Ctrl+D on an empty line"


class LineEditor:
    """The line being typed. Cursor keys are swallowed, not obeyed."""

    def __init__(self) -> None:
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._sequence = ""

    def feed(self, data: bytes) -> list[str | Key]:
        """Take what the terminal sent; return completed lines (``str``) and keys, in order."""
        taken = [self._take(character) for character in self._decoder.decode(data)]
        return [event for event in taken if event is not None]

    def _take(self, character: str) -> str | Key | None:
        if self._sequence or character == _ESCAPE:
            self._swallow(character)
            return None
        if character in "\r\n":
            line, self.text = self.text, ""
            return line
        if character == _END_OF_TEXT:
            return None if self.text else Key.END
        if character in _BACKSPACES:
            self.text = self.text[:-1]
        elif character == _ERASE_LINE:
            self.text = ""
        elif character == _ERASE_WORD:
            self.text = self.text.rstrip().rpartition(" ")[0]
        elif len(self.text) < LINE_CHARS_MAX and (character == "\t" or character.isprintable()):
            self.text += " " if character == "\t" else character
        else:
            return None
        return Key.EDITED

    def _swallow(self, character: str) -> None:
        """Drop an escape sequence: ``ESC [ … letter``, ``ESC O letter`` or ``ESC letter``."""
        self._sequence += character
        begins = self._sequence in {_ESCAPE, f"{_ESCAPE}[", f"{_ESCAPE}O"}
        parameters = self._sequence.startswith(f"{_ESCAPE}[") and not "@" <= character <= "~"
        if not begins and not parameters:
            self._sequence = ""


def printable(text: str) -> str:
    """Return a text of somebody else, safe to print: nothing in it can command the terminal.

    Line breaks are kept and indented, and so are the joiners of emoji; every other control character, those that turn
    the direction of writing included, is shown as U+FFFD.
    """
    return "".join(c if c.isprintable() else _SHOWN_AS.get(c, "\ufffd") for c in text)


def last_columns(text: str, columns: int) -> str:
    """Return the longest end of ``text`` that fits ``columns`` of a terminal; wide characters take two."""
    used = 0
    for index in range(len(text) - 1, -1, -1):
        used += 2 if unicodedata.east_asian_width(text[index]) in "WF" else 1
        if used > columns:
            return text[index + 1 :]
    return text
