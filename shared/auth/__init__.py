"""JSON Web Tokens: who is it, in which role, until when. The algorithm comes from configuration, never from the token.

Required claims: ``sub`` (a user id), ``exp``, ``iat``. ``role`` is ``client`` when missing. No leeway: a token ends at
its second. Verifying costs about 32 µs (HS256), 56 (RS256), 93 (ES256) or 128 (EdDSA); nothing is cached.
"""

import asyncio
import math
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import jwt
from jwt.types import Options

from shared.auth.keys import Algorithm, KeyFile, KeySource, KeyUrl, PublicKey
from shared.errors import ConfigurationError, InvalidIdError, TokenError
from shared.identity import UserId, user_id
from shared.settings import Settings, require_secret

__all__ = ["ROLES", "TOKEN_BYTES_MAX", "Identity", "Verifier", "make_token"]

TOKEN_BYTES_MAX: Final = 4096
NAME_CHARS_MAX: Final = 100
ROLES: Final = ("client", "creator", "admin", "service")
DEFAULT_ROLE: Final = "client"
TIME_MAX: Final = 2**53


class Identity(NamedTuple):
    """Who holds a valid token. Times are Unix seconds."""

    user_id: UserId
    role: str
    name: str | None
    issued_at: float
    expires_at: float


class Verifier:
    """Checks tokens against the configured key. One per process."""

    def __init__(self, settings: Settings, *, may_fetch: bool = False) -> None:
        """Read the key.

        Args:
            settings: Algorithm, key, audience and issuer.
            may_fetch: Whether this process may ask a URL for keys (``run`` does); an edge makes no HTTP calls.

        Raises:
            ConfigurationError: No key, an unsafe one, or one that does not fit the algorithm.
        """
        self._algorithms = [settings.jwt_algorithm]
        self._audience = settings.jwt_audience or None
        self._issuer = settings.jwt_issuer or None
        self._options: Options = {
            "require": ["exp", "iat", "sub"],
            "verify_aud": self._audience is not None,
        }
        self._secret = ""
        self._keys: KeySource | None = None
        if settings.jwt_algorithm == "HS256":
            self._secret = require_secret(settings)
        else:
            self._keys = _key_source(settings.jwt_jwks, settings.jwt_algorithm, may_fetch=may_fetch)

    def verify(self, token: str) -> Identity:
        """Return who the token is for.

        Raises:
            TokenError: Refused; the reason may be told to its holder. ``expired`` when only its time is over.
        """
        if len(token) > TOKEN_BYTES_MAX or not token.isascii():
            raise TokenError(f"no token of at most {TOKEN_BYTES_MAX} bytes")
        try:
            claims = jwt.decode(
                token,
                self._key_for(token),
                algorithms=self._algorithms,
                options=self._options,
                audience=self._audience,
                issuer=self._issuer,
            )
        except jwt.ExpiredSignatureError as error:
            raise TokenError("the token has expired", expired=True) from error
        except jwt.PyJWTError as error:
            raise TokenError(f"the token is refused: {error}") from error
        return _identity(claims)

    async def run(self, stop: asyncio.Event) -> None:
        """Keep keys that come from a URL fresh until ``stop`` is set; returns at once otherwise."""
        if isinstance(self._keys, KeyUrl):
            await self._keys.run(stop)

    def _key_for(self, token: str) -> str | PublicKey:
        if self._keys is None:
            return self._secret
        kid = jwt.get_unverified_header(token).get("kid")
        key = self._keys.find(kid) if kid is None or isinstance(kid, str) else None
        if key is None:
            raise TokenError("the token is signed with an unknown key")
        return key


def make_token(
    settings: Settings,
    user: str,
    role: str = DEFAULT_ROLE,
    name: str | None = None,
    ttl_s: float | None = None,
) -> str:
    """Return a token for ``user`` that is valid from now for ``ttl_s`` seconds (default: JWT_EXPIRATION).

    Raises:
        ConfigurationError: No safe secret, or tokens are made by an identity provider.
        InvalidIdError: ``user`` is no user id.
        TokenError: An unknown role or an impossible name: nobody could use the token.
    """
    if settings.jwt_algorithm != "HS256":
        raise ConfigurationError(
            f"JWT_ALGORITHM={settings.jwt_algorithm}: tokens come from your identity provider, not from here"
        )
    now = int(time.time())
    claims: dict[str, Any] = {
        "sub": user_id(user),
        "role": role,
        "iat": now,
        "exp": now + math.ceil(settings.jwt_expiration if ttl_s is None else ttl_s),
    }
    if name is not None:
        claims["name"] = name
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    _identity(claims)
    return jwt.encode(claims, require_secret(settings), algorithm="HS256")


def _key_source(place: str, algorithm: Algorithm, *, may_fetch: bool) -> KeySource:
    if not place:
        raise ConfigurationError(
            f"JWT_ALGORITHM={algorithm} needs JWT_JWKS: a file or https URL with the public keys"
        )
    if "://" not in place:
        return KeyFile(Path(place), algorithm)
    if not may_fetch:
        raise ConfigurationError("JWT_JWKS must be a file here: this service makes no HTTP calls")
    return KeyUrl(place, algorithm)


def _identity(claims: dict[str, Any]) -> Identity:
    try:
        subject = user_id(claims["sub"])
    except InvalidIdError as error:
        raise TokenError("sub is no user id") from error
    role = claims.get("role", DEFAULT_ROLE)
    if role not in ROLES:
        raise TokenError("role is unknown")
    return Identity(
        user_id=subject,
        role=role,
        name=_name(claims.get("name")),
        issued_at=_time(claims["iat"], "iat"),
        expires_at=_time(claims["exp"], "exp"),
    )


def _name(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > NAME_CHARS_MAX:
        raise TokenError(f"name is no text of at most {NAME_CHARS_MAX} characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise TokenError("name holds characters that cannot be stored")
    return value


def _time(value: object, claim: str) -> float:
    # The library takes "12" and true for numbers, and 10**400 for a time.
    if isinstance(value, int | float) and value is not True and 0 <= value <= TIME_MAX:
        return float(value)
    raise TokenError(f"{claim} is no time")
