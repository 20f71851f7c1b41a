"""Access entries: who sees, who may write, and why not."""

import msgspec
import pytest

from shared.access import AccessEntry, Kind, Member, Role, decode_access, decode_user
from shared.identity import UserId
from shared.protocol import ErrorCode

THREAD = "0190a0b1c2d37e4f8a9b0c1d2e3f4a5b"


def entry(kind: Kind = "group", *, archived: bool = False) -> AccessEntry:
    roles: dict[str, Role] = {"ava": "owner", "ann": "admin", "ben": "member"}
    members = {user: Member(role, "2026-11-24T10:00:00.000Z") for user, role in roles.items()}
    return AccessEntry(THREAD, 3, kind, "ava", archived, members)


def test_only_members_see_a_thread() -> None:
    assert entry().sees(UserId("ben"))
    assert not entry().sees(UserId("mallory"))


@pytest.mark.parametrize("kind", ["direct", "group", "broadcast"])
@pytest.mark.parametrize("archived", [False, True])
def test_a_stranger_hears_that_there_is_nothing(kind: Kind, archived: bool) -> None:
    reason = entry(kind, archived=archived).why_not_send(UserId("mallory"))
    assert reason is ErrorCode.NOT_FOUND


@pytest.mark.parametrize(
    ("kind", "user", "reason"),
    [
        ("direct", "ben", None),
        ("group", "ben", None),
        ("broadcast", "ben", ErrorCode.FORBIDDEN),
        ("broadcast", "ann", None),
        ("broadcast", "ava", None),
    ],
)
def test_in_a_broadcast_only_owner_and_admins_write(
    kind: Kind, user: str, reason: ErrorCode | None
) -> None:
    assert entry(kind).why_not_send(UserId(user)) is reason


@pytest.mark.parametrize("user", ["ava", "ann", "ben"])
@pytest.mark.parametrize("kind", ["direct", "group", "broadcast"])
def test_nobody_writes_to_an_archived_thread(kind: Kind, user: str) -> None:
    reason = entry(kind, archived=True).why_not_send(UserId(user))
    assert reason is ErrorCode.THREAD_ARCHIVED


def test_an_entry_comes_back_from_its_bytes() -> None:
    assert decode_access(msgspec.json.encode(entry())) == entry()


def test_a_member_sees_everything_unless_the_entry_says_from_when() -> None:
    value = msgspec.json.decode(msgspec.json.encode(entry()))
    del value["members"]["ben"]["visible_from"]
    value["members"]["ann"]["visible_from"] = 2**40
    members = decode_access(msgspec.json.encode(value)).members
    assert (members["ben"].visible_from, members["ann"].visible_from) == (0, 2**40)


@pytest.mark.parametrize(
    "value",
    [b"", b"{}", b"[]", b'{"thread_id":"x"}', b'{"members":{"ben":{"role":"king"}}}', b"\xff"],
)
def test_a_value_that_is_no_entry_is_an_error_and_never_an_empty_thread(value: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_access(value)
    with pytest.raises(msgspec.DecodeError):
        decode_user(value)


def test_a_user_entry_may_lack_a_name() -> None:
    user = decode_user(
        b'{"user_id":"ava","revision":1,"name":null,"avatar_url":null,"role":"creator"}'
    )
    assert (user.user_id, user.name, user.role) == ("ava", None, "creator")
