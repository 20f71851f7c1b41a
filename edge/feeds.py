"""The feed of each user with a session here: ready frames for all of their sessions, whatever they subscribe."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec

from edge.activity import Activity, ActivityCoalescer
from edge.outbound import text_frame
from edge.standing import Guest
from shared.bus import Bus, Subscription
from shared.cursors import BEGINNING, decode_cursor
from shared.errors import InvalidCursorError
from shared.identity import ThreadId, UserId
from shared.metrics import EdgeMetrics
from shared.protocol import SyncRequired
from shared.subjects import user_subject


class Session(Guest, Protocol):
    """A session, as far as feeds know it."""

    user_id: UserId

    def push(self, frame: bytes) -> None:
        """Queue an encoded frame; the session is closed when there is no room."""


class _Frame(msgspec.Struct, frozen=True):
    type: str
    thread_id: str = ""
    cursor: str = BEGINNING


_FRAME: Final = msgspec.json.Decoder(_Frame)


class Feeds:
    """Who is here, and the subjects that are listened to for them."""

    def __init__(self, live: Bus, metrics: EdgeMetrics) -> None:
        self._live = live
        self._sessions: dict[UserId, dict[Session, None]] = {}
        self._interests: dict[UserId, Subscription] = {}
        self._activities = ActivityCoalescer()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._events = metrics.events_in.of("user")
        self.on_position: list[Callable[[ThreadId, int], None]] = []
        """Called with how far a thread goes, as a member's feed says."""
        live.on_reconnect.append(self._require_sync)

    def __len__(self) -> int:
        return sum(map(len, self._sessions.values()))

    def join(self, session: Session) -> None:
        """Hand the user's feed to this session too; the first one of a user starts listening."""
        sessions = self._sessions.setdefault(session.user_id, {})
        sessions[session] = None
        if session.user_id not in self._interests:
            self._interests[session.user_id] = self._live.subscribe(
                user_subject(session.user_id), partial(self._receive, session.user_id)
            )

    def sessions_of(self, user_id: UserId) -> tuple[Session, ...]:
        """Return the sessions of one user on this edge."""
        return tuple(self._sessions.get(user_id, ()))

    def leave(self, session: Session) -> bool:
        """Forget a session; the last one of a user ends listening.

        Returns:
            Whether that was the last one. Twice does nothing.
        """
        sessions = self._sessions.get(session.user_id)
        if sessions is None or sessions.pop(session, session) is session or sessions:
            return False
        del self._sessions[session.user_id]
        self._interests.pop(session.user_id).close()
        return True

    def close(self) -> None:
        """Release nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _receive(
        self, user_id: UserId, subject: bytes, reply: bytes, headers: bytes, payload: bytes
    ) -> None:
        del subject, reply, headers
        self._events.value += 1
        try:
            frame = _FRAME.decode(payload)
        except msgspec.DecodeError:
            self._metrics.events_dropped.of("unreadable").value += 1
            return
        if frame.type == "thread.activity":
            self._tell_position(frame)
            activity = Activity(user_id, frame.thread_id, text_frame(payload))
            if not self._activities.offer(activity, self._loop.time()):
                self._metrics.events_dropped.of("coalesced").value += 1
                return
            self._wake()
            self._push(user_id, activity.frame, frame.type)
        else:
            self._push(user_id, text_frame(payload), frame.type)

    def _tell_position(self, frame: _Frame) -> None:
        thread_id = ThreadId(frame.thread_id)
        try:
            seq = decode_cursor(thread_id, frame.cursor)
        except InvalidCursorError:
            return
        for listener in self.on_position:
            listener(thread_id, seq)

    def _require_sync(self) -> None:
        # Feeds are not stored: what was sent while the connection was away is lost, and nobody knows what it was.
        frame = text_frame(msgspec.json.encode(SyncRequired(reason="reconnect")))
        for user_id in tuple(self._sessions):
            self._push(user_id, frame, "sync.required")

    def _push(self, user_id: UserId, frame: bytes, kind: str) -> None:
        # A copy: a session that is too slow is closed by push, and leaves the table.
        sessions = tuple(self._sessions.get(user_id, ()))
        for session in sessions:
            session.push(frame)
        self._metrics.frames_out.of(kind).value += len(sessions)

    def _wake(self) -> None:
        next_at = self._activities.next_at
        if self._timer is None and next_at is not None:
            self._timer = self._loop.call_at(next_at, self._release)

    def _release(self) -> None:
        self._timer = None
        for activity in self._activities.release(self._loop.time()):
            self._push(UserId(activity.user_id), activity.frame, "thread.activity")
        self._wake()
