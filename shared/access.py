"""Who may see and write a thread: the entry of bucket ``access`` and the questions asked of it. Pure: no I/O.

The api writes entries (compare-and-set by ``revision``: a lower one never wins), edges read and cache them. An entry
names up to 500 members. A user who is no member cannot tell a foreign thread from one that does not exist.
"""

from typing import Final, Literal

import msgspec

from shared.identity import UserId
from shared.protocol import ErrorCode

MEMBERS_MAX: Final = 500
"""Members of one entry; a larger thread is refused until it gets one key per member."""

Role = Literal["owner", "admin", "member"]
Kind = Literal["direct", "group", "broadcast"]


class Member(msgspec.Struct, frozen=True):
    """One member: the role, since when, and the seq from which on events are visible (0: all)."""

    role: Role
    joined_at: str
    visible_from: int = 0


class AccessEntry(msgspec.Struct, frozen=True):
    """What an edge must know of a thread to let somebody in."""

    thread_id: str
    revision: int
    kind: Kind
    owner_id: str
    archived: bool
    members: dict[str, Member]

    def sees(self, user_id: UserId) -> bool:
        """Return whether the user is a member."""
        return user_id in self.members

    def why_not_send(self, user_id: UserId) -> ErrorCode | None:
        """Return the reason why the user may not write here, or None if they may."""
        member = self.members.get(user_id)
        if member is None:
            return ErrorCode.NOT_FOUND
        if self.archived:
            return ErrorCode.THREAD_ARCHIVED
        if self.kind == "broadcast" and member.role == "member":
            return ErrorCode.FORBIDDEN
        return None


class UserEntry(msgspec.Struct, frozen=True):
    """What an edge must know of a user: the entry of bucket ``users``."""

    user_id: str
    revision: int
    name: str | None
    avatar_url: str | None
    role: str


_ACCESS_DECODER: Final = msgspec.json.Decoder(AccessEntry)
_USER_DECODER: Final = msgspec.json.Decoder(UserEntry)


def decode_access(value: bytes) -> AccessEntry:
    """Return the entry in a value of bucket ``access``.

    Raises:
        msgspec.DecodeError: Not one of ours.
    """
    return _ACCESS_DECODER.decode(value)


def decode_user(value: bytes) -> UserEntry:
    """Return the entry in a value of bucket ``users``.

    Raises:
        msgspec.DecodeError: Not one of ours.
    """
    return _USER_DECODER.decode(value)
