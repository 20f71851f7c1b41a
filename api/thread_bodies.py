"""The bodies that threads are made and changed with, and what they mean."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from api.problems import ProblemError, invalid
from api.thread_changes import NewThread, ThreadState
from shared.access import MEMBERS_MAX, Role
from shared.errors import InvalidIdError
from shared.identity import UserId, user_id
from shared.protocol import METADATA_BYTES_MAX, Detail, ErrorCode

TITLE_CHARS_MAX: Final = 200
_DETAILS_MAX: Final = 10

Title = Annotated[str, msgspec.Meta(min_length=1, max_length=TITLE_CHARS_MAX)]


class CreateThread(msgspec.Struct, frozen=True):
    """A new thread. ``participants`` are the others; the caller always belongs."""

    kind: Literal["direct", "group", "broadcast"]
    participants: list[str]
    title: Title | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    history: Literal["all", "joined"] | None = None

    def checked(self, owner_id: UserId) -> NewThread:
        """Return the thread to make.

        Raises:
            ProblemError: ``invalid`` with the paths, or ``limit_reached``.
        """
        problems_found = []
        others: dict[UserId, None] = {}
        for index, name in enumerate(self.participants):
            try:
                others[user_id(name)] = None
            except InvalidIdError:
                problems_found.append(Detail(f"/participants/{index}", "is no user id"))
        others.pop(owner_id, None)
        if problems_found:
            raise ProblemError(ErrorCode.INVALID, errors=problems_found[:_DETAILS_MAX])
        if self.kind == "direct" and len(others) != 1:
            raise invalid("/participants", "a direct thread has exactly one other participant")
        if len(others) + 1 > MEMBERS_MAX:
            detail = f"A thread has at most {MEMBERS_MAX} participants, the caller included."
            raise ProblemError(ErrorCode.LIMIT_REACHED, detail)
        check_metadata(self.metadata)
        history = self.history or ("all" if self.kind == "direct" else "joined")
        return NewThread(self.kind, owner_id, list(others), self.title, self.metadata, history)


class ReplaceThread(msgspec.Struct, frozen=True):
    """The whole changeable part of a thread: what is left out gets its default."""

    title: Title | None = None
    metadata: dict[str, Any] | None = None
    archived: bool = False

    def state(self) -> ThreadState:
        """Return the state that the body describes."""
        return ThreadState(self.title, self.metadata or {}, self.archived)


class PatchThread(msgspec.Struct, frozen=True):
    """A JSON Merge Patch of a thread: what is left out stays as it is."""

    title: Title | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET
    archived: bool | UnsetType | None = UNSET

    def applied_to(self, old: ThreadState) -> ThreadState:
        """Return the state after the patch."""
        metadata = old.metadata
        if self.metadata is not UNSET:
            merged = merge_patch(old.metadata, self.metadata)
            metadata = merged if isinstance(merged, dict) else {}
        return ThreadState(
            title=old.title if self.title is UNSET else self.title,
            metadata=metadata,
            archived=old.archived if self.archived is UNSET else bool(self.archived),
        )


class AddMember(msgspec.Struct, frozen=True):
    """Who is to be a member. ``owner`` hands the thread over; without a role a new member is a plain one."""

    user_id: str
    role: Role | None = None

    def checked(self) -> UserId:
        """Return the user's id.

        Raises:
            ProblemError: ``invalid``.
        """
        try:
            return user_id(self.user_id)
        except InvalidIdError as error:
            raise invalid("/user_id", "is no user id") from error


def merge_patch(target: object, patch: object) -> object:
    """Return ``target`` after a JSON Merge Patch (RFC 7396): null removes, objects merge, the rest replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def check_metadata(metadata: dict[str, Any]) -> None:
    """Refuse metadata that is too large.

    Raises:
        ProblemError: ``invalid``.
    """
    if len(msgspec.json.encode(metadata)) > METADATA_BYTES_MAX:
        raise invalid("/metadata", f"is larger than {METADATA_BYTES_MAX} bytes")
