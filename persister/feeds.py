"""Tells others what was stored: domain events to platform services, ``thread.activity`` to the members' sessions.

The ``publish`` of the persister's outbox. Feeds carry the state of a thread, not a change, so many messages of one
thread become one frame per member, and a frame sent twice does no harm. Only present members are asked for, after
the message was stored: whoever was removed before it is not among them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from persister import queries
from persister.projections import Sent
from shared.access import MEMBERS_MAX
from shared.bus import Bus, OutgoingMessage
from shared.cursors import encode_cursor
from shared.identity import ThreadId, UserId
from shared.outbox import OutboxRow, store_events
from shared.protocol import LastMessage, ThreadActivity
from shared.subjects import user_subject

if TYPE_CHECKING:
    import asyncpg

UNREAD_MAX: Final = 1_000
"""Counts are exact below it; at it they mean "so many or more"."""
PREVIEW_CHARS_MAX: Final = 100
MESSAGE_SENT_EVENT: Final = "messaging.message.sent"
SOURCE: Final = "/lilith/persister"
CLOUDEVENT_HEADERS: Final[Mapping[str, str]] = {"content-type": "application/cloudevents+json"}

_FLUSH_EVERY: Final = 2_000
"""Frames between two flushes: bounds what waits unsent in this process."""
_DECODER: Final = msgspec.json.Decoder(Sent)
_ENCODER: Final = msgspec.json.Encoder()


class CloudEvent(msgspec.Struct, frozen=True):
    """A domain event in structured JSON (CloudEvents 1.0). ``data`` is JSON already."""

    id: str
    type: str
    subject: str
    time: str
    data: msgspec.Raw
    specversion: str = "1.0"
    source: str = SOURCE
    datacontenttype: str = "application/json"


class Member(msgspec.Struct, frozen=True):
    """A present member of a thread, and what they have not read in it."""

    user_id: str
    visible_from: int
    unread: int


class Feeds:
    """Publishes rows of ``persister_outbox``."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", bus: Bus) -> None:
        self._pool = pool
        self._bus = bus

    async def publish(self, rows: Sequence[OutboxRow]) -> None:
        """Publish the rows, in order; returns when the server has all of it.

        Raises:
            BusError: Not everything is published; call again with the same rows.
            asyncpg.PostgresError, OSError: The members could not be read.
        """
        sent = [(row.payload, _DECODER.decode(row.payload)) for row in rows]
        threads = list(dict.fromkeys(message.thread_id for _, message in sent))
        members = await self._members(threads)
        counts = await self._count_members(threads, members)
        events = [
            message_sent(payload, message, members.get(message.thread_id, ()), counts)
            for payload, message in sent
        ]
        await store_events(self._bus, events)
        await self._tell(threads, members)

    async def _members(self, threads: Sequence[str]) -> dict[str, list[Member]]:
        """Return the members of each thread: one more than ``MEMBERS_MAX`` when it is too big for feeds."""
        members: dict[str, list[Member]] = {}
        for row in await self._pool.fetch(
            queries.MEMBERS_AND_UNREAD, threads, MEMBERS_MAX + 1, UNREAD_MAX
        ):
            member = Member(row["user_id"], row["visible_from"], row["unread"])
            members.setdefault(row["thread_id"], []).append(member)
        return members

    async def _count_members(
        self, threads: Sequence[str], members: Mapping[str, Sequence[Member]]
    ) -> dict[str, int]:
        """Return the number of members of those threads that are too big to name them."""
        big = [thread for thread in threads if len(members.get(thread, ())) > MEMBERS_MAX]
        if not big:
            return {}
        rows = await self._pool.fetch(queries.COUNT_MEMBERS, big)
        return {row["thread_id"]: row["members"] for row in rows}

    async def _tell(self, threads: Sequence[str], members: Mapping[str, Sequence[Member]]) -> None:
        told = [thread for thread in threads if 0 < len(members.get(thread, ())) <= MEMBERS_MAX]
        users = list({member.user_id for thread in told for member in members[thread]})
        states = await self._pool.fetch(queries.THREAD_STATES, told, PREVIEW_CHARS_MAX)
        totals = {
            row["user_id"]: row["unread_total"]
            for row in await self._pool.fetch(queries.UNREAD_TOTALS, users, UNREAD_MAX)
        }
        unsent = 0
        for state in states:
            for user_id, frame in activity(dict(state), members[state["thread_id"]], totals):
                self._bus.publish(user_subject(UserId(user_id)), frame)
                unsent += 1
                if unsent == _FLUSH_EVERY:
                    await self._bus.flush()
                    unsent = 0
        # Published means that the server has them; a broken connection would have lost what was only written.
        await self._bus.flush()


def message_sent(
    payload: bytes, sent: Sent, members: Iterable[Member], counts: Mapping[str, int]
) -> OutgoingMessage:
    """Return the CloudEvent of a message.

    Args:
        payload: Its outbox row's: the event's data without recipients, which are appended as bytes.
        sent: The same, decoded.
        members: The present members; those who may see it are the recipients, without the sender.
        counts: Number of members of the threads that are too big to name them.
    """
    if sent.thread_id in counts:
        recipients = b',"recipient_count":%d}' % (counts[sent.thread_id] - 1)
    else:
        users = [
            member.user_id
            for member in members
            if member.user_id != sent.sender_id and member.visible_from <= sent.seq
        ]
        recipients = b',"recipients":%b}' % _ENCODER.encode(users)
    event_id = f"{sent.message_id}.sent"
    event = CloudEvent(
        id=event_id,
        type=MESSAGE_SENT_EVENT,
        subject=sent.thread_id,
        time=sent.sent_at,
        data=msgspec.Raw(payload[:-1] + recipients),
    )
    return OutgoingMessage(MESSAGE_SENT_EVENT, _ENCODER.encode(event), event_id, CLOUDEVENT_HEADERS)


def activity(
    state: Mapping[str, Any], members: Iterable[Member], totals: Mapping[str, int]
) -> Iterator[tuple[str, bytes]]:
    """Yield the frame for each member of a thread: (user id, ``thread.activity``).

    Args:
        state: A row of ``queries.THREAD_STATES``.
        members: The present members.
        totals: Unread messages over all threads, by user; none is 0.
    """
    thread_id = ThreadId(state["thread_id"])
    cursor = encode_cursor(thread_id, state["last_seq"])
    last = (
        LastMessage(state["message_id"], state["sender_id"], state["preview"], state["sent_at"])
        if state["message_id"] is not None
        else None
    )
    for member in members:
        frame = ThreadActivity(
            thread_id=thread_id,
            cursor=cursor,
            unread=member.unread,
            # Read at another moment than ``unread``; a total below one of its parts would be a visible lie.
            unread_total=max(member.unread, totals.get(member.user_id, 0)),
            last_message=last if state["last_message_seq"] >= member.visible_from else None,
            me={},
        )
        yield member.user_id, _ENCODER.encode(frame)
