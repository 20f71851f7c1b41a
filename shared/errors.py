"""The exceptions of the system.

::

    LilithError
    ├── ConfigurationError      the environment says something impossible; the process does not start
    ├── InvalidIdError          a text that is no id; never reaches a subject or a query
    ├── InvalidCursorError      a text that is no cursor of this thread
    ├── TokenError              a JSON Web Token that is refused
    └── (machinery)             shared.bus, shared.database and others derive their own from LilithError

An error that a client may see carries a code of ``shared.protocol.ErrorCode``; everything else is ``internal``.
"""


class LilithError(Exception):
    """Base of every error that this system raises on purpose."""


class ConfigurationError(LilithError):
    """A setting is missing, unsafe or contradicts another. The text says what to set."""


class InvalidIdError(LilithError):
    """The text is not an id of the expected form (architecture, section 3)."""

    def __init__(self, text: object) -> None:
        super().__init__("not an id")
        self.text = text


class InvalidCursorError(LilithError):
    """The text is not a cursor, or is one of another thread."""


class TokenError(LilithError):
    """The token is refused. ``expired`` tells an old token from a bad one."""

    def __init__(self, reason: str, *, expired: bool = False) -> None:
        super().__init__(reason)
        self.expired = expired
