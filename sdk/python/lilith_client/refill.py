"""Filling a gap of one thread over REST, so that its reader notices no more than a short pause."""

import asyncio
import random
from typing import Any, Final

from lilith_client.errors import RestError
from lilith_client.inbox import Inbox
from lilith_client.policy import Backoff
from lilith_client.rest import Rest
from lilith_client.subscriptions import Fill, Subscriptions

RETRY_S_MAX: Final = 5.0


async def refill(fill: Fill, rest: Rest | None, subscriptions: Subscriptions, inbox: Inbox) -> None:
    """Hand on every change since the gap's start, as the thread is now, then let the thread be subscribed again.

    Cancelled (the connection ended) it leaves the position at the last change handed on.
    """
    if rest is None:
        subscriptions.skip_gap(fill)
        return
    try:
        await _read(fill, rest, subscriptions, inbox)
    except RestError as error:
        if error.code == "invalid":
            # Beyond the thread's end, as after log and database were restored from a backup: nothing links to it.
            subscriptions.skip_gap(fill)
            return
        for event in subscriptions.give_up(fill, error.code):
            inbox.put(event)


async def _read(fill: Fill, rest: Rest, subscriptions: Subscriptions, inbox: Inbox) -> None:
    cursor = None
    while True:
        page = await _page(rest, fill, cursor)
        for frame in page["items"]:
            await inbox.wait_for_room()
            # No await in between: a change that moved the position is never lost to a cancellation.
            for event in subscriptions.fill(fill, frame):
                inbox.put(event)
        cursor = page["next_cursor"]
        if cursor is None:
            subscriptions.filled(fill, page["cursor"])
            return


async def _page(rest: Rest, fill: Fill, cursor: str | None) -> dict[str, Any]:
    """Return one page, trying again for as long as the api says that it may work later."""
    backoff = Backoff(random.Random())  # noqa: S311 - jitter
    while True:
        try:
            return await rest.changes(
                fill.thread_id, after=fill.after.cursor, cursor=cursor, up_to=fill.until
            )
        except RestError as error:
            if not error.retryable:
                raise
            wait_s = max(error.retry_after_s or 0.0, backoff.next_s())
            await asyncio.sleep(min(RETRY_S_MAX, wait_s))
