"""The words of the command line that need no running platform, each as a real process."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jwt
import pytest

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join([f"{ROOT}", f"{ROOT / 'sdk' / 'python'}"])
KEPT = ("PATH", "HOME", "PYTHONPYCACHEPREFIX")
KEY = "a-key-for-this-test-of-32-bytes-or-more"


def lilith(
    *words: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``lilith`` in ``cwd`` without any setting but ``environment``."""
    kept = {key: os.environ[key] for key in KEPT if key in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *words],
        cwd=cwd,
        env={
            **kept,
            "PYTHONPATH": PYTHONPATH,
            "NO_COLOR": "1",
            "COLUMNS": "200",
            **(environment or {}),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_every_word(tmp_path: Path) -> None:
    done = lilith("--help", cwd=tmp_path)
    assert done.returncode == 0
    words = {"demo", "up", "ps", "token", "edge", "persister", "api", "analytics", "provision"}
    words |= {"migrate", "config", "init", "doctor", "healthcheck", "version", "openapi"}
    words |= {"asyncapi", "chat", "tail", "seed"}
    assert words - set(re.findall(r"\w+", done.stdout)) == set()


@pytest.mark.parametrize(
    "words", [("nonsense",), ("token",), ("up", "--port", "0"), ("token", "--user", "a b")]
)
def test_wrong_usage_ends_with_2(words: tuple[str, ...], tmp_path: Path) -> None:
    assert lilith(*words, cwd=tmp_path).returncode == 2


def test_a_token_is_signed_with_a_secret_that_is_made_once(tmp_path: Path) -> None:
    # Given a folder without any secret
    # When two tokens are asked for
    first = lilith("token", "--user", "ava", "--role", "creator", "--name", "Ava", cwd=tmp_path)
    second = lilith("token", "--user", "ben", "--ttl", "30m", cwd=tmp_path)
    # Then both are signed with the one secret that only its owner can read
    path = tmp_path / ".data" / "secrets.json"
    key = json.loads(path.read_text())["jwt_secret"]
    assert path.stat().st_mode & 0o777 == 0o600
    ava = jwt.decode(first.stdout.strip(), key, algorithms=["HS256"])
    ben = jwt.decode(second.stdout.strip(), key, algorithms=["HS256"])
    assert (ava["sub"], ava["role"], ava["name"]) == ("ava", "creator", "Ava")
    assert (ben["sub"], ben["role"], "name" in ben) == ("ben", "client", False)
    assert ava["exp"] - ava["iat"] == 24 * 3600
    assert ben["exp"] - ben["iat"] == 30 * 60
    assert abs(ben["iat"] - time.time()) < 60


def test_two_folders_have_different_secrets(tmp_path: Path) -> None:
    tokens = set()
    for name in ("one", "other"):
        lilith("token", "--user", "ava", "--data-dir", name, cwd=tmp_path)
        secrets = json.loads((tmp_path / name / "secrets.json").read_text())
        tokens |= {secrets["jwt_secret"], secrets["postgres_password"]}
        tokens |= set(secrets["nats_passwords"].values())
    assert len(tokens) == 2 * (2 + 6)
    assert min(map(len, tokens)) >= 32


def test_the_secret_of_the_environment_wins(tmp_path: Path) -> None:
    done = lilith("token", "--user", "ava", cwd=tmp_path, environment={"JWT_SECRET": KEY})
    assert jwt.decode(done.stdout.strip(), KEY, algorithms=["HS256"])["sub"] == "ava"
    assert not (tmp_path / ".data").exists()


def test_an_unsafe_secret_is_refused_with_what_to_do(tmp_path: Path) -> None:
    done = lilith("token", "--user", "ava", cwd=tmp_path, environment={"JWT_SECRET": "secret"})
    assert done.returncode == 1
    assert "JWT_SECRET" in done.stderr
    assert "Traceback" not in done.stderr


def test_init_writes_fresh_secrets_and_never_over_a_file(tmp_path: Path) -> None:
    # Given an empty folder
    # When init is run twice
    first = lilith("init", cwd=tmp_path)
    written = (tmp_path / ".env").read_text()
    second = lilith("init", cwd=tmp_path)
    # Then the file is there once, for its owner alone, and is what the settings read
    assert (first.returncode, second.returncode) == (0, 1)
    assert (tmp_path / ".env").read_text() == written
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert "exists already" in second.stderr
    key = dict(line.split("=", 1) for line in written.splitlines()[1:])["JWT_SECRET"]
    token = lilith("token", "--user", "ava", cwd=tmp_path).stdout.strip()
    assert jwt.decode(token, key, algorithms=["HS256"])["sub"] == "ava"


def test_ps_of_a_folder_where_nothing_runs(tmp_path: Path) -> None:
    done = lilith("ps", "--json", "--data-dir", "nothing", cwd=tmp_path)
    assert json.loads(done.stdout) == {"ready": False, "pids": {}}
    assert not (tmp_path / "nothing").exists()


def test_config_show_names_every_setting_and_masks_secrets(tmp_path: Path) -> None:
    # Given a secret and another setting
    environment = {"JWT_SECRET": KEY, "MESSAGING_THROTTLE_LIMIT": "7"}
    # When the configuration is shown
    rows = json.loads(
        lilith("config", "show", "--json", cwd=tmp_path, environment=environment).stdout
    )
    # Then every value tells its source, and the secret is not there
    values = {row["name"]: (row["value"], row["source"]) for row in rows}
    assert values["MESSAGING_THROTTLE_LIMIT"] == ("7", "environment or .env")
    assert values["MESSAGING_THROTTLE_TTL"] == ("60000", "default")
    assert KEY not in json.dumps(rows)
    assert "MESSAGING_THROTTLE_LIMIT" in lilith("config", "show", cwd=tmp_path).stdout


def test_migrations_go_up_and_down(tmp_path: Path, empty_database_url: str) -> None:
    environment = {"DATABASE_URL": empty_database_url}

    def applied() -> set[bool]:
        done = lilith("migrate", "status", "--json", cwd=tmp_path, environment=environment)
        return {revision["applied"] for revision in json.loads(done.stdout)}

    # Given an empty database
    assert applied() == {False}
    # When it is migrated up, then everything is applied
    assert lilith("migrate", "up", cwd=tmp_path, environment=environment).returncode == 0
    assert applied() == {True}
    # When it is taken back to the beginning, then nothing is
    assert lilith("migrate", "down", "base", cwd=tmp_path, environment=environment).returncode == 0
    assert applied() == {False}


def test_migrate_without_a_database_says_what_to_set(tmp_path: Path) -> None:
    done = lilith("migrate", "up", cwd=tmp_path)
    assert done.returncode == 1
    assert "DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_migrate_with_a_database_that_is_not_there_fails_without_a_traceback(
    tmp_path: Path,
) -> None:
    environment = {"DATABASE_URL": "postgresql://lilith:x@127.0.0.1:1/lilith"}
    done = lilith("migrate", "up", cwd=tmp_path, environment=environment)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_migrate_sql_and_the_descriptions_need_nothing_running(tmp_path: Path) -> None:
    assert "CREATE TABLE" in lilith("migrate", "sql", cwd=tmp_path).stdout
    assert json.loads(lilith("asyncapi", cwd=tmp_path).stdout)["asyncapi"].startswith("3.")
    assert json.loads(lilith("openapi", cwd=tmp_path).stdout)["openapi"].startswith("3.1")


def test_healthcheck_of_a_port_where_nobody_listens_fails(tmp_path: Path) -> None:
    assert lilith("healthcheck", "--port", "1", cwd=tmp_path).returncode == 1


def test_doctor_finds_the_servers_and_a_misspelt_setting(tmp_path: Path) -> None:
    # Given a setting that does not exist
    done = lilith("doctor", "--json", cwd=tmp_path, environment={"MESSAGING_THROTLE_LIMIT": "1"})
    # Then doctor fails, names the nearest one, and the servers are there
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert "MESSAGING_THROTTLE_LIMIT" in findings["settings"]["text"]
    assert "18." in findings["postgresql"]["text"]
    assert findings["nats"]["ok"]


def test_version_names_the_parts(tmp_path: Path) -> None:
    found = json.loads(lilith("version", "--json", cwd=tmp_path).stdout)
    assert found["lilith"]
    assert found["nats-py"].startswith("2.")
