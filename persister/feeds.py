"""Tells others what was stored: domain events to platform services, ``thread.activity`` to the members' sessions.

The ``publish`` of the persister's outbox. Feeds carry the state of a thread, not a change, so many messages of one
thread become one frame per member, and a frame sent twice does no harm. Only present members are asked for, after
the message was stored: whoever was removed before it is not among them. Who leaves while the frames are on their way
is told once more that the thread is theirs no longer: the api's own farewell may have come before our frame.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from persister import queries
from persister.announcements import (
    CHANGE_EVENTS,
    Member,
    message_changed,
    message_read,
    message_sent,
)
from persister.projections import MESSAGE_SENT, Changed, Sent
from persister.receipts import MESSAGE_READ, Read
from shared.access import MEMBERS_MAX
from shared.bus import Bus, OutgoingMessage
from shared.cursors import encode_cursor
from shared.identity import ThreadId, UserId
from shared.outbox import OutboxRow, store_events
from shared.protocol import UNREAD_MAX, LastMessage, ThreadActivity
from shared.subjects import user_subject

if TYPE_CHECKING:
    import asyncpg

PREVIEW_CHARS_MAX: Final = 100

_FLUSH_EVERY: Final = 2_000
"""Frames between two flushes: bounds what waits unsent in this process."""
_SENT: Final = msgspec.json.Decoder(Sent)
_CHANGED: Final = msgspec.json.Decoder(Changed)
_READ: Final = msgspec.json.Decoder(Read)
_ENCODER: Final = msgspec.json.Encoder()


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
        news = [(row, _decode(row)) for row in rows]
        # Before the counts: a frame's unread may be newer than its cursor, never older.
        states = await self._pool.fetch(
            queries.THREAD_STATES,
            list(dict.fromkeys(item.thread_id for _, item in news)),
            PREVIEW_CHARS_MAX,
        )
        threads = list(
            dict.fromkeys(item.thread_id for _, item in news if not isinstance(item, Read))
        )
        members = await self._members(threads)
        counts = await self._count_members(threads, members)
        events = [
            event
            for row, item in news
            if (event := _event_of(row, item, members.get(item.thread_id, ()), counts)) is not None
        ]
        await store_events(self._bus, events)
        told = {
            thread: members[thread]
            for thread in threads
            if 0 < len(members.get(thread, ())) <= MEMBERS_MAX
        }
        readers = [
            (item.thread_id, item.user_id)
            for _, item in news
            if isinstance(item, Read) and item.thread_id not in told
        ]
        # A reader's other devices are told in a big thread too: that is one frame, not one per member.
        await self._tell(states, {**told, **await self._readers(readers)})

    async def _members(self, threads: Sequence[str]) -> dict[str, list[Member]]:
        """Return the members of each thread: one more than ``MEMBERS_MAX`` when it is too big for feeds."""
        members: dict[str, list[Member]] = {}
        for row in await self._pool.fetch(
            queries.MEMBERS_AND_UNREAD, threads, MEMBERS_MAX + 1, UNREAD_MAX
        ):
            member = Member(row["user_id"], row["visible_from"], row["unread"])
            members.setdefault(row["thread_id"], []).append(member)
        return members

    async def _readers(self, readers: Sequence[tuple[str, str]]) -> dict[str, list[Member]]:
        """Return those who moved a marker, by thread."""
        members: dict[str, list[Member]] = {}
        if readers:
            pairs = list(dict.fromkeys(readers))
            rows = await self._pool.fetch(
                queries.UNREAD_OF,
                [thread for thread, _ in pairs],
                [user for _, user in pairs],
                UNREAD_MAX,
            )
            for row in rows:
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

    async def _tell(
        self, states: "Sequence[asyncpg.Record]", members: Mapping[str, Sequence[Member]]
    ) -> None:
        """Publish to these members, and no others, how their threads stand."""
        users = list({member.user_id for told in members.values() for member in told})
        totals = await self._totals(users)
        unsent = 0
        for state in states:
            told = members.get(state["thread_id"], ())
            for user_id, frame in activity(dict(state), told, totals):
                self._bus.publish(user_subject(UserId(user_id)), frame)
                unsent += 1
                if unsent == _FLUSH_EVERY:
                    await self._bus.flush()
                    unsent = 0
        # Published means that the server has them; a broken connection would have lost what was only written.
        await self._bus.flush()
        await self._part_from_the_gone(states, members)

    async def _part_from_the_gone(
        self, states: "Sequence[asyncpg.Record]", members: Mapping[str, Sequence[Member]]
    ) -> None:
        """Take the threads off the lists of those who were told about them and have left meanwhile."""
        cursors = {
            state["thread_id"]: encode_cursor(ThreadId(state["thread_id"]), state["last_seq"])
            for state in states
        }
        told = [(thread, one.user_id) for thread in cursors for one in members.get(thread, ())]
        gone = await self._pool.fetch(
            queries.GONE, [thread for thread, _ in told], [user for _, user in told]
        )
        if not gone:
            return
        totals = await self._totals([row["user_id"] for row in gone])
        for row in gone:
            frame = ThreadActivity(
                thread_id=row["thread_id"],
                cursor=cursors[row["thread_id"]],
                unread=0,
                unread_total=totals.get(row["user_id"], 0),
                last_message=None,
                me={"removed": True},
            )
            self._bus.publish(user_subject(UserId(row["user_id"])), _ENCODER.encode(frame))
        await self._bus.flush()

    async def _totals(self, users: Sequence[str]) -> dict[str, int]:
        """Return the unread messages of each user over all threads; none is left out or 0."""
        rows = await self._pool.fetch(queries.UNREAD_TOTALS, users, UNREAD_MAX)
        return {row["user_id"]: row["unread_total"] for row in rows}


def _decode(row: OutboxRow) -> Sent | Changed | Read:
    if row.kind == MESSAGE_SENT:
        return _SENT.decode(row.payload)
    if row.kind in CHANGE_EVENTS:
        return _CHANGED.decode(row.payload)
    return _READ.decode(row.payload)


def _event_of(
    row: OutboxRow,
    item: Sent | Changed | Read,
    members: Sequence[Member],
    counts: Mapping[str, int],
) -> OutgoingMessage | None:
    """Return the domain event of an outbox row; a marker that others do not see moves without one."""
    match item:
        case Sent():
            return message_sent(row.payload, item, members, counts)
        case Changed():
            assert row.message_id is not None, "projections give every row one"  # noqa: S101
            return message_changed(row.kind, row.message_id, row.payload, item)
        case Read():
            return message_read(row.payload, item) if row.kind == MESSAGE_READ else None


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
