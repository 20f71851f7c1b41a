"""``thread.subscribe``: from the command to live events, without a hole and without anything twice."""

from typing import Any, Final

import msgspec

from edge.access import Work, with_thread
from edge.fanout import Subscription
from edge.limits import SUBSCRIPTIONS_MAX
from edge.node import Node
from edge.outbound import text_frame
from edge.replay import Replay
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
from shared.receipts import Receipt, decode_receipt
from shared.subjects import RCPT_STREAM, rcpt_subject

PARTICIPANTS_MAX: Final = 100


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
    node, started = session.node, session.node.clock()
    subscription = node.threads.prepare(session, ThreadId(entry.thread_id))
    replay: Replay | None = None
    try:
        tail = await node.threads.end(subscription, at_least=after or 0)
        # Before the replay, which holds a place that others wait for.
        participants = await _participants(node, entry, session.user_id)
        if after is not None and after < tail.position:
            visible_from = entry.members[session.user_id].visible_from
            replay = await node.replays.open(
                subscription, after=after, newest=tail.newest, visible_from=visible_from
            )
    except BusError:
        node.threads.give_up(subscription)
        session.fail(ErrorCode.UNAVAILABLE, command.ref)
        return
    except BaseException:
        node.threads.give_up(subscription)
        raise
    if not subscription.is_current:
        # The session ended, the user left the thread while it was attached, or the thread was reset.
        node.replays.abandon(subscription, replay)
        session.fail(_why_gone(session, subscription), command.ref)
    elif after is not None and after > tail.position:
        node.threads.give_up(subscription)
        _refuse_after(session, command, "is beyond the end of the thread")
    else:
        recovered = after is None or after == tail.position or replay is not None
        subscription.answer(tail.position if after is None or replay is None else after)
        replay = replay or Replay(reached=tail.position)
        cursor = encode_cursor(subscription.feed.thread_id, replay.ends_at or tail.position)
        if recovered:
            replay.caught_up = text_frame(
                msgspec.json.encode(CaughtUp(subscription.feed.thread_id, cursor))
            )
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
        node.replays.start(subscription, replay)
        node.metrics.attach_seconds.observe(node.clock() - started)


def _why_gone(session: Session, subscription: Subscription) -> ErrorCode:
    entry = session.node.directory.threads.cached(subscription.feed.thread_id)
    is_member = entry is None or entry.sees(session.user_id)
    return ErrorCode.UNAVAILABLE if is_member else ErrorCode.NOT_FOUND


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
            receipt = decode_receipt(message.payload)
        except msgspec.DecodeError:
            continue  # A receipt that nobody can read counts as none; the next one overwrites it.
        receipts[UserId(message.subject.rpartition(".")[2])] = receipt
    return receipts


def _refuse_after(session: Session, command: SubscribeThread, problem: str) -> None:
    session.fail(ErrorCode.INVALID, command.ref, details=[Detail("/after", problem)])
