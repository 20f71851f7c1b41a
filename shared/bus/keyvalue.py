"""Key-value buckets: read by direct get, written with compare-and-set by revision."""

from typing import Final

from shared.bus.direct import DirectReader
from shared.bus.errors import (
    WRONG_LAST_SEQUENCE,
    WRONG_LAST_SEQUENCE_CONSTANT,
    KvConflictError,
    PublishRefusedError,
)
from shared.bus.messages import KvEntry, StoredMessage, header_value
from shared.bus.publishing import Publisher

TIMEOUT_S: Final = 5.0
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"


class KeyValue:
    """All buckets; a bucket is the stream ``KV_<bucket>``, an entry the last message of its subject."""

    def __init__(self, reader: DirectReader, publisher: Publisher) -> None:
        self._reader = reader
        self._publisher = publisher

    async def get(self, bucket: str, key: str) -> KvEntry | None:
        """Return an entry; see ``Bus.kv_get``."""
        message = await self._reader.last(f"KV_{bucket}", _subject(bucket, key))
        if message is None or _is_end_marker(message):
            return None
        return KvEntry(message.payload, message.seq)

    async def put(self, bucket: str, key: str, value: bytes, *, expected: int | None) -> int:
        """Write an entry; see ``Bus.kv_put``."""
        if expected is None:
            return await self._write(bucket, key, value, {})
        try:
            return await self._write(bucket, key, value, {_EXPECTED: str(expected)})
        except PublishRefusedError as error:
            if error.err_code not in (WRONG_LAST_SEQUENCE, WRONG_LAST_SEQUENCE_CONSTANT):
                raise
            marker = await self._end_marker(bucket, key) if expected == 0 else None
            if marker is None:
                raise KvConflictError(bucket, key, expected=expected) from error
        # A deleted or expired entry leaves a marker; "must not exist" means: the marker is still the last.
        return await self.put(bucket, key, value, expected=marker)

    async def _write(self, bucket: str, key: str, value: bytes, headers: dict[str, str]) -> int:
        ack = await self._publisher.store(
            _subject(bucket, key), value, message_id=None, timeout_s=TIMEOUT_S, headers=headers
        )
        return ack.seq

    async def _end_marker(self, bucket: str, key: str) -> int | None:
        message = await self._reader.last(f"KV_{bucket}", _subject(bucket, key))
        return message.seq if message is not None and _is_end_marker(message) else None


def _subject(bucket: str, key: str) -> str:
    return f"$KV.{bucket}.{key}"


def _is_end_marker(message: StoredMessage) -> bool:
    operation = header_value(message.headers, b"KV-Operation")
    return (
        operation in (b"DEL", b"PURGE")
        or header_value(message.headers, b"Nats-Marker-Reason") is not None
    )
