"""Every setting: its name, unit, default and reason. The only reader of the environment.

Names are those of protocol, section 5; ``.env`` and ``<NAME>_FILE`` (for secrets) are read too. Timings are settings
and every limit that depends on them is computed here, so tests run with short ones and one test checks the arithmetic.
Generated from here: ``.env.example``, ``docs/configuration.md``.
"""

import difflib
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from pydantic import BeforeValidator, Field, ValidationError, computed_field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

from shared.errors import ConfigurationError

SECRET_BYTES_MIN: Final = 32
_PREFIX: Final = "MESSAGING_"
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECRETS: Final = ("JWT_SECRET", "DATABASE_URL", "DATABASE_POSTGRES_PASSWORD", "NATS_URL")
_WEAK: Final = ("secret", "password", "changeme", "change-me", "change_me", "replace", "example")
_DISTINCT_MIN: Final = 8
_REVOCATION_KEPT_MIN_S: Final = 30 * 86_400.0


def parse_duration(text: object) -> float:
    """Return the seconds in ``72h``, ``5m``, ``250ms``; a bare number is seconds.

    Raises:
        ValueError: Anything else.
    """
    if isinstance(text, int | float):
        return float(text)
    match = _DURATION.fullmatch(str(text).strip())
    if match is None:
        raise ValueError("give a number and a unit: 250ms, 20s, 5m, 72h or 7d")
    return float(match[1]) * _UNITS[match[2]]


Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]


class Settings(BaseSettings):
    """The whole configuration of one process."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, populate_by_name=True, case_sensitive=False
    )

    database_url: str = Field(
        "", description="PostgreSQL. Wins over the DATABASE_POSTGRES_* parts."
    )
    database_postgres_user: str = Field("lilith", description="PostgreSQL user.")
    database_postgres_password: str = Field(
        "", description="PostgreSQL password; there is no default."
    )
    database_postgres_name: str = Field("lilith", description="PostgreSQL database.")
    database_postgres_host: str = Field("127.0.0.1", description="PostgreSQL host.")
    database_postgres_port: int = Field(5432, ge=1, le=65_535, description="PostgreSQL port.")
    nats_url: str = Field(
        "",
        description="NATS, with this service's login: nats://edge:…@host:4222; several by commas.",
    )
    jwt_secret: str = Field("", description="Key of HS256 tokens, at least 32 bytes.")
    jwt_expiration: Seconds = Field(
        86_400.0, description="Life of the tokens that the command line makes."
    )
    jwt_algorithm: Literal["HS256", "EdDSA", "ES256", "RS256"] = Field(
        "HS256", description="The one algorithm that is accepted; a token never chooses."
    )
    jwt_jwks: str = Field(
        "", description="File or https URL of the public keys (JWKS), for the asymmetric ones."
    )
    jwt_audience: str = Field("", description="When set, tokens must name it as aud.")
    jwt_issuer: str = Field("", description="When set, tokens must name it as iss.")
    messaging_host: str = Field("127.0.0.1", description="Address on which the processes listen.")
    messaging_api_port: int = Field(8080, ge=0, le=65_535, description="Port of the api.")
    messaging_ws_port: int = Field(8081, ge=0, le=65_535, description="Port of this edge.")
    messaging_health_port: int = Field(
        9090,
        ge=0,
        le=65_535,
        description="Port of /livez, /readyz and /metrics of edge, persister and analytics.",
    )
    messaging_node_name: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_-]{0,32}$",
        description="Name of this process in logs, leases and hello.",
    )
    messaging_ws_url: str = Field(
        "", description="WebSocket address that GET /api/me tells to clients."
    )
    messaging_allowed_origins: str = Field(
        "",
        description="Origins that browsers may come from, by commas. Empty: the api's own address.",
    )
    messaging_enable_clips: bool = Field(True, description="Clips and attachments.")
    messaging_enable_analytics: bool = Field(True, description="Analytics for creators.")
    messaging_enable_typing_indicators: bool = Field(True, description="Typing indicators.")
    messaging_enable_read_receipts: bool = Field(True, description="Read receipts.")
    messaging_throttle_ttl: int = Field(
        60_000, gt=0, description="Window of the rate limit, in milliseconds."
    )
    messaging_throttle_limit: int = Field(
        100,
        ge=0,
        description="Counted commands per user and window, over all nodes and both doors; 0: none.",
    )
    messaging_ws_compression: bool = Field(
        False, description="Offer permessage-deflate: saves bytes, costs about 40 kB a connection."
    )
    messaging_connections_max: int = Field(
        15_000, gt=0, description="Sockets of one edge process; beyond it the handshake gets 503."
    )
    messaging_connections_per_address_max: int = Field(
        2_000, gt=0, description="Sockets of one client address on one edge process."
    )
    messaging_streams: int = Field(
        1, ge=1, le=256, description="Message streams that share the 256 shards."
    )
    messaging_replicas: Annotated[Literal[1, 3, 5], BeforeValidator(int)] = Field(
        1, description="Copies of every stream in the NATS cluster."
    )
    messaging_log_bytes: int = Field(
        8 * 1024**3,
        gt=0,
        description="Size of one message stream; a full one refuses, it never forgets.",
    )
    messaging_platform_consumers: str = Field(
        "",
        description="Names of durable consumers on EVENTS to provide for platform services, by commas.",
    )
    messaging_log_age: Seconds = Field(259_200.0, description="How long the log keeps events.")
    messaging_dedupe_window: Seconds = Field(
        300.0, description="How long the log knows message ids."
    )
    messaging_hold_expiry: Seconds = Field(60.0, description="How long a quota hold lasts.")
    messaging_publish_budget: Seconds = Field(
        20.0,
        description="How long a publish is retried before the sender hears 'unavailable'.",
    )
    messaging_node_lease: Seconds = Field(
        10.0, description="How long a silent node counts as alive."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least level logged."
    )
    log_format: Literal["json", "console"] = Field(
        "json", description="json for machines, console for people."
    )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def dsn(self) -> str:
        """The PostgreSQL address, from DATABASE_URL or its parts."""
        if self.database_url:
            return self.database_url
        user, password = (
            quote(self.database_postgres_user),
            quote(self.database_postgres_password, safe=""),
        )
        address = f"{self.database_postgres_host}:{self.database_postgres_port}"
        return f"postgresql://{user}:{password}@{address}/{self.database_postgres_name}"

    @property
    def late_retry_s(self) -> float:
        """A client id older than this may have left the dedupe window: ask before publishing.

        The window less 60 s of clock, the publish budget, and two fifths of what is left as margin (180 s by default).
        """
        return (
            (self.messaging_dedupe_window - self.clock_ahead_s - self.messaging_publish_budget)
            * 9
            / 11
        )

    @property
    def clock_ahead_s(self) -> float:
        """How far a client's clock may run ahead: 60 s, or a fifth of a short dedupe window."""
        return min(60.0, self.messaging_dedupe_window / 5)

    @property
    def persister_lag_max_s(self) -> float:
        """Beyond this age of the oldest unpersisted message, sends are refused: half of the log's age."""
        return self.messaging_log_age / 2

    @property
    def revocation_kept_s(self) -> float:
        """How long revoked tokens stay known; no token may live longer. 30 days, or the life of our own ones."""
        return max(_REVOCATION_KEPT_MIN_S, self.jwt_expiration)

    @property
    def origins(self) -> tuple[str, ...]:
        """The allowed origins; the api's own address in both spellings by default."""
        if self.messaging_allowed_origins:
            return tuple(
                part.strip() for part in self.messaging_allowed_origins.split(",") if part.strip()
            )
        return tuple(
            f"http://{host}:{self.messaging_api_port}" for host in ("127.0.0.1", "localhost")
        )

    @override
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read explicit values, then the environment, then .env."""
        del settings_cls, file_secret_settings
        return init_settings, env_settings, dotenv_settings


def load_settings(**explicit: Any) -> Settings:  # noqa: ANN401 - passed through to pydantic, which checks them
    """Return the settings of this process.

    Raises:
        ConfigurationError: A value is impossible; the text names the variable and what to set.
    """
    try:
        settings = Settings(**{**_from_files(os.environ), **explicit})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']).upper()}: {item['msg']}"
            for item in error.errors()
        )
        raise ConfigurationError(problems) from error
    _check_arithmetic(settings)
    return settings


def require_secret(settings: Settings) -> str:
    """Return the token key.

    Raises:
        ConfigurationError: It is missing or unsafe. There is no default, not even in development.
    """
    secret = settings.jwt_secret
    # A placeholder out of a template is long enough and known to everybody.
    is_known = len(set(secret)) < _DISTINCT_MIN or any(word in secret.lower() for word in _WEAK)
    if len(secret.encode()) < SECRET_BYTES_MIN or is_known:
        example = secrets.token_urlsafe(48)
        raise ConfigurationError(
            f"JWT_SECRET is missing, shorter than {SECRET_BYTES_MIN} bytes or easily guessed. Set it to a random text, "
            f"for example JWT_SECRET={example}, or let `./run init` write a .env with fresh secrets."
        )
    return secret


def unknown_names(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return one sentence per ``MESSAGING_*`` variable (of this process) that is no setting, with the nearest name."""
    environment = os.environ if environment is None else environment
    known = {name.upper().removeprefix(_PREFIX): name.upper() for name in Settings.model_fields}
    sentences = []
    for name in sorted(environment):
        # The prefix that all share would make every name look near.
        rest = name.removesuffix("_FILE").removeprefix(_PREFIX)
        if name.startswith(_PREFIX) and rest not in known:
            near = difflib.get_close_matches(rest, known, n=1)
            hint = f"; did you mean {known[near[0]]}?" if near else "."
            sentences.append(f"{name} is no setting{hint}")
    return sentences


def describe(settings: Settings) -> list[dict[str, str]]:
    """Return name, value (secrets masked), source and description of every setting."""
    rows = []
    for name, field in Settings.model_fields.items():
        upper = name.upper()
        value = str(getattr(settings, name))
        is_set = name in settings.model_fields_set
        masked = "…" if upper in _SECRETS and value else value
        source = "environment or .env" if is_set else "default"
        rows.append(
            {
                "name": upper,
                "value": masked,
                "source": source,
                "description": field.description or "",
            }
        )
    return rows


def _from_files(environment: Mapping[str, str]) -> dict[str, str]:
    values = {}
    for name, path in environment.items():
        field = name.lower().removesuffix("_file")
        if name.endswith("_FILE") and field in Settings.model_fields:
            try:
                values[field] = Path(path).read_text().strip()
            except OSError as error:
                raise ConfigurationError(f"{name}: {error}") from error
    return values


def _check_arithmetic(settings: Settings) -> None:
    """Refuse timings that break a promise: each line names the two that contradict each other."""
    if settings.late_retry_s <= 0:
        raise ConfigurationError(
            "MESSAGING_DEDUPE_WINDOW must be longer than the clock allowance and MESSAGING_PUBLISH_BUDGET together"
        )
    if settings.messaging_publish_budget >= settings.messaging_hold_expiry:
        raise ConfigurationError(
            "MESSAGING_HOLD_EXPIRY must be longer than MESSAGING_PUBLISH_BUDGET"
        )
    if settings.messaging_dedupe_window * 2 > settings.messaging_log_age:
        raise ConfigurationError("MESSAGING_LOG_AGE must be at least twice MESSAGING_DEDUPE_WINDOW")
