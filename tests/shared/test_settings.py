"""Settings: the arithmetic of the defaults, where values come from, and errors that say what to set."""

import re
from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from shared.identity import CLOCK_AHEAD_MS_MAX
from shared.settings import (
    Settings,
    describe,
    load_settings,
    parse_duration,
    require_secret,
    unknown_names,
)

SECRET = "kW3vQx9TzB7nLr2YpM5cHd8sJf4gAe6u"


@pytest.fixture(autouse=True)
def _empty_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without .env, and none of our variables."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(f"{name.upper()}_FILE", raising=False)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("72h", 259_200),
        ("5m", 300),
        ("20s", 20),
        ("250ms", 0.25),
        ("7d", 604_800),
        ("1.5m", 90),
        (" 5m ", 300),
        (30, 30),
        (0.5, 0.5),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "5min", "-5m", "1h30m", "5M", None, "NaN"])
def test_anything_else_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="250ms"):
        parse_duration(text)


def test_the_arithmetic_of_the_defaults() -> None:
    settings = load_settings()
    # A late retry asks before it publishes, while the log surely still knows the id: what is left
    # of the window after a fast clock and a whole publish budget covers it, with a margin.
    assert settings.late_retry_s == pytest.approx(180)
    assert (
        settings.late_retry_s + settings.clock_ahead_s + settings.messaging_publish_budget
        < settings.messaging_dedupe_window
    )
    # An edge publishes within its budget of a hold, so no hold runs out under a publish.
    assert settings.messaging_publish_budget < settings.messaging_hold_expiry
    # Sends stop while half of the log is still there for the persister to catch up.
    assert settings.persister_lag_max_s == settings.messaging_log_age / 2 == 36 * 3600
    assert settings.messaging_dedupe_window * 2 <= settings.messaging_log_age
    assert settings.clock_ahead_s * 1000 == CLOCK_AHEAD_MS_MAX


@pytest.mark.parametrize("window", ["2m", "30s", "10s", "1s"])
def test_short_timings_keep_the_same_proportions(window: str) -> None:
    settings = load_settings(messaging_dedupe_window=window, messaging_publish_budget="100ms")
    assert 0 < settings.late_retry_s < settings.messaging_dedupe_window
    assert settings.clock_ahead_s <= settings.messaging_dedupe_window / 5


@pytest.mark.parametrize(
    ("timings", "named"),
    [
        ({"messaging_dedupe_window": "20s"}, "MESSAGING_DEDUPE_WINDOW"),
        ({"messaging_publish_budget": "60s"}, "MESSAGING_HOLD_EXPIRY"),
        ({"messaging_log_age": "9m"}, "MESSAGING_LOG_AGE"),
    ],
)
def test_timings_that_break_a_promise_are_refused_by_name(
    timings: dict[str, str], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        load_settings(**timings)


def test_the_environment_wins_over_env_file_and_explicit_values_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("MESSAGING_API_PORT=1\nMESSAGING_WS_PORT=2\nLOG_LEVEL=ERROR\n")
    monkeypatch.setenv("MESSAGING_WS_PORT", "3")
    monkeypatch.setenv("LOG_LEVEL", "DEBUG")
    settings = load_settings(log_level="WARNING")
    assert (settings.messaging_api_port, settings.messaging_ws_port) == (1, 3)
    assert settings.log_level == "WARNING"


def test_a_secret_may_come_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_text(f"{SECRET}\n")
    monkeypatch.setenv("JWT_SECRET_FILE", str(path))
    assert require_secret(load_settings()) == SECRET


def test_a_secret_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET_FILE", "/nowhere/key")
    with pytest.raises(ConfigurationError, match=r"JWT_SECRET_FILE.*/nowhere/key"):
        load_settings()


@pytest.mark.parametrize(
    "secret",
    ["", "secret", "x" * 31, "a" * 64, "abcabc" * 10, "your-secret-key-" * 3, "CHANGEME" * 8],
)
def test_a_weak_secret_stops_the_start_with_one_to_take(secret: str) -> None:
    with pytest.raises(ConfigurationError, match=r"Set it to .*\./run init") as caught:
        require_secret(load_settings(jwt_secret=secret))
    # Then the proposal is taken, and differs every time
    proposal = re.findall(r"JWT_SECRET=(\S{64}),", str(caught.value))[0]
    assert require_secret(load_settings(jwt_secret=proposal)) == proposal
    assert len(secret) < 31 or secret not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MESSAGING_API_PORT", "70000"),
        ("MESSAGING_API_PORT", "http"),
        ("MESSAGING_LOG_AGE", "3 days"),
        ("MESSAGING_STREAMS", "0"),
        ("MESSAGING_REPLICAS", "2"),
        ("MESSAGING_NODE_NAME", "edge.0"),
        ("MESSAGING_ENABLE_CLIPS", "maybe"),
        ("JWT_ALGORITHM", "none"),
        ("LOG_LEVEL", "LOUD"),
    ],
)
def test_an_impossible_value_is_refused_by_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"^{name}: "):
        load_settings()


def test_an_error_never_repeats_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGING_API_PORT", "x")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(jwt_secret=SECRET)
    assert SECRET not in str(caught.value)


def test_a_misspelt_name_is_told_with_the_nearest_one() -> None:
    environment = {
        "MESSAGING_THROTLE_LIMIT": "5",
        "MESSAGING_QQQ": "1",
        "MESSAGING_API_PORT": "1",
        "MESSAGING_WS_URL_FILE": "/x",
        "OTHER": "1",
    }
    assert unknown_names(environment) == [
        "MESSAGING_QQQ is no setting.",
        "MESSAGING_THROTLE_LIMIT is no setting; did you mean MESSAGING_THROTTLE_LIMIT?",
    ]


def test_the_parts_of_an_address_are_escaped() -> None:
    settings = load_settings(database_postgres_user="a@b", database_postgres_password="p:/@ s")
    assert settings.dsn == "postgresql://a%40b:p%3A%2F%40%20s@127.0.0.1:5432/lilith"
    assert load_settings(database_url="postgresql://x").dsn == "postgresql://x"


def test_the_default_origins_are_the_apis_own_address() -> None:
    settings = load_settings(messaging_api_port=81)
    assert settings.origins == ("http://127.0.0.1:81", "http://localhost:81")
    listed = load_settings(messaging_allowed_origins=" https://a.example , https://b.example,")
    assert listed.origins == ("https://a.example", "https://b.example")


def test_a_description_masks_secrets_and_tells_where_values_come_from() -> None:
    rows = {
        row["name"]: row for row in describe(load_settings(jwt_secret=SECRET, log_level="INFO"))
    }
    assert rows["JWT_SECRET"]["value"] == "…"
    assert rows["LOG_LEVEL"]["source"] == "environment or .env"
    assert rows["MESSAGING_API_PORT"]["source"] == "default"
    assert all(row["description"].endswith((".", ")", "none")) for row in rows.values())
    assert SECRET not in str(rows)
