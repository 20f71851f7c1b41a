"""Every NATS name in the system: subjects, streams, durables, buckets, and who may use them. No I/O.

All facts of one thread share one subject, so their order is the stream's. Nothing else formats a subject: an id that
comes here was matched against its pattern before (``shared.identity``), and the builders check it once more, because a
thread id of ``*`` would read every thread. Token grammar: NATS ADR-6. Contract: architecture, section 4.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from shared.errors import InvalidIdError
from shared.identity import ThreadId, UserId

SHARDS: Final = 256
"""Logical shards, for ever. Streams take ranges of them, so the number of streams may grow."""

RCPT_STREAM: Final = "RCPT"
RATE_STREAM: Final = "RATE"
EVENTS_STREAM: Final = "EVENTS"
PLATFORM_STREAM: Final = "PLATFORM"

ACCESS_BUCKET: Final = "access"
USERS_BUCKET: Final = "users"
STANDING_BUCKET: Final = "standing"
PRESENCE_BUCKET: Final = "presence"
NODES_BUCKET: Final = "nodes"
BUCKETS: Final = (ACCESS_BUCKET, USERS_BUCKET, STANDING_BUCKET, PRESENCE_BUCKET, NODES_BUCKET)

PERSISTER_DURABLE: Final = "persister"
ANALYTICS_DURABLE: Final = "analytics"
API_DURABLE: Final = "api"

SVC_MESSAGE_FIND: Final = "svc.message.find"
SVC_MESSAGE_POSITION: Final = "svc.message.position"
SVC_MESSAGE_SEND: Final = "svc.message.send"
SVC_USER_SEEN: Final = "svc.user.seen"
SVC_QUEUE: Final = "api"

LIVE_PREFIX: Final = "live"
MSG_PREFIX: Final = "msg"
INVALIDATION_PREFIX: Final = "inv"
"""Buckets republish their entries here: what was stored, never what was refused."""
LEADER_ELECTED_PREFIX: Final = "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED"
LEADER_ELECTED: Final = "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.*"
"""What the server says when a stream gets a leader; the last token is the stream."""
SERVER_STATE: Final = "$SYS.REQ.SERVER.PING.VARZ"
"""Each server of the cluster answers with its configuration; imported from the system account."""

_TOKEN_ALPHABET: Final = frozenset(
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-"
)
_TOKEN_LENGTH_MAX: Final = 64
_FNV_OFFSET: Final = 2_166_136_261
_FNV_PRIME: Final = 16_777_619


@lru_cache(maxsize=100_000)
def hash_of(thread_id: ThreadId) -> int:
    """Return the FNV-1a 32-bit hash of a thread id."""
    value = _FNV_OFFSET
    for byte in thread_id.encode():
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return value


def shard_of(thread_id: ThreadId) -> int:
    """Return the thread's shard, 0 to 255: what the server's ``partition(256, …)`` gives for the same token."""
    return hash_of(thread_id) % SHARDS


def msg_subject(thread_id: ThreadId) -> str:
    """Return the subject of every durable event of one thread.

    Raises:
        InvalidIdError: The id is no safe token.
    """
    return f"{MSG_PREFIX}.{shard_of(thread_id)}.{_token(thread_id)}"


def live_subject(thread_id: ThreadId) -> str:
    """Return the subject on which the server republishes what it stored of one thread."""
    return f"{LIVE_PREFIX}.{shard_of(thread_id)}.{_token(thread_id)}"


def eph_subject(thread_id: ThreadId) -> str:
    """Return the subject of a thread's ephemeral events: typing, receipts moved. Never stored."""
    return f"eph.{shard_of(thread_id)}.{_token(thread_id)}"


def rcpt_subject(thread_id: ThreadId, user_id: UserId | str) -> str:
    """Return the subject that holds one user's cursors in one thread; ``"*"`` as user means all of them."""
    last = user_id if user_id == "*" else _token(user_id)
    return f"rcpt.{shard_of(thread_id)}.{_token(thread_id)}.{last}"


def user_subject(user_id: UserId) -> str:
    """Return the subject of one user's feed."""
    return f"user.{_token(user_id)}"


def rate_subject(user_id: UserId, window: int) -> str:
    """Return the subject of one user's counter in one window (its number since the epoch)."""
    return f"rate.{_token(user_id)}.{window}"


def thread_of(subject: str) -> ThreadId:
    """Return the thread id in a ``msg``, ``live``, ``eph`` or ``rcpt`` subject."""
    return ThreadId(subject.split(".")[2])


def stream_names(streams: int) -> tuple[str, ...]:
    """Return the names of the message streams, in shard order."""
    return tuple(f"MSG_{number}" for number in range(streams))


def stream_of(thread_id: ThreadId, streams: int) -> str:
    """Return the message stream that holds the thread when ``streams`` share the shards."""
    return f"MSG_{shard_of(thread_id) * streams // SHARDS}"


def stream_subjects(number: int, streams: int) -> list[str]:
    """Return the subjects of message stream ``number`` of ``streams``: its range of shards."""
    if streams == 1:
        return [f"{MSG_PREFIX}.*.*"]
    return [
        f"{MSG_PREFIX}.{shard}.*" for shard in range(SHARDS) if shard * streams // SHARDS == number
    ]


def bucket_stream(bucket: str) -> str:
    """Return the name of the stream behind a key-value bucket."""
    return f"KV_{bucket}"


def bucket_subject(bucket: str, key: str) -> str:
    """Return the subject of one key. Keys are ids, so they are safe tokens; ``user.node`` joins two."""
    return f"$KV.{bucket}.{'.'.join(_token(part) for part in key.split('.'))}"


def invalidation_subject(bucket: str, key: str = "*") -> str:
    """Return the subject on which a bucket republishes a stored entry of ``key``."""
    return f"{INVALIDATION_PREFIX}.{bucket}.{key}"


def leader_elected_subject(stream: str) -> str:
    """Return the subject on which the servers tell that a stream has a new leader."""
    return f"{LEADER_ELECTED_PREFIX}.{_token(stream)}"


def inbox_prefix(role: str, node: str) -> str:
    """Return the inbox prefix of one process: replies to one role are unreadable for the others."""
    return f"_INBOX_{_token(role)}.{_token(node)}"


class Permissions(NamedTuple):
    """What one role may do on the server. A subject that is both allowed and denied is denied."""

    publish: Sequence[str]
    subscribe: Sequence[str]
    publish_denied: Sequence[str] = ()
    answers: bool = False
    """Whether the role may answer the requests it receives, once each, wherever the asker listens."""


ROLES: Final = ("edge", "persister", "api", "analytics", "provision", "platform")


def permissions(role: str, streams: int) -> Permissions:
    """Return what a role may publish and subscribe when ``streams`` share the shards.

    Source of ``nats/authorization.conf``. Least rights: an edge can publish messages and read live, and can never
    delete, purge, spoof ``live.>`` or read another role's inbox. A wildcard inside a token is none for NATS, so
    streams are listed one by one.

    Raises:
        KeyError: An unknown role.
    """
    names = stream_names(streams)
    return {
        "edge": _edge_permissions(names),
        "persister": _persister_permissions(names),
        "api": _api_permissions(names),
        "analytics": Permissions(
            publish=[SERVER_STATE, *_consume((EVENTS_STREAM,), ANALYTICS_DURABLE)],
            subscribe=["_INBOX_analytics.>"],
        ),
        "provision": Permissions(
            publish=["$JS.API.>", SERVER_STATE], subscribe=["_INBOX_provision.>"]
        ),
        "platform": _platform_permissions(),
    }[role]


def _edge_permissions(names: Sequence[str]) -> Permissions:
    buckets = [bucket_stream(bucket) for bucket in BUCKETS]
    return Permissions(
        publish=[
            SERVER_STATE,
            "msg.*.*",
            "eph.*.*",
            "rcpt.*.*.*",
            "rate.*.*",
            "user.*",
            "svc.>",
            *(f"$KV.{bucket}.>" for bucket in (PRESENCE_BUCKET, NODES_BUCKET)),
            *_read((*names, RCPT_STREAM, RATE_STREAM, *buckets)),
            *(f"$JS.API.CONSUMER.INFO.{name}.{PERSISTER_DURABLE}" for name in names),
        ],
        subscribe=[
            "live.*.*",
            "eph.*.*",
            "user.*",
            *(f"{INVALIDATION_PREFIX}.{bucket}.>" for bucket in BUCKETS),
            f"{LEADER_ELECTED_PREFIX}.*",
            "_INBOX_edge.>",
        ],
    )


def _persister_permissions(names: Sequence[str]) -> Permissions:
    return Permissions(
        publish=[
            SERVER_STATE,
            *_consume((*names, RCPT_STREAM), PERSISTER_DURABLE),
            *_read((*names, RCPT_STREAM)),
            f"$JS.API.STREAM.INFO.{EVENTS_STREAM}",
            "eph.*.*",
            "user.*",
            "messaging.>",
        ],
        subscribe=["_INBOX_persister.>"],
    )


def _api_permissions(names: Sequence[str]) -> Permissions:
    buckets = [bucket_stream(bucket) for bucket in BUCKETS]
    return Permissions(
        publish=[
            SERVER_STATE,
            "msg.*.*",
            "eph.*.*",
            "rcpt.*.*.*",
            "rate.*.*",
            "user.*",
            "messaging.>",
            "svc.>",
            "safety.message.check",
            *(f"$KV.{bucket}.>" for bucket in BUCKETS),
            # Entries of bans that are over; the bucket would keep them for ever.
            f"$JS.API.STREAM.PURGE.{bucket_stream(STANDING_BUCKET)}",
            *_read((*names, RCPT_STREAM, RATE_STREAM, *buckets)),
            *(f"$JS.API.CONSUMER.INFO.{name}.{PERSISTER_DURABLE}" for name in names),
            f"$JS.API.STREAM.INFO.{EVENTS_STREAM}",
            *_consume((PLATFORM_STREAM,), API_DURABLE),
        ],
        subscribe=[
            "svc.>",
            *(f"{INVALIDATION_PREFIX}.{bucket}.>" for bucket in BUCKETS),
            "_INBOX_api.>",
        ],
        answers=True,
    )


def _platform_permissions() -> Permissions:
    """Platform services pull from the consumers provided for them, under any name but our own one's."""
    return Permissions(
        publish=[
            "marketplace.>",
            "profile.>",
            "safety.user.>",
            SVC_MESSAGE_SEND,
            *_pull(EVENTS_STREAM, "*"),
        ],
        subscribe=["messaging.>", "safety.message.check", "_INBOX.>"],
        publish_denied=_pull(EVENTS_STREAM, ANALYTICS_DURABLE),
        answers=True,
    )


def _pull(stream: str, durable: str) -> list[str]:
    return [
        f"$JS.API.CONSUMER.INFO.{stream}.{durable}",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}",
        # Both generations of ack subjects: the longer one carries a domain and an account hash.
        f"$JS.ACK.{stream}.{durable}.>",
        f"$JS.ACK.*.*.{stream}.{durable}.>",
    ]


def _consume(streams: Sequence[str], durable: str) -> list[str]:
    return [
        subject
        for stream in streams
        for subject in (
            f"$JS.API.STREAM.INFO.{stream}",
            f"$JS.API.CONSUMER.RESET.{stream}.{durable}",
            *_pull(stream, durable),
        )
    ]


def _read(streams: Sequence[str]) -> list[str]:
    return [
        subject
        for stream in streams
        for subject in (
            f"$JS.API.STREAM.INFO.{stream}",
            f"$JS.API.STREAM.MSG.GET.{stream}",
            f"$JS.API.DIRECT.GET.{stream}",
            f"$JS.API.DIRECT.GET.{stream}.>",
        )
    ]


def _token(text: str) -> str:
    if not 0 < len(text) <= _TOKEN_LENGTH_MAX or not _TOKEN_ALPHABET.issuperset(text):
        raise InvalidIdError(text)
    return text
