"""Reading streams without a consumer: direct get, answered by any replica, 0.1 ms.

A replica may lag some milliseconds behind the leader. That is fine for a cache that is told about changes, and
handled here where a message is known to exist (``by_seq``).
"""

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from shared.bus.errors import (
    MESSAGE_NOT_FOUND,
    BusError,
    JetStreamApiError,
    NoRespondersError,
    RequestTimeoutError,
)
from shared.bus.messages import (
    Headers,
    Page,
    StoredMessage,
    header_description,
    header_number,
    header_status,
    header_value,
)
from shared.bus.requests import Reply, Requests

SUBJECTS_MAX: Final = 1_024
"""The server refuses (413) a ``multi_last`` that matches more."""

BATCH_BYTES_MAX: Final = 4 << 20
"""Of one answer in parts. More could overrun what the server buffers for this connection."""

TIMEOUT_S: Final = 5.0
LAG_WAIT_S: Final = 3.0
LAG_RETRY_S: Final = 0.05
LAG_TRIES: Final = 3
"""Direct tries before the leader is asked. It decides, so nobody waits seconds for a message that has expired."""

_END_OF_BATCH: Final = 204
_NOT_FOUND: Final = 404
_TOO_MANY: Final = 413


class DirectReader:
    """Direct gets of any stream with ``allow_direct``."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def last(self, stream: str, subject: str) -> StoredMessage | None:
        """Return the last message of a subject; see ``Bus.get_last``."""
        return await self._single(stream, {"last_by_subj": subject})

    async def by_seq(self, stream: str, seq: int) -> StoredMessage | None:
        """Return one message; see ``Bus.get_seq``."""
        give_up_at = asyncio.get_running_loop().time() + LAG_WAIT_S
        tries = 0
        while True:
            message = await self._single(stream, {"seq": seq})
            if message is not None:
                return message
            tries += 1
            if tries >= LAG_TRIES:
                try:
                    return await self._from_leader(stream, seq)
                except (NoRespondersError, RequestTimeoutError):
                    # Between leaders. The replicas are still asked: one may catch up before a leader is elected.
                    if asyncio.get_running_loop().time() >= give_up_at:
                        raise
            await asyncio.sleep(LAG_RETRY_S)

    async def last_many(self, stream: str, subjects: Sequence[str]) -> list[StoredMessage]:
        """Return the last message of every subject that has one; see ``Bus.get_last_many``."""
        found: list[StoredMessage] = []
        for start in range(0, len(subjects), SUBJECTS_MAX):
            found.extend(await self._last_of_some(stream, subjects[start : start + SUBJECTS_MAX]))
        found.sort(key=lambda message: message.seq)
        return found

    async def page(
        self, stream: str, subject: str, *, from_seq: int, max_messages: int, max_bytes: int
    ) -> Page:
        """Return consecutive messages of a subject; see ``Bus.get_range``."""
        query = {
            "seq": from_seq,
            "next_by_subj": subject,
            "batch": max_messages,
            "max_bytes": max_bytes,
        }
        messages, end = await self._batch(stream, query)
        return Page(messages, more=header_number(end.headers, b"Nats-Num-Pending") > 0)

    async def _single(self, stream: str, query: Mapping[str, Any]) -> StoredMessage | None:
        reply = await self._requests.one(_subject(stream), _encode(query), timeout_s=TIMEOUT_S)
        status = header_status(reply.headers)
        if status == _NOT_FOUND:
            return None
        if status:
            raise _refusal(reply)
        return _stored(reply)

    async def _batch(
        self, stream: str, query: Mapping[str, Any]
    ) -> tuple[list[StoredMessage], Reply]:
        """Return the messages and the status that ended them."""
        replies = await self._requests.many(
            _subject(stream), _encode(query), timeout_s=TIMEOUT_S, is_last=_ends_a_batch
        )
        end = replies.pop()
        if header_status(end.headers) not in (_END_OF_BATCH, _NOT_FOUND):
            raise _refusal(end)
        return [_stored(reply) for reply in replies], end

    async def _last_of_some(self, stream: str, subjects: Sequence[str]) -> list[StoredMessage]:
        query: dict[str, Any] = {"multi_last": list(subjects), "max_bytes": BATCH_BYTES_MAX}
        found: list[StoredMessage] = []
        while True:
            try:
                messages, end = await self._batch(stream, query)
            except JetStreamApiError as error:
                if error.code != _TOO_MANY or len(subjects) == 1:
                    raise
                # Wildcards match more subjects than were named.
                half = len(subjects) // 2
                return [
                    *await self._last_of_some(stream, subjects[:half]),
                    *await self._last_of_some(stream, subjects[half:]),
                ]
            found.extend(messages)
            if not messages or not header_number(end.headers, b"Nats-Num-Pending"):
                return found
            # The batch ended by its bytes. It goes on behind the last one, as the stream was at the first.
            query["seq"] = header_number(end.headers, b"Nats-Last-Sequence") + 1
            query["up_to_seq"] = header_number(end.headers, b"Nats-UpTo-Sequence")

    async def _from_leader(self, stream: str, seq: int) -> StoredMessage | None:
        try:
            answer = await self._requests.api(
                f"STREAM.MSG.GET.{stream}", {"seq": seq}, timeout_s=LAG_WAIT_S
            )
        except JetStreamApiError as error:
            if error.err_code == MESSAGE_NOT_FOUND:
                return None
            raise
        message = answer["message"]
        return StoredMessage(
            stream=stream,
            seq=message["seq"],
            subject=message["subject"],
            time=message["time"],
            headers=base64.b64decode(message.get("hdrs", "")),
            payload=base64.b64decode(message.get("data", "")),
        )


def _subject(stream: str) -> str:
    return f"$JS.API.DIRECT.GET.{stream}"


def _encode(query: Mapping[str, Any]) -> bytes:
    return json.dumps(query).encode()


def _ends_a_batch(reply: Reply) -> bool:
    return header_status(reply.headers) != 0


def _refusal(reply: Reply) -> BusError:
    return JetStreamApiError(header_status(reply.headers), 0, header_description(reply.headers))


def _stored(reply: Reply) -> StoredMessage:
    headers: Headers = reply.headers
    return StoredMessage(
        stream=(header_value(headers, b"Nats-Stream") or b"").decode(),
        seq=header_number(headers, b"Nats-Sequence"),
        subject=(header_value(headers, b"Nats-Subject") or b"").decode(),
        time=(header_value(headers, b"Nats-Time-Stamp") or b"").decode(),
        headers=headers,
        payload=reply.payload,
    )
