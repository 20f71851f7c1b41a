"""Telling the api who is here: a user it does not know yet, or whose token says another name or role."""

import logging
from typing import Final

import msgspec

from edge.background import Spawn
from edge.directory import Directory
from shared.access import UserEntry
from shared.auth import Identity
from shared.bus import Bus, BusError
from shared.identity import UserId
from shared.subjects import SVC_USER_SEEN

TIMEOUT_S: Final = 5.0
AT_ONCE_MAX: Final = 256
"""Introductions under way; beyond it a user is introduced at their next connection."""

_log = logging.getLogger(__name__)


class Introductions:
    """Sends ``svc.user.seen`` when the entry of a user is absent or disagrees with their token."""

    def __init__(self, fabric: Bus, directory: Directory, spawn: Spawn) -> None:
        self._fabric = fabric
        self._directory = directory
        self._spawn = spawn
        # The newest token of each user whose introduction is under way.
        self._newest: dict[UserId, Identity] = {}

    def introduce(self, identity: Identity) -> None:
        """Compare in the background; nobody waits for it, and a failure is made good at the next connection."""
        entry = self._directory.users.cached(identity.user_id)
        if entry is not None and _agrees(entry, identity):
            return
        if identity.user_id in self._newest:
            self._newest[identity.user_id] = identity
        elif len(self._newest) < AT_ONCE_MAX:
            self._newest[identity.user_id] = identity
            self._spawn(self._run(identity.user_id))

    async def _run(self, user_id: UserId) -> None:
        told: Identity | None = None
        try:
            while told is not self._newest[user_id]:
                told = self._newest[user_id]
                await self._compare(told)
        except BusError as error:
            _log.debug("a user could not be introduced to the api: %s", error)
        finally:
            del self._newest[user_id]

    async def _compare(self, identity: Identity) -> None:
        entry = await self._directory.users.load(identity.user_id)
        if entry is None or not _agrees(entry, identity):
            seen = {"user_id": identity.user_id, "name": identity.name, "role": identity.role}
            await self._fabric.request(
                SVC_USER_SEEN, msgspec.json.encode(seen), timeout_s=TIMEOUT_S
            )


def _agrees(entry: UserEntry, identity: Identity) -> bool:
    # A token without a name says nothing about it: the profile service may know better.
    return entry.role == identity.role and identity.name in (None, entry.name)
