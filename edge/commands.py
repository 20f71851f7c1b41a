"""What each command does: one function per command, each answering exactly once.

A function returns None when the command has taken effect, or the coroutine that will make it so. Nothing is
published that could still be refused: every check comes before the log.
"""

from typing import assert_never

import msgspec

from edge.access import Work, with_thread
from edge.marking import mark_read
from edge.sends import send_message
from edge.session import Session, expiry
from edge.subscribing import subscribe_thread
from edge.typists import MEMBERS_MAX
from shared.access import AccessEntry
from shared.bus import BusError
from shared.errors import InvalidIdError, TokenError
from shared.identity import ThreadId, canonical_id
from shared.protocol import (
    TYPING_EXPIRES_MS,
    Ack,
    AnyCommand,
    Auth,
    CloseCode,
    ErrorCode,
    MarkRead,
    Ping,
    Pong,
    SendMessage,
    StartTyping,
    StopTyping,
    SubscribeThread,
    TypingActive,
    UnsubscribeThread,
)
from shared.subjects import eph_subject


def execute(session: Session, command: AnyCommand) -> Work | None:
    """Run a command of an authenticated session."""
    match command:
        case SendMessage():
            return send_message(session, command)
        case MarkRead():
            return mark_read(session, command)
        case StartTyping() | StopTyping():
            return show_typing(session, command)
        case SubscribeThread():
            return subscribe_thread(session, command)
        case UnsubscribeThread():
            unsubscribe_thread(session, command)
        case Ping():
            answer_ping(session, command)
        case Auth():
            renew_token(session, command)
        case _:
            assert_never(command)
    return None


def renew_token(session: Session, command: Auth) -> None:
    """Go on with a newer token. A bad one changes nothing; one of somebody else ends the session."""
    try:
        identity = session.node.verifier.verify(command.token)
    except TokenError:
        session.fail(ErrorCode.UNAUTHORIZED, command.ref)
        return
    if identity.user_id != session.user_id:
        session.close(CloseCode.TOKEN_INVALID)
        return
    if session.node.standing.why_closed(identity) is not None:
        session.fail(ErrorCode.UNAUTHORIZED, command.ref)
        return
    session.renew(identity)
    ref = command.ref
    session.succeed(None if ref is None else Ack(ref, token_expires_at=expiry(identity)))


def answer_ping(session: Session, command: Ping) -> None:
    """Answer ``pong``: for browsers, which cannot send WebSocket pings."""
    session.say(Pong(ref=msgspec.UNSET if command.ref is None else command.ref))
    session.succeed(None)


def unsubscribe_thread(session: Session, command: UnsubscribeThread) -> None:
    """End the subscription; without one, it is ended already. An id that cannot be one is ``not_found``."""
    try:
        thread_id = ThreadId(canonical_id(command.thread_id))
    except InvalidIdError:
        session.fail(ErrorCode.NOT_FOUND, command.ref)
        return
    session.node.threads.leave(session, thread_id)
    session.succeed(_plain_ack(command.ref))


def show_typing(session: Session, command: StartTyping | StopTyping) -> Work | None:
    """Tell the thread's subscribed sessions, on every edge, that the user types or stopped."""
    if not session.node.settings.messaging_enable_typing_indicators:
        session.fail(ErrorCode.FEATURE_DISABLED, command.ref)
        return None

    def proceed(thread_id: ThreadId, entry: AccessEntry) -> None:
        refusal = entry.why_not_send(session.user_id)
        if refusal is not None:
            session.fail(refusal, command.ref)
            return
        if len(entry.members) <= MEMBERS_MAX:
            _publish_typing(session, thread_id, active=isinstance(command, StartTyping))
        session.succeed(_plain_ack(command.ref))

    return with_thread(session, command.thread_id, command.ref, proceed)


def _publish_typing(session: Session, thread_id: ThreadId, *, active: bool) -> None:
    node, user_id = session.node, session.user_id
    decide = node.typists.starts if active else node.typists.stops
    if not decide(thread_id, user_id, node.clock()):
        return
    event = TypingActive(
        thread_id=thread_id, user_id=user_id, active=active, expires_in_ms=TYPING_EXPIRES_MS
    )
    try:
        node.fabric.publish(eph_subject(thread_id), msgspec.json.encode(event))
    except BusError:
        # Nobody is told of a dot that could not be sent; the next refresh shows it.
        node.typists.sent(thread_id, user_id)


def _plain_ack(ref: str | None) -> Ack | None:
    return None if ref is None else Ack(ref)
