"""Filling a gap of one thread over REST, so that its reader never notices more than a short pause."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, Final

from lilith_client.errors import RestError
from lilith_client.inbox import Inbox
from lilith_client.objects import Event
from lilith_client.policy import Backoff
from lilith_client.rest import PAGE, Rest
from lilith_client.subscriptions import Fill, Subscriptions

UNKNOWN_START_MAX: Final = 2_000
"""Messages looked at, newest first, when only the cursor of the gap's start is known and not its seq."""


async def refill(fill: Fill, rest: Rest | None, subscriptions: Subscriptions, inbox: Inbox) -> None:
    """Hand on what is missing, then the live events held meanwhile; the thread is live when this returns.

    Cancelled (the connection ended) it leaves the position at the last message handed on.
    """
    if rest is None:
        await _put(subscriptions.skip_gap(fill), inbox)
    else:
        try:
            async for message in _missing(fill, rest):
                await _put(subscriptions.fill(fill.thread_id, message), inbox)
            subscriptions.filled(fill)
        except RestError as error:
            await _put(subscriptions.end(fill.thread_id, error.code), inbox)
    while (events := subscriptions.next_held(fill.thread_id)) is not None:
        await _put(events, inbox)


async def _missing(fill: Fill, rest: Rest) -> AsyncIterator[dict[str, Any]]:
    """Yield the messages after the gap's start, oldest first."""
    seq = fill.after.seq if fill.after.cursor != "0" else 0
    if seq is None:
        for message in await _after_unknown(fill, rest):
            yield message
        return
    while True:
        page = await _page(rest, fill, after=seq)
        for message in page:
            seq = message["seq"]
            yield message
        if len(page) < PAGE:
            return


async def _after_unknown(fill: Fill, rest: Rest) -> list[dict[str, Any]]:
    """Return, oldest first, what follows a cursor of unknown seq: back to the message that has this cursor."""
    found: list[dict[str, Any]] = []
    before: int | None = None
    while len(found) < UNKNOWN_START_MAX:
        page = await _page(rest, fill, before=before)
        for message in page:
            if message["cursor"] == fill.after.cursor or _is_before(message, fill.since):
                return found[::-1]
            found.append(message)
        if len(page) < PAGE:
            break
        before = page[-1]["seq"]
    return found[::-1]


def _is_before(message: dict[str, Any], since: str | None) -> bool:
    return since is not None and message["sent_at"] < since


async def _page(
    rest: Rest, fill: Fill, *, before: int | None = None, after: int | None = None
) -> list[dict[str, Any]]:
    """Return one page, trying again for as long as the api says that it may work later."""
    backoff = Backoff(random.Random())  # noqa: S311 - jitter
    while True:
        try:
            return await rest.messages(fill.thread_id, before=before, after=after, up_to=fill.until)
        except RestError as error:
            if not error.retryable:
                raise
            await asyncio.sleep(min(5.0, max(error.retry_after_s or 0.0, backoff.next_s())))


async def _put(events: list[Event], inbox: Inbox) -> None:
    for event in events:
        await inbox.wait_for_room()
        inbox.put(event)
