"""Everything that the client knows and decides, without any I/O: frames in, frames and effects out.

The connection (``connection.py``) carries out what this says: it writes what ``due`` returns, waits ``wait_s``, hands
every frame to ``receive`` and acts on the effects. Times are seconds of one monotonic clock, handed in, so tests
need neither sockets nor sleeps.
"""

import random
from collections import deque
from typing import Any, Final, NamedTuple

import msgspec

from lilith_client.errors import ClientError, CommandError, DisconnectedError
from lilith_client.ids import MessageIds, unix_ms_of
from lilith_client.lanes import Lanes, Outgoing, Settled
from lilith_client.marks import MARK_READ, Marks
from lilith_client.objects import Event, Hello, Position
from lilith_client.policy import Pace
from lilith_client.subscriptions import Fill, Subscriptions

COMMANDS_MAX: Final = 256
PACE_COUNT: Final = 25
PACE_WINDOW_S: Final = 1.05
"""The server takes 30 commands a second that are no sends; a little less is never refused."""


class Drain(NamedTuple):
    """The node stops soon: come back elsewhere, at a random moment within ``within_s``."""

    within_s: float


Effect = Settled | Event | Fill | Drain


class State:
    """The client's whole state. One instance lives as long as the client, over many connections."""

    def __init__(self, entropy: random.Random) -> None:
        self.ids = MessageIds(entropy)
        self.subscriptions = Subscriptions()
        self.lanes = Lanes()
        self._commands: deque[dict[str, Any]] = deque()
        self._unanswered: set[str] = set()
        self._pace = Pace(PACE_COUNT, PACE_WINDOW_S)
        self._refs = 0
        self._connected = False
        self._user_id = ""
        self._missed = False
        self._marks = Marks()

    def send(self, frame: dict[str, Any], *, now: float, deadline: float) -> str:
        """Put a complete ``message.send`` (all but the ref) into its lane; return its ref."""
        ref = self._new_ref()
        self.lanes.add(
            Outgoing(
                ref=ref,
                thread_id=frame["thread_id"],
                client_msg_id=frame["client_msg_id"],
                frame={**frame, "ref": ref},
                since=now,
                deadline=deadline,
            )
        )
        return ref

    def subscribe(self, thread_id: str, after: Position | None) -> str:
        """Want a thread's events; return the ref that the first answer settles."""
        ref = self._new_ref()
        self.subscriptions.add(ref, thread_id, after)
        return ref

    def command(self, frame: dict[str, Any]) -> str:
        """Queue any other command for the connection that is open now; return its ref.

        Raises:
            DisconnectedError: There is no connection, or too many commands wait for it.
        """
        if not self._connected:
            raise DisconnectedError("not connected at the moment")
        if len(self._commands) >= COMMANDS_MAX:
            raise DisconnectedError(f"{COMMANDS_MAX} commands wait already")
        ref = self._new_ref()
        self._commands.append({**frame, "ref": ref})
        return ref

    def mark_read(self, thread_id: str, target: dict[str, Any], now: float) -> str:
        """Queue a ``message.mark_read``; return its ref.

        Raises:
            DisconnectedError: There is no connection, or too many commands wait for it.
        """
        frame = {"type": MARK_READ, "thread_id": thread_id, **target}
        ref = self.command(frame)
        self._marks.note(frame, now)
        return ref

    def open(self, hello: Hello, now: float, *, local_ms: int) -> None:
        """Note a new authenticated connection: what waits becomes due."""
        self.ids.set_clock(unix_ms_of(hello.server_time), local_ms)
        self._user_id = hello.user_id
        self._connected = True
        for frame in self._marks.recent(now):
            self.command(frame)
        self._pace = Pace(PACE_COUNT, PACE_WINDOW_S)

    def close(self) -> list[Settled]:
        """Note the end of the connection. Sends and subscriptions wait for the next one, the rest fails."""
        self._connected = False
        self.lanes.disconnected()
        self.subscriptions.disconnected()
        refs = [*self._unanswered, *(frame["ref"] for frame in self._commands)]
        self._unanswered.clear()
        self._commands.clear()
        return [Settled(ref, DisconnectedError("the connection ended")) for ref in refs]

    def due(self, now: float) -> list[dict[str, Any]]:
        """Return the frames to write now. They count as written: call it only with an open socket."""
        frames = self.lanes.due(now)
        while self._commands and self._pace.take(now):
            frames.append(self._commands.popleft())
            self._unanswered.add(frames[-1]["ref"])
        while (item := self.subscriptions.due(now)) and self._pace.take(now):
            frames.append(self.subscriptions.ask(item, now))
        return frames

    def expired(self, now: float) -> list[Settled]:
        """Return what passed its deadline."""
        return self.lanes.expired(now)

    def wait_s(self, now: float) -> float | None:
        """Return how long until ``due`` may have something, None when only a frame or a caller changes that."""
        subscribing = self.subscriptions.wait_s(now)
        if self._commands or subscribing == 0.0:
            subscribing = self._pace.wait_s(now)
        known = [wait for wait in (self.lanes.wait_s(now), subscribing) if wait is not None]
        return min(known) if known else None

    def receive(self, frame: dict[str, Any], now: float, *, room: bool) -> list[Effect]:
        """Take one frame. ``room``: whether the reader's queue takes one more event.

        Acks, errors and pongs always get through: whoever waits for one may be the reader itself.
        """
        match frame["type"]:
            case "ack" | "pong":
                return self._acknowledged(frame)
            case "error":
                return self._refused(frame, now)
            case "thread.reset":
                fill = self.subscriptions.reset(frame["thread_id"])
                events = [Event("thread.reset", frame)] if room else []
                return [*events, fill] if fill else [*events]
            case "thread.caught_up":
                return [*self.subscriptions.caught_up(frame, room=room)]
            case "server.draining":
                drain = Drain(frame["reconnect_after_ms"] / 1000)
                return [drain, Event("server.draining", frame)] if room else [drain]
            case "typing.active" | "message.read" if not room:
                return []  # Over before anybody would see it, or overruled by the next one.
            case "thread.member" if _is_removal(frame, self._user_id):
                ended = self.subscriptions.arrive(frame, room=True)
                return [*ended, *self.subscriptions.end(frame["thread_id"], frame["change"])]
            case _ if _has_position(frame):
                return list(self.subscriptions.arrive(frame, room=room))
            case _:
                pass
        if room:
            return [Event(frame["type"], frame)]
        self._missed = True
        return []

    def room(self) -> list[Event]:
        """Note that the reader's queue has room again; return what tells the reader about dropped frames."""
        self.subscriptions.room()
        if not self._missed:
            return []
        self._missed = False
        return [Event("sync.required", {"type": "sync.required", "reason": "slow"}, "client")]

    def stop(self) -> list[Settled]:
        """Settle everything that waits: there will be no further connection."""
        return [*self.close(), *self.lanes.clear()]

    def _acknowledged(self, ack: dict[str, Any]) -> list[Effect]:
        ref = ack.get("ref", "")
        if ref in self.lanes:
            return [self.lanes.acknowledge(ref, ack)]
        if ref in self.subscriptions:
            return [Settled(ref, ack), *self.subscriptions.acknowledge(ref, ack)]
        return self._answered(ref, ack)

    def _refused(self, frame: dict[str, Any], now: float) -> list[Effect]:
        ref, error = frame.get("ref", ""), command_error(frame)
        if ref in self.lanes:
            settled = self.lanes.refuse(ref, error, now)
            return [settled] if settled else []
        if ref in self.subscriptions:
            effects = self.subscriptions.refuse(ref, error, now)
            return [Settled(ref, error), *effects] if ref not in self.subscriptions else [*effects]
        return self._answered(ref, error) if ref else [Event("error", frame)]

    def _answered(self, ref: str, outcome: dict[str, Any] | ClientError) -> list[Effect]:
        if ref not in self._unanswered:
            return []  # Its caller was told already that the connection ended.
        self._unanswered.remove(ref)
        return [Settled(ref, outcome)]

    def _new_ref(self) -> str:
        self._refs += 1
        return f"{self._refs:x}"


def command_error(frame: dict[str, Any]) -> CommandError:
    """Return the exception for an ``error`` frame."""
    wait_ms = frame.get("retry_after_ms")
    return CommandError(
        frame["code"],
        frame["message"],
        retryable=frame["retryable"],
        retry_after_s=wait_ms / 1000 if wait_ms is not None else None,
        details=frame.get("details", ()),
    )


def decode(data: str | bytes) -> dict[str, Any]:
    """Return the frame in a text message.

    Raises:
        ClientError: It is no JSON object with a ``type``.
    """
    try:
        frame = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise ClientError(f"the server sent no JSON: {error}") from error
    if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
        raise ClientError("the server sent a frame without a type")
    return frame


def _has_position(frame: dict[str, Any]) -> bool:
    return "prev_seq" in frame and "seq" in frame and "thread_id" in frame


def _is_removal(frame: dict[str, Any], user_id: str) -> bool:
    return frame["user_id"] == user_id and frame["change"] in {"left", "removed"}
