"""``init``: the secrets of a production installation, made once and never defaulted."""

import os
import secrets
from pathlib import Path

from cli.embedded.nats import NATS_USERS
from shared.errors import ConfigurationError


def write_environment_file(path: Path) -> None:
    """Write ``path`` (mode 0600) with a fresh value for every secret.

    Raises:
        ConfigurationError: It exists already: secrets are never overwritten.
    """
    passwords = {f"LILITH_NATS_{user.upper()}_PASSWORD": _password() for user in NATS_USERS}
    values = {
        "JWT_SECRET": secrets.token_urlsafe(48),
        "DATABASE_POSTGRES_PASSWORD": _password(),
        **passwords,
    }
    lines = ["# Fresh secrets, made by ./run init. Every other setting: .env.example"]
    lines += [f"{name}={value}" for name, value in values.items()]
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path} exists already: move it away first, or name another file"
        ) from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def _password() -> str:
    # A letter first, then letters and digits: safe in a URL, in a shell, and bare in nats/server.conf,
    # which would read a leading digit as a number.
    return f"p{secrets.token_hex(24)}"
