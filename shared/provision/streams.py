"""What the fabric is made of: the configuration of every stream and durable consumer. Pure: no I/O.

Sizes and times as JetStream wants them: bytes and nanoseconds. Reasons: architecture, section 4.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from shared import subjects
from shared.cursors import SEQ_MAX
from shared.errors import ConfigurationError, InvalidIdError
from shared.identity import user_id
from shared.settings import Settings

GENERATION_BITS: Final = 40
"""The life of a stream starts at ``generation << 40``: a later one is above everything an earlier one gave out."""

GENERATION_MAX: Final = SEQ_MAX >> GENERATION_BITS
MESSAGE_BYTES_MAX: Final = 65 * 1024
"""A frame has at most 64 KiB; the rest is for headers."""

ENTRY_BYTES_MAX: Final = 192 * 1024
"""An access entry with 500 members of the longest ids has 80 KiB."""

ACK_PENDING_MAX: Final = 10_000
RESERVED_DURABLES: Final = frozenset(
    {subjects.PERSISTER_DURABLE, subjects.ANALYTICS_DURABLE, subjects.API_DURABLE}
)

_NS: Final = 1_000_000_000
_DAY_S: Final = 86_400
_RECEIPTS_AGE_S: Final = 30 * _DAY_S
_EVENTS_AGE_S: Final = 7 * _DAY_S
_DEDUPE_S: Final = 120
_PLATFORM_BYTES: Final = 1024**3
_SMALL_BYTES_MAX: Final = 1024
_NODE_MARKER_S: Final = 60
"""How long the end of a node's lease can still be read."""

Config = dict[str, Any]


class Consumer(NamedTuple):
    """A durable consumer: where, and how it is configured."""

    stream: str
    config: Config

    @property
    def durable(self) -> str:
        """The consumer's name."""
        name: str = self.config["durable_name"]
        return name


def first_seq_of(generation: int) -> int:
    """Return the first sequence of a stream's ``generation`` (1, 2, …).

    Raises:
        ConfigurationError: Beyond the last generation that keeps sequences below 2^53.
    """
    if not 0 < generation <= GENERATION_MAX:
        raise ConfigurationError(f"a stream has at most {GENERATION_MAX} generations")
    return generation << GENERATION_BITS


def message_stream(settings: Settings, number: int, generation: int) -> Config:
    """Return the configuration of ``MSG_<number>``: refuses when full, never forgets, never deletes."""
    return {
        **_stream(subjects.stream_names(settings.messaging_streams)[number], settings),
        "description": "Every durable event of the threads of a range of shards.",
        "subjects": subjects.stream_subjects(number, settings.messaging_streams),
        "discard": "new",
        "max_age": ns(settings.messaging_log_age),
        "max_bytes": settings.messaging_log_bytes,
        "max_msg_size": MESSAGE_BYTES_MAX,
        "duplicate_window": ns(settings.messaging_dedupe_window),
        "deny_delete": True,
        "deny_purge": True,
        "allow_atomic": True,
        "republish": {"src": f"{subjects.MSG_PREFIX}.>", "dest": f"{subjects.LIVE_PREFIX}.>"},
        "first_seq": first_seq_of(generation),
        "metadata": {"generation": f"{generation}"},
    }


def other_streams(settings: Settings) -> Iterator[Config]:
    """Yield the configuration of every stream that has no generation: receipts, rate, events, platform, buckets."""
    receipts = {
        **_stream(subjects.RCPT_STREAM, settings),
        "description": "The last read and delivered position of every member.",
        "subjects": ["rcpt.*.*.*"],
        "max_msgs_per_subject": 1,
        "max_age": ns(_RECEIPTS_AGE_S),
        "max_msg_size": _SMALL_BYTES_MAX,
    }
    # A lost tail is repaired by clients, which state their position again.
    yield _unflushed(receipts, settings)
    rate_age_s = 2 * settings.messaging_throttle_ttl / 1000
    rate = {
        **_stream(subjects.RATE_STREAM, settings),
        "description": "One counter per user and window of the rate limit.",
        "subjects": ["rate.*.*"],
        "allow_msg_counter": True,
        "max_msgs_per_subject": 1,
        "max_age": ns(rate_age_s),
        "max_msg_size": _SMALL_BYTES_MAX,
        "duplicate_window": ns(min(rate_age_s, _DEDUPE_S)),
    }
    yield _unflushed(rate, settings)
    yield {
        **_stream(subjects.EVENTS_STREAM, settings),
        "description": "Domain events for platform services and analytics: CloudEvents, without bodies.",
        "subjects": ["messaging.>"],
        "max_age": ns(_EVENTS_AGE_S),
        "max_bytes": settings.messaging_log_bytes,
        "max_msg_size": MESSAGE_BYTES_MAX,
        "allow_atomic": True,
    }
    yield {
        **_stream(subjects.PLATFORM_STREAM, settings),
        "description": "What platform services tell: subscriptions, bans, profiles.",
        "subjects": ["marketplace.>", "profile.>", "safety.user.>"],
        "discard": "new",
        "max_age": ns(_EVENTS_AGE_S),
        "max_bytes": _PLATFORM_BYTES,
        "max_msg_size": MESSAGE_BYTES_MAX,
    }
    for bucket in subjects.BUCKETS:
        yield _bucket(bucket, settings)


def consumers(settings: Settings) -> Iterator[Consumer]:
    """Yield every durable consumer.

    Raises:
        ConfigurationError: A name in MESSAGING_PLATFORM_CONSUMERS is impossible or ours.
    """
    for stream in subjects.stream_names(settings.messaging_streams):
        yield Consumer(stream, _ack_all(subjects.PERSISTER_DURABLE))
    yield Consumer(subjects.RCPT_STREAM, _ack_all(subjects.PERSISTER_DURABLE))
    yield Consumer(subjects.EVENTS_STREAM, _ack_all(subjects.ANALYTICS_DURABLE))
    yield Consumer(subjects.PLATFORM_STREAM, _ack_all(subjects.API_DURABLE))
    for name in filter(None, map(str.strip, settings.messaging_platform_consumers.split(","))):
        yield Consumer(subjects.EVENTS_STREAM, _ack_each(_platform_durable(name)))


def ns(seconds: float) -> int:
    """Return nanoseconds."""
    return round(seconds * _NS)


def _stream(name: str, settings: Settings) -> Config:
    return {
        "name": name,
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "num_replicas": settings.messaging_replicas,
        "duplicate_window": ns(_DEDUPE_S),
        "allow_direct": True,
        # A header must not be able to empty a stream or to send on somebody else's behalf.
        "allow_rollup_hdrs": False,
    }


def _bucket(bucket: str, settings: Settings) -> Config:
    config: Config = {
        **_stream(subjects.bucket_stream(bucket), settings),
        "description": f"Key-value bucket {bucket}: the last entry of every key.",
        "subjects": [f"$KV.{bucket}.>"],
        "max_msgs_per_subject": 1,
        "max_msg_size": ENTRY_BYTES_MAX,
        "deny_delete": True,
        "republish": {
            "src": f"$KV.{bucket}.>",
            "dest": f"{subjects.INVALIDATION_PREFIX}.{bucket}.>",
        },
    }
    if bucket == subjects.NODES_BUCKET:
        config["allow_msg_ttl"] = True
        config["subject_delete_marker_ttl"] = ns(_NODE_MARKER_S)
        config["allow_rollup_hdrs"] = True  # Markers are roll-ups; JetStream insists.
    if bucket in {subjects.PRESENCE_BUCKET, subjects.NODES_BUCKET}:
        return _unflushed(config, settings)
    return config


def _unflushed(config: Config, settings: Settings) -> Config:
    """Return the configuration of a stream whose tail may be lost with the power, not with the process.

    Writes are not flushed one by one: as quick as memory (45 k/s instead of 5 k/s), and the disk stays free for
    messages. Unlike one in memory the stream is still there after a restart of a single server; ADR 12.
    """
    # JetStream refuses it for replicated streams, which group their writes in the raft log anyway.
    return config if settings.messaging_replicas > 1 else {**config, "persist_mode": "async"}


def _ack_all(durable: str) -> Config:
    """One owner that reads in order: never NAK or TERM; what is poison goes to the dead letters."""
    return {
        "durable_name": durable,
        "ack_policy": "all",
        "deliver_policy": "all",
        "replay_policy": "instant",
        "ack_wait": ns(60),
        "max_deliver": -1,
        "max_ack_pending": ACK_PENDING_MAX,
        "max_waiting": 16,
    }


def _ack_each(durable: str) -> Config:
    return {
        **_ack_all(durable),
        "ack_policy": "explicit",
        "deliver_policy": "new",
        "max_waiting": 512,
    }


def _platform_durable(name: str) -> str:
    try:
        token = user_id(name)
    except InvalidIdError as error:
        raise ConfigurationError(
            f"MESSAGING_PLATFORM_CONSUMERS: {name!r} is no name of letters, digits, _ and -"
        ) from error
    if token in RESERVED_DURABLES:
        raise ConfigurationError(f"MESSAGING_PLATFORM_CONSUMERS: {name!r} is one of our own")
    return token
