"""An asyncio client of Lilith Messaging: a sent message is stored, once, in order; what was missed is read again."""

from lilith_client.client import Client
from lilith_client.errors import (
    ClientError,
    CommandError,
    DisconnectedError,
    OutcomeUnknownError,
    RestError,
    StoppedError,
)
from lilith_client.objects import (
    CONNECTED,
    DISCONNECTED,
    GAP,
    MESSAGE_NEW,
    SUBSCRIPTION_ENDED,
    Event,
    Hello,
    Message,
    Position,
    Sent,
    Subscribed,
)
from lilith_client.rest import Rest

__all__ = [
    "CONNECTED",
    "DISCONNECTED",
    "GAP",
    "MESSAGE_NEW",
    "SUBSCRIPTION_ENDED",
    "Client",
    "ClientError",
    "CommandError",
    "DisconnectedError",
    "Event",
    "Hello",
    "Message",
    "OutcomeUnknownError",
    "Position",
    "Rest",
    "RestError",
    "Sent",
    "StoppedError",
    "Subscribed",
]
