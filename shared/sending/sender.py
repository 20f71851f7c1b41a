"""The publishing discipline: lanes, retries, the publish budget. See the package."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final

from shared.bus import (
    Bus,
    BusDisconnectedError,
    BusError,
    BusOverloadedError,
    NoRespondersError,
    PubAck,
    PublishRefusedError,
    PublishTimeoutError,
)
from shared.events import MessageNew, encode_event, timestamp
from shared.identity import ThreadId, UserId, message_id, now_ms, time_ms_of
from shared.metrics import SendingMetrics
from shared.protocol import RETRYABLE, ErrorCode
from shared.sending.lookup import (
    Absent,
    Candidate,
    Unknown,
    accepted,
    find_stored,
    read_duplicate,
)
from shared.sending.outcomes import UNAVAILABLE, Done, Outcome, Refused, SendRequest
from shared.sending.streams import StreamWatch
from shared.settings import Settings
from shared.subjects import msg_subject, stream_of

ATTEMPT_S: Final = 2.0
"""How long one publish waits for its acknowledgement before it is sent again with the same id."""

LANE_MAX: Final = 1_000
WAITING_MAX: Final = 20_000
WAITING_BYTES_MAX: Final = 64 * 1024 * 1024
LOOKUPS_MAX: Final = 64
"""Questions about duplicates and late retries that run at once; further ones wait within their budget."""

RETRY_FIRST_S: Final = 0.05
RETRY_LAST_S: Final = 0.5
_TRANSIENT_CODE: Final = 503
_FULL: Final = frozenset({10023, 10047, 10077, 10122})
"""No room: no resources, no storage, the stream's or the account's limit. Trying again at once cannot help."""

_TOO_LARGE: Final = 10054
_REASONS: Final[dict[type[BusError], str]] = {
    BusDisconnectedError: "disconnected",
    BusOverloadedError: "overloaded",
    NoRespondersError: "no_leader",
}
_log = logging.getLogger(__name__)


class _Job:
    """One message between ``submit`` and its outcome."""

    __slots__ = (
        "attempts",
        "candidate",
        "cleared",
        "deadline",
        "done",
        "maybe_stored",
        "sent_at",
        "started",
        "subject",
    )

    def __init__(self, candidate: Candidate, sent_at: str, done: Done, *, started: float) -> None:
        self.candidate = candidate
        self.sent_at = sent_at
        self.done = done
        self.started = started
        self.deadline = started
        self.subject = msg_subject(candidate.request.thread_id)
        self.attempts = 0
        self.maybe_stored = False
        self.cleared = False


Lane = tuple[ThreadId, UserId]


class Sender:
    """Stores messages, one lane per (thread, sender). One per process; see the package for what it promises."""

    def __init__(self, bus: Bus, settings: Settings, *, metrics: SendingMetrics) -> None:
        self._bus = bus
        self._settings = settings
        self._metrics = metrics
        self._watch = StreamWatch(bus, settings, metrics=metrics)
        self._lanes: dict[Lane, deque[_Job]] = {}
        self._waiting = 0
        self._waiting_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._lookups = asyncio.Semaphore(LOOKUPS_MAX)
        self._loop = asyncio.get_running_loop()
        metrics.waiting.set_function(lambda: self._waiting)

    @property
    def ready(self) -> bool:
        """Whether the streams were read once. Before that every message is ``unavailable``."""
        return self._watch.ready

    @property
    def waiting(self) -> int:
        """How many messages were taken and have no outcome yet."""
        return self._waiting

    async def prepare(self) -> None:
        """Read the streams once, before the first message is taken.

        Raises:
            BusError: NATS did not answer.
        """
        await self._watch.read()

    async def run(self, stop: asyncio.Event) -> None:
        """Keep reading the state of the streams until ``stop`` is set. Messages are sent with or without it."""
        await self._watch.run(stop)

    async def drain(self, *, within_s: float) -> None:
        """Wait until every message taken has its outcome, at most ``within_s`` seconds."""
        deadline = self._loop.time() + within_s
        while self._waiting and self._loop.time() < deadline:  # noqa: ASYNC110 - ends once a process
            await asyncio.sleep(RETRY_FIRST_S)

    async def send(self, request: SendRequest) -> Outcome:
        """Store one message and return what became of it; see ``submit``."""
        outcome: asyncio.Future[Outcome] = self._loop.create_future()

        def done(result: Outcome) -> None:
            if not outcome.done():
                outcome.set_result(result)

        self.submit(request, done)
        return await outcome

    def submit(self, request: SendRequest, done: Done) -> None:
        """Take one message. ``done`` is called exactly once, never before this returns.

        ``Sent`` means stored and flushed. ``Refused``: ``unavailable`` (try again with the same ids), ``conflict``
        (the ids name another content), ``gone`` (the ids can never be used), ``invalid`` (a clock too far ahead).
        """
        refusal = self._refusal(request)
        if refusal is not None:
            self._loop.call_soon(self._tell, done, refusal)
            return
        job = self._job(request, done)
        key = (request.thread_id, request.sender_id)
        self._waiting += 1
        self._waiting_bytes += len(job.candidate.payload)
        lane = self._lanes.get(key)
        if lane is not None:
            lane.append(job)
            return
        self._lanes[key] = deque([job])
        self._begin(job)

    def _refusal(self, request: SendRequest) -> Refused | None:
        state = self._watch.state(stream_of(request.thread_id, self._settings.messaging_streams))
        if state is None or state.blocked:
            return UNAVAILABLE
        lane = self._lanes.get((request.thread_id, request.sender_id))
        if (
            self._waiting >= WAITING_MAX
            or self._waiting_bytes >= WAITING_BYTES_MAX
            or (lane is not None and len(lane) >= LANE_MAX)
        ):
            return UNAVAILABLE
        ahead_ms = time_ms_of(request.client_msg_id) - now_ms()
        if ahead_ms > self._settings.clock_ahead_s * 1000:
            return Refused(ErrorCode.INVALID)
        return None

    def _job(self, request: SendRequest, done: Done) -> _Job:
        sent_at = timestamp()
        name = message_id(request.thread_id, request.sender_id, request.client_msg_id)
        # Built once: every retry publishes the same bytes.
        payload = encode_event(
            MessageNew(
                message_id=name,
                thread_id=request.thread_id,
                client_msg_id=request.client_msg_id,
                sender_id=request.sender_id,
                kind=request.kind,
                body=request.body,
                attachments=request.attachments,
                reply_to=request.reply_to,
                metadata=request.metadata,
                sent_at=sent_at,
            )
        )
        job = _Job(Candidate(request, name, payload), sent_at, done, started=self._loop.time())
        job.deadline += self._settings.messaging_publish_budget
        return job

    def _begin(self, job: _Job) -> None:
        """Start with the first message of a lane."""
        if self._is_late(job):
            self._spawn(job, self._look_up(job))
        else:
            self._publish(job)

    def _is_late(self, job: _Job) -> bool:
        """Return whether the stream may have forgotten an earlier copy: by age, or because it is a new one."""
        if job.cleared:
            return False
        request = job.candidate.request
        made_ms = time_ms_of(request.client_msg_id)
        if now_ms() - made_ms > self._settings.late_retry_s * 1000:
            return True
        state = self._watch.state(stream_of(request.thread_id, self._settings.messaging_streams))
        window_ms = self._settings.messaging_dedupe_window * 1000
        return state is not None and state.generation > 1 and made_ms < state.created_ms + window_ms

    async def _look_up(self, job: _Job) -> None:
        """Ask whether PostgreSQL holds the message; publish it only when it surely does not."""
        patience = self._loop.time() + self._settings.messaging_publish_budget / 10
        found: Outcome | Absent | Unknown = Unknown()
        while isinstance(found, Unknown):
            try:
                async with self._lookups:
                    found = await find_stored(self._bus, job.candidate)
            except BusError:
                found = Unknown()
            if isinstance(found, Unknown):
                if self._loop.time() > patience:
                    self._finish(job, UNAVAILABLE)
                    return
                await asyncio.sleep(RETRY_LAST_S)
        if isinstance(found, Absent):
            job.cleared = True
            self._publish(job)
        else:
            self._finish(job, found)

    def _publish(self, job: _Job) -> None:
        left_s = job.deadline - self._loop.time()
        if left_s <= 0:
            self._finish(job, UNAVAILABLE)
        else:
            # Without a connection the bus refuses and keeps nothing, so nothing is stored after its sender gave up.
            self._bus.publish_stored(
                job.subject,
                job.candidate.payload,
                lambda outcome: self._answered(job, outcome),
                message_id=job.candidate.message_id,
                timeout_s=min(ATTEMPT_S, left_s),
            )

    def _answered(self, job: _Job, outcome: PubAck | BusError) -> None:
        if isinstance(outcome, PubAck):
            if outcome.duplicate:
                self._spawn(job, self._read_duplicate(job, outcome))
            else:
                self._finish(job, accepted(job.candidate, outcome, job.sent_at))
        elif isinstance(outcome, PublishTimeoutError):
            job.maybe_stored = True
            self._retry(job, "timeout")
        elif isinstance(outcome, PublishRefusedError):
            self._refused(job, outcome)
        elif outcome.retry:
            self._retry(job, _REASONS.get(type(outcome), "other"))
        else:
            _log.error("%s was not published: %s", job.candidate.message_id, outcome)
            self._finish(job, Refused(ErrorCode.INTERNAL))

    def _refused(self, job: _Job, error: PublishRefusedError) -> None:
        if error.err_code in _FULL:
            self._finish(job, UNAVAILABLE)
        elif error.soon or error.code == _TRANSIENT_CODE:
            self._retry(job, "refused")
        elif error.err_code == _TOO_LARGE:
            self._finish(job, Refused(ErrorCode.INVALID))
        else:
            _log.error("%s was refused by its stream: %s", job.candidate.message_id, error)
            self._finish(job, Refused(ErrorCode.INTERNAL))

    def _retry(self, job: _Job, reason: str) -> None:
        self._metrics.retries.of(reason).value += 1
        pause_s = min(RETRY_LAST_S, RETRY_FIRST_S * 2**job.attempts)
        job.attempts += 1
        # Spread over half of the pause, or every lane of every edge meets the new leader at the same instant.
        pause_s *= 0.5 + random.random() / 2  # noqa: S311 - spreads load, protects nothing
        left_s = job.deadline - self._loop.time()
        self._loop.call_later(max(0.0, min(pause_s, left_s)), self._publish, job)

    async def _read_duplicate(self, job: _Job, ack: PubAck) -> None:
        while True:
            try:
                async with self._lookups:
                    found = await read_duplicate(
                        self._bus, job.candidate, ack, ours=job.maybe_stored
                    )
            except BusError:
                if self._loop.time() > job.deadline:
                    found = UNAVAILABLE
                else:
                    await asyncio.sleep(RETRY_LAST_S)
                    continue
            self._finish(job, found)
            return

    def _finish(self, job: _Job, outcome: Outcome) -> None:
        """Tell the outcome of the first message of a lane and start the next one.

        When it could not be stored now, everything behind it is refused too: stored before it, it would overtake.
        """
        request = job.candidate.request
        key = (request.thread_id, request.sender_id)
        lane = self._lanes[key]
        lane.popleft()
        together = [job]
        if isinstance(outcome, Refused) and outcome.code in RETRYABLE:
            together += lane
            lane.clear()
        if not lane:
            del self._lanes[key]
        following = lane[0] if lane else None
        for told in together:
            self._waiting -= 1
            self._waiting_bytes -= len(told.candidate.payload)
        for told in together:
            self._metrics.seconds.observe(self._loop.time() - told.started)
            self._tell(told.done, outcome)
        if following is not None:
            self._begin(following)

    def _tell(self, done: Done, outcome: Outcome) -> None:
        self._metrics.messages.of(_label(outcome)).value += 1
        try:
            done(outcome)
        except Exception:
            # The caller's bug must not stop the lane: the messages behind are other people's too.
            _log.exception("the outcome of a message was not delivered")

    def _spawn(self, job: _Job, work: Coroutine[Any, Any, None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                # A bug of ours, but a lane without an end would hold its sender up for ever.
                _log.error("a look-up failed", exc_info=error)
                self._finish(job, Refused(ErrorCode.INTERNAL))

        task = self._loop.create_task(work, name="send-lookup")
        self._tasks.add(task)
        task.add_done_callback(ended)


def _label(outcome: Outcome) -> str:
    if isinstance(outcome, Refused):
        return outcome.code.value
    return "duplicate" if outcome.duplicate else "sent"
