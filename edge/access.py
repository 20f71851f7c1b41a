"""The thread that a command names, and whether its sender may know of it: the first question of most commands."""

from collections.abc import Callable, Coroutine
from typing import Any

from edge.session import Session
from shared.access import AccessEntry
from shared.bus import BusError
from shared.errors import InvalidIdError
from shared.identity import ThreadId, canonical_id
from shared.protocol import ErrorCode

Work = Coroutine[Any, Any, None]
WithThread = Callable[[ThreadId, AccessEntry], Work | None]


def with_thread(session: Session, text: str, ref: str | None, proceed: WithThread) -> Work | None:
    """Call ``proceed`` with the thread and its access entry, at once when it is cached.

    A malformed id, an unknown thread and a foreign one get the same ``not_found``; entries that cannot be read at the
    moment are ``unavailable``.
    """
    try:
        thread_id = ThreadId(canonical_id(text))
    except InvalidIdError:
        session.fail(ErrorCode.NOT_FOUND, ref)
        return None
    entry = session.node.directory.threads.cached(thread_id)
    if entry is None:
        return _load(session, thread_id, ref, proceed)
    return _proceed_if_seen(session, thread_id, entry, ref, proceed)


async def _load(
    session: Session, thread_id: ThreadId, ref: str | None, proceed: WithThread
) -> None:
    try:
        entry = await session.node.directory.threads.load(thread_id)
    except BusError:
        session.fail(ErrorCode.UNAVAILABLE, ref)
        return
    work = _proceed_if_seen(session, thread_id, entry, ref, proceed)
    if work is not None:
        await work


def _proceed_if_seen(
    session: Session,
    thread_id: ThreadId,
    entry: AccessEntry | None,
    ref: str | None,
    proceed: WithThread,
) -> Work | None:
    if entry is None or not entry.sees(session.user_id):
        session.fail(ErrorCode.NOT_FOUND, ref)
        return None
    return proceed(thread_id, entry)
