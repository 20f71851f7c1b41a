"""Who may not come in: bans, deactivations and revoked tokens, mirrored whole in every process that lets users in.

The api writes PostgreSQL first and then bucket ``standing`` (compare-and-set: a lower revision never wins); the bucket
republishes what it stored. A mirror sees every key, so the positions that it hears are contiguous: a lost event shows
itself at the next one, and a lost last event within a second, when the mirror compares itself with the bucket. After a
reconnect it is confirmed only once the whole bucket was read again; until then its owner lets nobody in (architecture,
section 6). ``StandingTable`` is the pure part.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from shared.bus import Bus, BusError, RequestTimeoutError, header_number
from shared.metrics import StandingMetrics
from shared.subjects import STANDING_BUCKET, bucket_stream, invalidation_subject

FOREVER: Final = "9999-12-31T23:59:59.999Z"
CHECK_S: Final = 1.0
CONFIRMED_S: Final = 3.0
"""A mirror that was not compared with its bucket for this long answers nothing: three checks in a row failed."""

EXPIRED_KEPT_S: Final = 600.0
"""Much longer than ``CONFIRMED_S``: whoever was out of touch for longer reads the whole bucket."""

CATCH_UP_S: Final = 5.0
"""A replica may lag and a leader be elected; after this long the next check goes on where this one ended."""

CATCH_UP_PAUSE_S: Final = 0.02
PAGE_ENTRIES: Final = 1_000
PAGE_BYTES: Final = 1 << 20

STREAM: Final = bucket_stream(STANDING_BUCKET)
_ALL: Final = f"$KV.{STANDING_BUCKET}.>"
_log = logging.getLogger(__name__)


class Verdict(StrEnum):
    """Why somebody may not come in."""

    REVOKED = "revoked"
    BANNED = "banned"
    DEACTIVATED = "deactivated"


class StandingEntry(msgspec.Struct, frozen=True):
    """The entry of bucket ``standing`` of one user; users in good standing have none, or one without effect.

    ``banned_until`` is a time or null, tokens issued before ``min_iat`` (Unix seconds) are refused.
    """

    user_id: str
    revision: int
    banned_until: str | None = None
    reason: str | None = None
    min_iat: int = 0
    deactivated: bool = False


_DECODER: Final = msgspec.json.Decoder(StandingEntry)


def decode_standing(value: bytes) -> StandingEntry:
    """Return the entry in a value of bucket ``standing``.

    Raises:
        msgspec.DecodeError: Not one of ours.
    """
    return _DECODER.decode(value)


class _Known(NamedTuple):
    entry: StandingEntry
    seq: int
    known_at: float
    banned_until_s: float


class StandingTable:
    """What is known of every user who has an entry. Times are Unix seconds. Pure: no I/O."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, user_id: str) -> StandingEntry | None:
        """Return the user's entry."""
        known = self._known.get(user_id)
        return None if known is None else known.entry

    def put(self, entry: StandingEntry, seq: int, now: float) -> bool:
        """Take an entry stored at ``seq``; False when nothing changes, because it is known or an older one."""
        known = self._known.get(entry.user_id)
        if known is not None and known.entry.revision > entry.revision:
            return False
        self._known[entry.user_id] = _Known(entry, seq, now, _seconds(entry.banned_until))
        return known is None or known.entry.revision < entry.revision

    def keep_only(self, user_ids: AbstractSet[str], up_to: int) -> None:
        """Forget everybody else whose entry was stored up to there: it was purged."""
        gone = [
            user_id
            for user_id, known in self._known.items()
            if known.seq <= up_to and user_id not in user_ids
        ]
        for user_id in gone:
            del self._known[user_id]

    def verdict(self, user_id: str, issued_at: float, now: float) -> Verdict | None:
        """Return why a token of this user, issued at ``issued_at``, is not enough at ``now``; None when it is."""
        known = self._known.get(user_id)
        if known is None:
            return None
        if issued_at < known.entry.min_iat:
            return Verdict.REVOKED
        if now < known.banned_until_s:
            return Verdict.BANNED
        return Verdict.DEACTIVATED if known.entry.deactivated else None

    def forget_expired(self, now: float, tokens_live_s: float) -> list[tuple[str, int]]:
        """Forget entries that can have no effect any more: the ban is over, and so are all revoked tokens.

        Not before they are known for ``EXPIRED_KEPT_S``: a mirror that missed the end of a ban must find it.

        Returns:
            The user and the position of each.
        """
        expired = [
            (user_id, known.seq)
            for user_id, known in self._known.items()
            if not known.entry.deactivated
            and now >= known.known_at + EXPIRED_KEPT_S
            and now >= known.banned_until_s
            and now >= known.entry.min_iat + tokens_live_s
        ]
        for user_id, _ in expired:
            del self._known[user_id]
        return expired


class StandingMirror:
    """The whole bucket in this process, kept true."""

    def __init__(
        self,
        bus: Bus,
        live: Bus,
        *,
        clock: Callable[[], float],
        metrics: StandingMetrics,
    ) -> None:
        """Make an empty mirror; ``start`` fills it.

        Args:
            bus: Reads the bucket.
            live: Hears of its changes; may be the same connection.
            clock: Monotonic seconds.
            metrics: Told what happens.
        """
        self.table = StandingTable()
        self.position = 0
        """Everything that the bucket stored up to here is in the table."""

        self.on_change: list[Callable[[StandingEntry], None]] = []
        self.on_confirmed: list[Callable[[], None]] = []
        """Called when the mirror can be trusted again after it could not."""

        self._bus = bus
        self._live = live
        self._clock = clock
        self._metrics = metrics
        self._created = ""
        self._heard = 0
        self._confirmed_until = clock()
        self._connections = 0
        self._reading = asyncio.Lock()
        self._woken = asyncio.Event()
        metrics.entries.set_function(lambda: len(self.table))
        metrics.confirmed.set_function(lambda: float(self.is_confirmed))

    @property
    def is_confirmed(self) -> bool:
        """Whether the table holds everything that was stored until a moment ago."""
        return (
            self._clock() < self._confirmed_until and self._live.connected and self._bus.connected
        )

    def unconfirmed_for_s(self) -> float:
        """Seconds since the mirror could last be trusted; 0.0 while it can."""
        return 0.0 if self.is_confirmed else max(0.0, self._clock() - self._confirmed_until)

    async def start(self) -> None:
        """Follow the bucket and read it whole.

        Raises:
            BusError: It cannot be read at the moment.
        """
        self._live.subscribe(invalidation_subject(STANDING_BUCKET), self._receive)
        for bus in {id(bus): bus for bus in (self._bus, self._live)}.values():
            bus.on_reconnect.append(self._distrust)
        await self._live.flush()
        await self.check()

    async def run(self, stop: asyncio.Event) -> None:
        """Compare the mirror with the bucket once a second, and whenever an event is missing, until ``stop``."""
        waker = asyncio.create_task(_after(stop, self._woken.set), name="standing-stop")
        try:
            while not stop.is_set():
                try:
                    async with asyncio.timeout(CHECK_S):
                        await self._woken.wait()
                except TimeoutError:
                    pass
                self._woken.clear()
                try:
                    await self.check()
                except BusError as error:
                    # A failure that lasts shows itself in messaging_standing_confirmed.
                    _log.warning("the standing of users cannot be compared: %s", error)
                    await asyncio.sleep(CATCH_UP_PAUSE_S)
        finally:
            waker.cancel()

    async def check(self) -> None:
        """Compare with the bucket, read what is missing, and be trusted from then on.

        Raises:
            BusError: The bucket cannot be read, or what it announced cannot be found yet.
        """
        async with self._reading:
            began_at, connections = self._clock(), self._connections
            # Out of touch for longer than a moment, it may have missed entries that are purged by now.
            last = await self._last_seq() if self.is_confirmed else None
            if last is None:
                await self._read_whole()
            elif self.position < max(last, self._heard):
                self._metrics.catch_ups.value += 1
                await self._catch_up(last)
            if connections != self._connections:
                return  # What was read came over a connection that is gone; the next check is on its way.
            was_confirmed = self.is_confirmed
            self._confirmed_until = began_at + CONFIRMED_S
            if not was_confirmed and self.is_confirmed:
                for listener in self.on_confirmed:
                    listener()

    def _distrust(self) -> None:
        self._connections += 1
        self._confirmed_until = min(self._confirmed_until, self._clock())
        self._woken.set()

    def _receive(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        del subject, reply
        seq = header_number(headers, b"Nats-Sequence")
        if seq <= self.position:
            return
        self._heard = max(self._heard, seq)
        if seq == self.position + 1:
            self.position = seq
        else:
            self._woken.set()
        # It acts at once, whatever was missed before it: revisions say which entry of a user is the newest.
        self._take(seq, payload)

    def _take(self, seq: int, payload: bytes) -> None:
        try:
            entry = decode_standing(payload)
        except msgspec.DecodeError:
            # Deleted by hand, or none of ours: nothing can be said of anybody.
            _log.exception("an entry of bucket %s cannot be read", STANDING_BUCKET)
            return
        if self.table.put(entry, seq, time.time()):
            for listener in self.on_change:
                listener(entry)

    async def _last_seq(self) -> int | None:
        """Return the position of the newest entry; any replica answers, without a leader too. None: ask the leader."""
        last = await self._bus.get_last(STREAM, _ALL)
        if last is None:
            return 0 if self.position == 0 else None
        # Behind us: a replica that lags, or another life of the stream.
        return last.seq if last.seq >= self.position else None

    async def _read_whole(self) -> None:
        # What was heard until now was stored before: the leader knows of it, or that it was taken away.
        self._heard = 0
        info = await self._bus.api(f"STREAM.INFO.{STREAM}")
        is_new_life = info["created"] != self._created
        if is_new_life:
            self._created = info["created"]
            self.position = 0
        last = 0
        if info["state"]["messages"]:
            answer = await self._bus.api(f"STREAM.MSG.GET.{STREAM}", {"last_by_subj": _ALL})
            last = int(answer["message"]["seq"])
        user_ids = await self._catch_up(last, from_seq=1)
        if not is_new_life:
            # A bucket that was lost lifts no ban: the api writes anew what was in it.
            self.table.keep_only(user_ids, int(info["state"]["last_seq"]))

    async def _catch_up(self, target: int, from_seq: int | None = None) -> set[str]:
        """Read up to ``target`` and to what was heard since; return the users whose entries were read."""
        user_ids: set[str] = set()
        done = self.position if from_seq is None else from_seq - 1
        give_up_at = self._clock() + CATCH_UP_S
        while done < max(target, self._heard):
            page = await self._bus.get_range(
                STREAM,
                _ALL,
                from_seq=done + 1,
                max_messages=PAGE_ENTRIES,
                max_bytes=PAGE_BYTES,
            )
            for message in page.messages:
                self._take(message.seq, message.payload)
                user_ids.add(message.subject.rpartition(".")[2])
                done = message.seq
            if not page.messages:
                # The newest entry exists, so a reader that does not find it asked a replica that lags.
                if self._clock() >= give_up_at:
                    raise RequestTimeoutError(STREAM, waited_s=CATCH_UP_S)
                await asyncio.sleep(CATCH_UP_PAUSE_S)
        self.position = max(self.position, done)
        return user_ids


async def _after(event: asyncio.Event, act: Callable[[], None]) -> None:
    await event.wait()
    act()


def _seconds(moment: str | None) -> float:
    return 0.0 if moment is None else datetime.fromisoformat(moment).timestamp()
