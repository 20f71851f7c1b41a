"""Which account the embedded servers run as, and whether that account can reach a path.

PostgreSQL refuses to run as root. As root we run it (and nats-server) as ``nobody``, without adding
a user and without opening any directory of yours: a checkout below a 0700 home stays closed, and
what the account needs is copied to a place that it can reach.
"""

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

UNPRIVILEGED_ID: Final = 65534
REACHABLE_HOME: Final = Path("/var/lib/lilith")


class Account(NamedTuple):
    """A user and group id to run as, with no further groups."""

    uid: int
    gid: int


def server_account(effective_uid: int, data: Path | None = None) -> Account | None:
    """Return who the servers run as: None (our own account), except for root.

    Root runs them as the owner of ``data``, when that exists and is not root's (a user's platform
    that is started as root once), else as ``nobody``.
    """
    if effective_uid != 0:
        return None
    if data is not None and data.exists():
        info = data.stat()
        if info.st_uid != 0:
            return Account(info.st_uid, info.st_gid)
    return Account(UNPRIVILEGED_ID, UNPRIVILEGED_ID)


def can_reach(path: Path, account: Account | None) -> bool:
    """Return whether ``account`` may enter every directory down to ``path`` and read ``path``.

    A path that does not exist yet counts as its nearest existing parent.
    """
    if account is None:
        return True
    existing = path.resolve()
    while not existing.exists():
        existing = existing.parent
    needed = stat.S_IROTH | stat.S_IXOTH if existing.is_dir() else stat.S_IROTH
    return _allows(existing, account, needed) and all(
        _allows(parent, account, stat.S_IXOTH) for parent in existing.parents
    )


def give(path: Path, account: Account | None, *, mode: int) -> None:
    """Make ``path`` belong to ``account`` with ``mode``; the mode alone when it is our own."""
    path.chmod(mode)
    if account is not None:
        os.chown(path, account.uid, account.gid)


def _allows(path: Path, account: Account, needed: int) -> bool:
    info = path.stat()
    if info.st_uid == account.uid:
        return (info.st_mode >> 6) & needed == needed
    if info.st_gid == account.gid:
        return (info.st_mode >> 3) & needed == needed
    return info.st_mode & needed == needed
