"""``thread.subscribe``: from the command to live events, without a hole and without anything twice."""

from typing import Any, Final

import msgspec

from edge.access import Work, with_thread
from edge.limits import SUBSCRIPTIONS_MAX
from edge.node import Node
from edge.session import Session
from shared.access import AccessEntry, Member
from shared.bus import BusError
from shared.cursors import decode_cursor, encode_cursor
from shared.errors import InvalidCursorError
from shared.identity import ThreadId, UserId
from shared.protocol import (
    Ack,
    CaughtUp,
    Detail,
    ErrorCode,
    Participant,
    SubscribeThread,
)
from shared.subjects import RCPT_STREAM, rcpt_subject

PARTICIPANTS_MAX: Final = 100


class Receipt(msgspec.Struct, frozen=True):
    """One user's cursors in a thread: what is shown of them to others."""

    shown: int = 0
    delivered: int = 0


_RECEIPT: Final = msgspec.json.Decoder(Receipt)


def subscribe_thread(session: Session, command: SubscribeThread) -> Work | None:
    """Let the session receive the thread's events. An older subscription of it is replaced."""

    def proceed(thread_id: ThreadId, entry: AccessEntry) -> Work | None:
        try:
            after = None if command.after is None else decode_cursor(thread_id, command.after)
        except InvalidCursorError:
            _refuse_after(session, command, "is no cursor of this thread")
            return None
        subscriptions = session.subscriptions
        if len(subscriptions) >= SUBSCRIPTIONS_MAX and thread_id not in subscriptions:
            session.fail(ErrorCode.LIMIT_REACHED, command.ref)
            return None
        return _attach(session, command, entry, after)

    return with_thread(session, command.thread_id, command.ref, proceed)


async def _attach(
    session: Session, command: SubscribeThread, entry: AccessEntry, after: int | None
) -> None:
    threads = session.node.threads
    thread_id = ThreadId(entry.thread_id)
    started = session.node.clock()
    subscription = threads.prepare(session, thread_id)
    try:
        tail = await threads.tail(subscription)
        participants = await _participants(session.node, entry, session.user_id)
    except BusError:
        threads.give_up(subscription)
        session.fail(ErrorCode.UNAVAILABLE, command.ref)
        return
    except BaseException:
        threads.give_up(subscription)
        raise
    if session.subscriptions.get(thread_id) is not subscription:
        # The session ended, or the user was removed from the thread while it was attached.
        session.fail(ErrorCode.NOT_FOUND, command.ref)
    elif after is not None and after > tail:
        threads.give_up(subscription)
        _refuse_after(session, command, "is beyond the end of the thread")
    elif subscription.overflowed:
        threads.give_up(subscription)
        session.fail(ErrorCode.UNAVAILABLE, command.ref)
    else:
        cursor = encode_cursor(thread_id, tail)
        recovered = recovers(after, tail)
        session.succeed(
            None
            if command.ref is None
            else Ack(
                command.ref,
                cursor=cursor,
                recovered=recovered,
                participants=participants,
                participant_count=len(entry.members),
            )
        )
        if recovered:
            session.say(CaughtUp(thread_id=thread_id, cursor=cursor))
        threads.begin(subscription, tail)
        session.node.metrics.attach_seconds.observe(session.node.clock() - started)


def recovers(after: int | None, tail: int) -> bool:
    """Return whether everything after the client's position will reach it: what is not replayed is not recovered."""
    return after is None or after == tail


async def _participants(node: Node, entry: AccessEntry, viewer: UserId) -> list[Participant]:
    """Return the first members by time of joining, the viewer always among them.

    Raises:
        BusError: Names or receipts cannot be read at the moment.
    """
    shown = _first_members(entry, viewer)
    profiles = await node.directory.profiles([user_id for user_id, _ in shown])
    receipts = await _receipts(node, ThreadId(entry.thread_id))
    participants = []
    for user_id, member in shown:
        profile, receipt = profiles.get(user_id), receipts.get(user_id, Receipt())
        participants.append(
            Participant(
                user_id=user_id,
                name=None if profile is None else profile.name,
                avatar_url=None if profile is None else profile.avatar_url,
                role=member.role,
                joined_at=member.joined_at,
                read_seq=receipt.shown,
                delivered_seq=receipt.delivered,
                presence="unknown",
            )
        )
    return participants


def _first_members(entry: AccessEntry, viewer: UserId) -> list[tuple[UserId, Member]]:
    def order(item: tuple[str, Member]) -> tuple[bool, Any, str]:
        return item[0] != viewer, item[1].joined_at, item[0]

    chosen = sorted(entry.members.items(), key=order)[:PARTICIPANTS_MAX]
    chosen.sort(key=lambda item: (item[1].joined_at, item[0]))
    return [(UserId(user_id), member) for user_id, member in chosen]


async def _receipts(node: Node, thread_id: ThreadId) -> dict[UserId, Receipt]:
    stored = await node.fabric.get_last_many(RCPT_STREAM, [rcpt_subject(thread_id, "*")])
    receipts = {}
    for message in stored:
        try:
            receipt = _RECEIPT.decode(message.payload)
        except msgspec.DecodeError:
            continue  # A receipt that nobody can read counts as none; the next one overwrites it.
        receipts[UserId(message.subject.rpartition(".")[2])] = receipt
    return receipts


def _refuse_after(session: Session, command: SubscribeThread, problem: str) -> None:
    session.fail(ErrorCode.INVALID, command.ref, details=[Detail("/after", problem)])
