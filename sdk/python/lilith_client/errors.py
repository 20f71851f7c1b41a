"""What can go wrong, each with what it means for the thing that was asked: not done, done, or unknown."""

from collections.abc import Sequence
from typing import Any


class ClientError(Exception):
    """Base of every error of this client."""


class CommandError(ClientError):
    """The server refused the command, which therefore changed nothing. ``code`` is a word to switch on.

    ``retryable`` refusals of ``send`` and ``subscribe`` are repeated by the client and never surface.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        retry_after_s: float | None = None,
        details: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.details = list(details)


class OutcomeUnknownError(ClientError):
    """Neither an ``ack`` nor a refusal came in time: the message may be stored or not.

    Calling ``send`` again with the same ``client_msg_id`` and content is always safe: it is the same message.
    """

    def __init__(self, client_msg_id: str, *, waited_s: float) -> None:
        super().__init__(f"no answer for message {client_msg_id} in {waited_s:.0f} s")
        self.client_msg_id = client_msg_id
        self.waited_s = waited_s


class DisconnectedError(ClientError):
    """There is no connection at the moment; the client is getting a new one. Ask again when it has it."""


class StoppedError(ClientError):
    """The client is not connected and will not try again, because the server said not to come back.

    ``code`` is the WebSocket close code or the HTTP status of the refused handshake, None for a failure of our own.
    """

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"{reason} ({code})" if code else reason)
        self.code = code
        self.reason = reason


class ClosedError(StoppedError):
    """The program closed the client."""

    def __init__(self) -> None:
        super().__init__(None, "the client was closed")


class RestError(ClientError):
    """The REST api answered with an error, or not at all (``status`` 0, ``code`` ``unreachable``)."""

    def __init__(
        self, status: int, code: str, detail: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in {0, 429} or self.status >= 500
