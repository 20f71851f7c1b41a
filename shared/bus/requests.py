"""Request and reply over one own inbox, and the JetStream API on top of it."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from shared.bus.client import Client
from shared.bus.errors import (
    BusDisconnectedError,
    BusOverloadedError,
    JetStreamApiError,
    NoRespondersError,
    RequestTimeoutError,
    ServiceFailedError,
)
from shared.bus.messages import (
    ConsumerInfo,
    Headers,
    header_number,
    header_status,
    header_value,
    subject_bytes,
)

OUTSTANDING_MAX: Final = 20_000
ERROR_CODE_HEADER: Final = b"Nats-Service-Error-Code"
ERROR_HEADER: Final = b"Nats-Service-Error"


class Reply(NamedTuple):
    """One answer, or one part of an answer in parts."""

    headers: Headers
    payload: bytes


IsLast = Callable[[Reply], bool]


class _Asking(NamedTuple):
    outcome: "asyncio.Future[list[Reply]]"
    replies: list[Reply]
    is_last: IsLast


class Requests:
    """Asks and matches answers by the last token of the inbox subject."""

    def __init__(self, client: Client, inbox: str) -> None:
        self._client = client
        self._asking: dict[bytes, _Asking] = {}
        self._count = 0
        self._prefix = inbox.encode() + b".r."
        client.listen(f"{inbox}.r.*", self._answered)
        client.on_lost.append(self._connection_lost)

    async def one(
        self, subject: str | bytes, payload: bytes, *, timeout_s: float, headers: Headers = b""
    ) -> Reply:
        """Ask for one answer; raises as ``Bus.request``, but leaves a service's error header to the caller."""
        replies = await self.many(
            subject, payload, timeout_s=timeout_s, is_last=_always, headers=headers
        )
        return replies[0]

    async def many(
        self,
        subject: str | bytes,
        payload: bytes,
        *,
        timeout_s: float,
        is_last: IsLast,
        headers: Headers = b"",
    ) -> list[Reply]:
        """Ask for an answer in parts; ``is_last`` recognises its end, which is returned too."""
        if len(self._asking) >= OUTSTANDING_MAX:
            raise BusOverloadedError(f"{OUTSTANDING_MAX} requests wait for their answer")
        target = subject_bytes(subject)
        self._count += 1
        token = b"%x" % self._count
        self._client.publish_now(target, payload, reply=self._prefix + token, headers=headers)
        asking = _Asking(asyncio.get_running_loop().create_future(), [], is_last)
        self._asking[token] = asking
        try:
            async with asyncio.timeout(timeout_s):
                replies = await asking.outcome
        except TimeoutError as error:
            raise RequestTimeoutError(target.decode(), waited_s=timeout_s) from error
        finally:
            self._asking.pop(token, None)
        if header_status(replies[0].headers) == 503 and not replies[0].payload:
            raise NoRespondersError(target.decode())
        return replies

    async def service(
        self, subject: str | bytes, payload: bytes, *, timeout_s: float, headers: Headers
    ) -> bytes:
        """Ask a service; see ``Bus.request``."""
        reply = await self.one(subject, payload, timeout_s=timeout_s, headers=headers)
        code = header_number(reply.headers, ERROR_CODE_HEADER)
        if code:
            description = header_value(reply.headers, ERROR_HEADER) or b""
            raise ServiceFailedError(
                subject_bytes(subject).decode(), code, description.decode("utf-8", "replace")
            )
        return reply.payload

    async def api(
        self, suffix: str, body: Mapping[str, Any] | None, *, timeout_s: float
    ) -> dict[str, Any]:
        """Call the JetStream API; see ``Bus.api``."""
        payload = json.dumps(body).encode() if body is not None else b""
        reply = await self.one(f"$JS.API.{suffix}", payload, timeout_s=timeout_s)
        answer: dict[str, Any] = json.loads(reply.payload)
        error = answer.get("error")
        if error is not None:
            raise JetStreamApiError(
                error["code"], error.get("err_code", 0), error.get("description", "")
            )
        return answer

    def _answered(self, subject: bytes, _reply: bytes, headers: bytes, payload: bytes) -> None:
        asking = self._asking.get(subject[len(self._prefix) :])
        if asking is None or asking.outcome.done():
            return
        reply = Reply(headers, payload)
        asking.replies.append(reply)
        if asking.is_last(reply):
            asking.outcome.set_result(asking.replies)

    def _connection_lost(self) -> None:
        for asking in self._asking.values():
            if not asking.outcome.done():
                asking.outcome.set_exception(
                    BusDisconnectedError("the connection broke before the answer")
                )


def consumer_info(answer: Mapping[str, Any]) -> ConsumerInfo:
    """Read the answer of ``CONSUMER.INFO`` or ``CONSUMER.RESET``."""
    return ConsumerInfo(
        ack_floor_seq=answer["ack_floor"]["stream_seq"],
        delivered_seq=answer["delivered"]["stream_seq"],
        num_ack_pending=answer["num_ack_pending"],
        num_pending=answer["num_pending"],
    )


def _always(_reply: Reply) -> bool:
    return True
