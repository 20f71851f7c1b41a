"""A sender on a real server, and what tests of the one path to the log say to it."""

import dataclasses
from typing import Any, Final

import msgspec
import uuid_utils

from shared import identity, subjects
from shared.bus import Bus, StoredMessage
from shared.events import MessageNew, decode_event
from shared.identity import ClientMessageId, ThreadId, UserId
from shared.metrics import EdgeMetrics, SendingMetrics
from shared.protocol import ErrorCode
from shared.sending import Outcome, Refused, Sender, SendRequest, Sent
from shared.settings import Settings, load_settings
from tests.support.servers import NatsServer

THREAD: Final = ThreadId("0190a0b1c2d37e4f8a9b0c1d2e3f4a5b")
STREAM: Final = "MSG_0"


@dataclasses.dataclass
class Fabric:
    """A server with streams, an edge's connection to it, and a sender on that."""

    server: NatsServer
    bus: Bus
    sender: Sender
    metrics: SendingMetrics
    settings: Settings

    async def send(self, request: SendRequest) -> Outcome:
        return await self.sender.send(request)

    async def stored(self, thread: ThreadId = THREAD) -> list[StoredMessage]:
        page = await self.bus.get_range(
            STREAM,
            subjects.msg_subject(thread),
            from_seq=1,
            max_messages=5_000,
            max_bytes=4_000_000,
        )
        return list(page.messages)

    async def bodies(self, thread: ThreadId = THREAD) -> list[str]:
        events = [decode_event(message.payload) for message in await self.stored(thread)]
        return [event.body for event in events if isinstance(event, MessageNew)]


def configured(**explicit: object) -> Settings:
    return load_settings(**explicit)


async def start(server: NatsServer, bus: Bus, settings: Settings) -> Fabric:
    metrics = EdgeMetrics("test").sending
    made = Sender(bus, settings, metrics=metrics)
    await made.prepare()
    return Fabric(server, bus, made, metrics, settings)


def client_id(*, age_s: float = 0.0) -> ClientMessageId:
    made_ms = identity.now_ms() - round(age_s * 1000)
    return ClientMessageId(f"{made_ms:012x}{uuid_utils.uuid7().hex[12:]}")


def request(
    body: str = "hello",
    **fields: Any,  # noqa: ANN401 - those of SendRequest
) -> SendRequest:
    return SendRequest(
        **{
            "thread_id": THREAD,
            "sender_id": UserId("ava"),
            "client_msg_id": client_id(),
            "body": body,
            "attachments": [],
            "attachment_ids": [],
            "reply_to": None,
            "metadata": {},
            "kind": "text",
            **fields,
        }
    )


def sent(outcome: Outcome) -> Sent:
    assert isinstance(outcome, Sent), outcome
    return outcome


def refused(outcome: Outcome) -> ErrorCode:
    assert isinstance(outcome, Refused), outcome
    return outcome.code


class Find:
    """The api's ``svc.message.find``, with an answer that the test chooses."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        self.questions: list[dict[str, str]] = []

    async def __call__(self, question: bytes) -> bytes:
        self.questions.append(msgspec.json.decode(question))
        return msgspec.json.encode(self.answer)
