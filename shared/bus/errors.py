"""The exceptions of the bus. Each says in ``retry`` whether the same call may soon succeed.

::

    BusError
    ├── BusDisconnectedError    no connection; nothing was sent
    ├── BusOverloadedError      a local bound is reached; nothing was sent
    ├── BusUnauthorizedError    the server refused this user
    ├── InvalidSubjectError     our own bug: a text that would break the protocol line
    ├── PublishTimeoutError     outcome unknown; the same message id may be sent again
    ├── PublishRefusedError     JetStream said no; nothing was stored
    ├── KvConflictError         compare-and-set lost
    ├── NoRespondersError       nobody serves this subject now
    ├── RequestTimeoutError     no answer in time
    ├── ServiceFailedError      a responder of ours failed or is full
    ├── JetStreamApiError       the JetStream API said no
    └── ConsumerMissingError    the durable consumer or its stream does not exist
"""

from typing import ClassVar, Final

from shared.errors import LilithError

DUPLICATE_IN_PROCESS: Final = 10158
"""The same message id is being stored at this moment: wait a little, then ask again."""

MESSAGE_TOO_LARGE: Final = 10054
WRONG_LAST_SEQUENCE: Final = 10071
WRONG_LAST_SEQUENCE_CONSTANT: Final = 10164
CONSUMER_NOT_FOUND: Final = 10014
STREAM_NOT_FOUND: Final = 10059
MESSAGE_NOT_FOUND: Final = 10037


class BusError(LilithError):
    """Base of every error of the bus."""

    retry: ClassVar[bool] = False


class BusDisconnectedError(BusError):
    """There is no connection to NATS. The call sent nothing, now or later."""

    retry = True

    def __init__(self, doing: str) -> None:
        super().__init__(f"not connected to NATS: {doing}")


class BusOverloadedError(BusError):
    """A bound of this process is reached (unsent bytes, outstanding calls). The call sent nothing."""

    retry = True


class BusUnauthorizedError(BusError):
    """The server does not accept this user or password."""


class InvalidSubjectError(BusError):
    """The text cannot be a subject, queue name or header: it would break the protocol line."""

    def __init__(self, text: object) -> None:
        super().__init__(f"not a NATS subject, queue or header: {text!r}")


class PublishTimeoutError(BusError):
    """JetStream did not confirm in time. Publishing again with the same message id is safe."""

    retry = True

    def __init__(self, subject: str, *, waited_s: float) -> None:
        super().__init__(f"no acknowledgement for {subject} after {waited_s:.1f} s")
        self.subject = subject
        self.waited_s = waited_s


class PublishRefusedError(BusError):
    """JetStream refused the message or the batch; nothing of it is stored.

    ``code`` is an HTTP-like status, ``err_code`` the number of the JetStream error (10054 too large,
    10071 wrong last sequence, 10077 stream full, 10158 same id in process, 10201 batch holds a duplicate).
    """

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"refused by JetStream: {description} (code {code}, error {err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description

    @property
    def soon(self) -> bool:
        """Whether the same message may be accepted within a second."""
        return self.code == 429 or self.err_code == DUPLICATE_IN_PROCESS


class KvConflictError(BusError):
    """The entry is not at the expected revision: read it again, decide again."""

    def __init__(self, bucket: str, key: str, *, expected: int) -> None:
        super().__init__(f"{bucket}/{key} is not at revision {expected}")
        self.bucket = bucket
        self.key = key
        self.expected = expected


class NoRespondersError(BusError):
    """Nobody listens on the subject: the service is down, a leader is being elected, or a wrong name."""

    retry = True

    def __init__(self, subject: str) -> None:
        super().__init__(f"no responders for {subject}")
        self.subject = subject


class RequestTimeoutError(BusError):
    """No answer in time. Whether the request was carried out is unknown."""

    retry = True

    def __init__(self, subject: str, *, waited_s: float) -> None:
        super().__init__(f"no answer from {subject} after {waited_s:.1f} s")
        self.subject = subject
        self.waited_s = waited_s


class ServiceFailedError(BusError):
    """A responder answered that its handler failed (500) or that its queue is full (503)."""

    def __init__(self, subject: str, code: int, description: str) -> None:
        super().__init__(f"{subject}: {description} (code {code})")
        self.subject = subject
        self.code = code
        self.description = description


class JetStreamApiError(BusError):
    """The JetStream API answered with an error."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"JetStream API: {description} (code {code}, error {err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description


class ConsumerMissingError(BusError):
    """The durable consumer, or its stream, does not exist: provisioning has not run, or it was deleted."""

    def __init__(self, stream: str, durable: str) -> None:
        super().__init__(f"no consumer {durable} on stream {stream}")
        self.stream = stream
        self.durable = durable
