"""A stretch of a thread's log as one reader may see it now: what a client that was away is sent. Pure: no I/O.

* A message deleted since keeps its place, with an empty body, no attachments, no metadata and ``deleted_at``; edits of
  it keep theirs with an empty body. Deleted is final: what was stored after it changes nothing.
* A message edited since shows its present body and ``edited_at``, and so does every edit of it.
* Folding empties events, it never leaves one out. Left out is only what was never shown: events that are visible to
  others, a second copy of a message, and everything between the reader's leaving and joining again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from shared.events import (
    MessageDeleted,
    MessageNew,
    MessageUpdated,
    ThreadMember,
    audience_of,
    changed_message,
    decode_event,
    encode_event,
    message_id_in,
)
from shared.identity import UserId

_CHANGES: Final = (b'{"type":"message.updated"', b'{"type":"message.deleted"')
_MEMBER: Final = b'{"type":"thread.member"'


class Stored(NamedTuple):
    """An event as the log holds it."""

    seq: int
    payload: bytes


class Folded(NamedTuple):
    """What the reader is sent, payloads for ``events.frame_of``; ``is_over``: the last one ends their reading."""

    shown: list[Stored]
    is_over: bool
    message_ids: frozenset[bytes]


@dataclass(slots=True)
class _Present:
    """How a message is now, as far as it changed within the stretch."""

    body: str = ""
    edited_at: str | None = None
    deleted_at: str | None = None


def fold(events: Sequence[Stored], reader: UserId) -> Folded:
    """Return what the reader, a member when the stretch begins, may see of it now."""
    visible, is_over = _visible(events, reader)
    present = _present(visible)
    shown: list[Stored] = []
    known: set[bytes] = set()
    for event in visible:
        message_id = message_id_in(event.payload)
        if message_id is not None:
            if message_id in known:
                continue
            known.add(message_id)
        shown.append(Stored(event.seq, _as_now(event.payload, message_id, present)))
    return Folded(shown, is_over, frozenset(known))


def _visible(events: Iterable[Stored], reader: UserId) -> tuple[list[Stored], bool]:
    visible: list[Stored] = []
    is_member = True
    for event in events:
        audience = audience_of(event.payload)
        payload = event.payload
        if audience is not None:
            if not audience.sees(reader):
                continue
            payload = audience.payload
            is_member = is_member or _joins(payload, reader)
        if is_member:
            visible.append(Stored(event.seq, payload))
        if audience is not None and audience.leaver == reader:
            is_member = False
    return visible, not is_member


def _joins(payload: bytes, reader: UserId) -> bool:
    if not payload.startswith(_MEMBER):
        return False
    event = _decoded(payload)
    return isinstance(event, ThreadMember) and (event.user_id, event.change) == (reader, "joined")


def _present(events: Iterable[Stored]) -> dict[bytes, _Present]:
    present: dict[bytes, _Present] = {}
    for event in events:
        if not event.payload.startswith(_CHANGES):
            continue
        change = _decoded(event.payload)
        if not isinstance(change, MessageUpdated | MessageDeleted):
            continue
        now = present.setdefault(change.message_id.encode(), _Present())
        if now.deleted_at is not None:
            continue
        if isinstance(change, MessageDeleted):
            now.body, now.deleted_at = "", change.deleted_at
        else:
            now.body, now.edited_at = change.body, change.edited_at
    return present


def _as_now(payload: bytes, message_id: bytes | None, present: dict[bytes, _Present]) -> bytes:
    if message_id is not None:
        now = present.get(message_id)
        return payload if now is None else _message_now(payload, now)
    if not payload.startswith(_CHANGES[0]):
        return payload
    edit = _decoded(payload)
    if not isinstance(edit, MessageUpdated):
        return payload
    now = present[edit.message_id.encode()]
    edited_at = edit.edited_at if now.edited_at is None else now.edited_at
    return encode_event(msgspec.structs.replace(edit, body=now.body, edited_at=edited_at))


def _message_now(payload: bytes, now: _Present) -> bytes:
    message = _decoded(payload)
    if not isinstance(message, MessageNew):
        return payload
    if now.deleted_at is not None:
        message = msgspec.structs.replace(message, body="", attachments=[], metadata={})
    else:
        message = msgspec.structs.replace(message, body=now.body)
    return changed_message(message, edited_at=now.edited_at, deleted_at=now.deleted_at)


def _decoded(payload: bytes) -> object:
    """Return the event, None when it is none of ours: it is passed on as it is, as it was when it came live."""
    try:
        return decode_event(payload)
    except msgspec.DecodeError:
        return None
