"""What an edge knows of threads and users: entries of two NATS buckets, cached, overwritten when the api writes anew.

An entry is trusted for 60 seconds and told about changes in between. Announcements may be lost around a leader change
or a reconnect, so what is in use is compared with the buckets then, and every minute: a member whose removal was not
heard is put out even where nobody asks for the entry. That a thread or user does not exist is never remembered: it may
be made at any moment, and then it must be seen at once.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from shared.access import AccessEntry, UserEntry, decode_access, decode_user
from shared.bus import Bus, BusError, Subscription
from shared.identity import ThreadId, UserId
from shared.metrics import TallyGroup
from shared.subjects import (
    ACCESS_BUCKET,
    USERS_BUCKET,
    bucket_stream,
    bucket_subject,
    invalidation_subject,
    leader_elected_subject,
)

ENTRIES_MAX: Final = 100_000
TRUSTED_S: Final = 60.0
REVALIDATE_S: Final = 60.0
REVALIDATE_AGAIN_S: Final = 1.0
JITTER_S: Final = 0.3
"""A leader change is told to every edge at the same moment; they must not all ask the new one at once."""

PAGE_KEYS: Final = 1_000

_log = logging.getLogger(__name__)


class Entry(Protocol):
    """An entry of a bucket. A lower revision never replaces a higher one."""

    @property
    def revision(self) -> int:
        """Grows with every change."""
        ...


E = TypeVar("E", bound=Entry)


class EntryCache(Generic[E]):
    """The entries of one bucket that were asked for lately."""

    def __init__(
        self,
        bus: Bus,
        bucket: str,
        decode: Callable[[bytes], E],
        *,
        clock: Callable[[], float],
        lookups: TallyGroup,
        entries_max: int = ENTRIES_MAX,
    ) -> None:
        self._bus = bus
        self._bucket = bucket
        self._decode = decode
        self._clock = clock
        self._entries_max = entries_max
        self._entries: dict[str, tuple[E, float]] = {}
        self._loading: dict[str, asyncio.Future[E | None]] = {}
        # What changed while a read was under way: the read may come from a replica that lags.
        self._overtaken: dict[str, E] = {}
        self._used: set[str] = set()
        self._hits = lookups.of(f"{bucket} hit")
        self._misses = lookups.of(f"{bucket} miss")
        self._compared = lookups.of(f"{bucket} compared")
        self._outdated = lookups.of(f"{bucket} outdated")
        self.on_change: list[Callable[[E], None]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def cached(self, key: str) -> E | None:
        """Return the entry if it is known and still trusted."""
        found = self._entries.get(key)
        if found is None or found[1] < self._clock():
            self._misses.value += 1
            return None
        self._hits.value += 1
        self._used.add(key)
        return found[0]

    async def load(self, key: str) -> E | None:
        """Return the entry, read anew; None when there is none. Concurrent calls for one key share one read.

        Raises:
            BusError: The bucket cannot be read at the moment.
        """
        running = self._loading.get(key)
        if running is not None:
            return await asyncio.shield(running)
        future: asyncio.Future[E | None] = asyncio.get_running_loop().create_future()
        self._loading[key] = future
        try:
            stored = await self._bus.kv_get(self._bucket, key)
            entry = self._keep(key, None if stored is None else self._decoded(stored.value))
        except asyncio.CancelledError:
            future.cancel()
            raise
        except Exception as error:
            future.set_exception(error)
            future.exception()  # Marks it as seen: often nobody else waits.
            raise
        else:
            future.set_result(entry)
            return entry
        finally:
            del self._loading[key]
            self._overtaken.pop(key, None)

    def remember(self, key: str, value: bytes) -> E | None:
        """Keep an entry that was read by other means, and return the newest one known."""
        return self._keep(key, self._decoded(value))

    def overwrite(self, key: str, value: bytes) -> None:
        """Take an entry that the api has just written, if its key is of interest here."""
        entry = self._decoded(value)
        if entry is None:
            return
        if key in self._loading:
            self._overtaken[key] = entry
        found = self._entries.get(key)
        if found is not None and entry.revision > found[0].revision:
            self._entries[key] = (entry, self._clock() + TRUSTED_S)
        if found is None or entry.revision >= found[0].revision:
            self._tell(entry)

    def forget(self, key: str) -> None:
        """Have one entry read again at its next use."""
        self._entries.pop(key, None)

    def distrust(self) -> None:
        """Have every entry read again at its next use: changes may have been missed."""
        self._entries.clear()

    async def revalidate(self, watched: Iterable[str] = ()) -> None:
        """Compare what was used since the last time, and what is ``watched``, with the bucket; forget the rest.

        Raises:
            BusError: The bucket cannot be read at the moment. What was compared until then is true.
        """
        wanted = {key for key in self._used if key in self._entries}
        wanted.update(watched)
        self._used.clear()
        now = self._clock()
        for key in [key for key, found in self._entries.items() if found[1] < now]:
            if key not in wanted:
                del self._entries[key]
        keys = sorted(wanted)
        for start in range(0, len(keys), PAGE_KEYS):
            await self._compare(keys[start : start + PAGE_KEYS])

    async def _compare(self, keys: Sequence[str]) -> None:
        stored = await self._bus.get_last_many(
            bucket_stream(self._bucket), [bucket_subject(self._bucket, key) for key in keys]
        )
        for message in stored:
            entry = self._decoded(message.payload)
            if entry is None:
                continue
            key = message.subject.rpartition(".")[2]
            found = self._entries.get(key)
            self._compared.value += 1
            if found is not None and found[0].revision >= entry.revision:
                # Announcements may be ahead of the replica that was read.
                self._entries[key] = (found[0], self._clock() + TRUSTED_S)
                continue
            if found is not None:
                self._outdated.value += 1
                self._entries[key] = (entry, self._clock() + TRUSTED_S)
            # Watched and not cached: whoever listens decides by it whether somebody has to go.
            self._tell(entry)

    def _keep(self, key: str, entry: E | None) -> E | None:
        newer = self._overtaken.get(key)
        if newer is not None and (entry is None or newer.revision > entry.revision):
            entry = newer
        # A read from a replica that lags must not undo what invalidation said; entries are never deleted.
        known = self._entries.pop(key, None)
        if known is not None and (entry is None or known[0].revision > entry.revision):
            entry = known[0]
        if entry is None:
            return None
        while len(self._entries) >= self._entries_max:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = (entry, self._clock() + TRUSTED_S)
        if known is None or known[0].revision < entry.revision:
            self._tell(
                entry
            )  # The announcement of it may have been lost, while somebody still listens to the thread.
        return entry

    def _tell(self, entry: E) -> None:
        for listener in self.on_change:
            listener(entry)

    def _decoded(self, value: bytes) -> E | None:
        try:
            return self._decode(value)
        except msgspec.DecodeError:
            _log.exception(
                "an entry of bucket %s cannot be read; it counts as absent", self._bucket
            )
            return None


class Directory:
    """The two caches of this node and the subscriptions that keep them true."""

    def __init__(
        self, fabric: Bus, live: Bus, *, clock: Callable[[], float], lookups: TallyGroup
    ) -> None:
        self._fabric = fabric
        self._live = live
        self.threads: EntryCache[AccessEntry] = EntryCache(
            fabric, ACCESS_BUCKET, decode_access, clock=clock, lookups=lookups
        )
        self.users: EntryCache[UserEntry] = EntryCache(
            fabric, USERS_BUCKET, decode_user, clock=clock, lookups=lookups
        )
        self._subscriptions: list[Subscription] = []
        self._woken = asyncio.Event()

    async def start(self) -> None:
        """Follow the changes of both buckets and their leaders; returns when the server knows that."""
        for bucket, overwrite in (
            (ACCESS_BUCKET, self.threads.overwrite),
            (USERS_BUCKET, self.users.overwrite),
        ):
            self._subscriptions.append(
                self._live.subscribe(invalidation_subject(bucket), _by_key(overwrite))
            )
            self._subscriptions.append(
                self._live.subscribe(leader_elected_subject(bucket_stream(bucket)), self._wake)
            )
        self._live.on_reconnect.append(self.distrust)
        await self._live.flush()

    def distrust(self) -> None:
        """Read everything again at its next use; after a reconnect, changes may have been missed."""
        self.threads.distrust()
        self.users.distrust()
        self._woken.set()

    async def run(self, watched: Callable[[], Iterable[ThreadId]], stop: asyncio.Event) -> None:
        """Re-validate each minute, after a reconnect and after a leader change, until ``stop`` is set.

        Args:
            watched: The threads that sessions of this node are subscribed to.
            stop: Ends it.
        """
        waker = asyncio.create_task(_after(stop, self._woken.set), name="directory-stop")
        pause_s = REVALIDATE_S
        try:
            while not stop.is_set():
                if await _set_within(self._woken, pause_s):
                    self._woken.clear()
                    # No secret depends on it.
                    await _set_within(stop, random.uniform(0, JITTER_S))  # noqa: S311
                try:
                    await self.threads.revalidate(watched())
                    await self.users.revalidate()
                    pause_s = REVALIDATE_S
                except BusError as error:
                    _log.warning("cached entries cannot be compared yet: %s", error)
                    pause_s = REVALIDATE_AGAIN_S
        finally:
            waker.cancel()

    def _wake(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        del subject, reply, headers, payload
        self._woken.set()

    def forget_member(self, thread_id: ThreadId, user_id: UserId) -> None:
        """Somebody has left a thread: an entry that still names them is out of date."""
        entry = self.threads.cached(thread_id)
        if entry is not None and entry.sees(user_id):
            self.threads.forget(thread_id)

    async def access(self, thread_id: ThreadId) -> AccessEntry | None:
        """Return who may see and write the thread; None when it does not exist.

        Raises:
            BusError: It cannot be read at the moment.
        """
        return self.threads.cached(thread_id) or await self.threads.load(thread_id)

    async def profiles(self, user_ids: Sequence[UserId]) -> dict[UserId, UserEntry]:
        """Return the entries of those users that have one; unknown ones are read in one request.

        Raises:
            BusError: They cannot be read at the moment.
        """
        found: dict[UserId, UserEntry] = {}
        missing = []
        for user_id in user_ids:
            entry = self.users.cached(user_id)
            if entry is None:
                missing.append(user_id)
            else:
                found[user_id] = entry
        if missing:
            stored = await self._fabric.get_last_many(
                bucket_stream(USERS_BUCKET),
                [bucket_subject(USERS_BUCKET, user_id) for user_id in missing],
            )
            for message in stored:
                user_id = UserId(message.subject.rpartition(".")[2])
                entry = self.users.remember(user_id, message.payload)
                if entry is not None:
                    found[user_id] = entry
        return found


async def _set_within(event: asyncio.Event, wait_s: float) -> bool:
    try:
        async with asyncio.timeout(wait_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _after(event: asyncio.Event, act: Callable[[], None]) -> None:
    await event.wait()
    act()


def _by_key(
    overwrite: Callable[[str, bytes], None],
) -> Callable[[bytes, bytes, bytes, bytes], None]:
    def receive(subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        del reply, headers
        overwrite(subject.rpartition(b".")[2].decode(), payload)

    return receive
