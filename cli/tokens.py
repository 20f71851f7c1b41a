"""``token``: a JWT for trying things out, signed with the key of this machine's platform."""

from pathlib import Path

from cli.data_directory import DataDirectory
from shared.auth import make_token
from shared.errors import InvalidIdError, TokenError
from shared.settings import load_settings, parse_duration


def token_text(
    data_dir: Path,
    user: str,
    *,
    role: str = "client",
    name: str | None = None,
    ttl: str | None = None,
) -> str:
    """Return a token for ``user``, signed with ``JWT_SECRET`` or else the key of ``data_dir``.

    The key is made if there is none. ``ttl`` None means ``JWT_EXPIRATION``.

    Raises:
        ValueError: ``user``, ``role``, ``name`` or ``ttl`` is not what a token may hold.
        ConfigurationError: ``JWT_SECRET`` is unsafe, or tokens come from an identity provider.
    """
    ttl_s = None if ttl is None else parse_duration(ttl)
    settings = load_settings()
    if not settings.jwt_secret:
        key = DataDirectory(data_dir).secrets().jwt_secret
        settings = settings.model_copy(update={"jwt_secret": key})
    try:
        return make_token(settings, user, role, name, ttl_s)
    except InvalidIdError as error:
        raise ValueError("a user id is 1 to 64 letters, digits, - and _") from error
    except TokenError as error:
        raise ValueError(str(error)) from error
