"""``compose.yaml`` and the image: valid, without a default secret, and true to the command line and the settings."""

import importlib.resources
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from cli.generate import nats_password_names
from cli.main import app
from shared.settings import Settings
from shared.subjects import ROLES
from tests.architecture.commands import commands_of
from tests.architecture.repository import ROOT, read

Compose = dict[str, Any]
Check = Callable[[Compose], Iterator[str]]
OUR_SERVICES = ("migrate", "provision", "edge-0", "edge-1", "persister", "analytics", "api")
SETTINGS = {name.upper() for name in Settings.model_fields}
# What the images of others and nats/server.conf read.
FOREIGN_NAMES = {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"} | {
    "LILITH_NATS_PORT",
    "LILITH_NATS_HTTP_PORT",
    "LILITH_NATS_STORE",
}
SECRETS = {"JWT_SECRET", "DATABASE_POSTGRES_PASSWORD", *nats_password_names()}
VARIABLE = re.compile(r"\$\{(\w+)(:?[-?+][^}]*)?\}")


@pytest.fixture(scope="module")
def compose() -> Compose:
    """The file, with anchors and merges resolved."""
    loaded: Compose = yaml.safe_load(read("compose.yaml"))
    return loaded


def schema_problems(compose: Compose) -> Iterator[str]:
    """The file follows the Compose Specification."""
    package = importlib.resources.files("check_jsonschema")
    text = (package / "builtin_schemas/vendor/compose-spec.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(compose):
        yield f"{error.json_path}: {error.message}"


def secret_problems(compose: Compose) -> Iterator[str]:
    """A secret is asked for in a sentence, never defaulted and never written down."""
    for name, value in _environment(compose):
        for variable, rest in VARIABLE.findall(value):
            if variable in SECRETS and not rest.startswith(":?"):
                yield f"{name} uses {variable} without saying what to do when it is missing (:?)"
        if name in SECRETS and not VARIABLE.search(value):
            yield f"{name} is written down"


def variable_problems(compose: Compose) -> Iterator[str]:
    """Every variable is one of the documented settings."""
    for variable, _ in VARIABLE.findall(json.dumps(compose, ensure_ascii=False)):
        if variable not in SETTINGS | SECRETS:
            yield f"${{{variable}}} is documented nowhere"
    for name, _ in _environment(compose):
        if name not in SETTINGS | SECRETS | FOREIGN_NAMES:
            yield f"{name} is read by nothing"


def command_problems(compose: Compose) -> Iterator[str]:
    """Every service of ours runs a word of the command line."""
    for name, service in compose["services"].items():
        if service["image"].startswith("lilith-messaging"):
            words = tuple(service["command"])
            if words not in commands_of(app):
                yield f"{name} runs {' '.join(words)}, which is no word of the command line"


def health_problems(compose: Compose) -> Iterator[str]:
    """What others wait for says when it is ready; a one-shot has nothing to say."""
    for name, service in compose["services"].items():
        for other, wait in service.get("depends_on", {}).items():
            waited = compose["services"][other]
            is_one_shot = waited.get("restart") == "no"
            expected = "service_completed_successfully" if is_one_shot else "service_healthy"
            if wait["condition"] != expected:
                yield f"{name} waits for {other} by {wait['condition']}, not by {expected}"
        has_check = "test" in service.get("healthcheck", {})
        if not service["image"].startswith("lilith-messaging") and not has_check:
            yield f"{name} has no health check"


def address_problems(compose: Compose) -> Iterator[str]:
    """Nothing is reachable from outside this machine."""
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                yield f"{name} publishes {port} to the world"


CHECKS: list[Check] = [
    schema_problems,
    secret_problems,
    variable_problems,
    command_problems,
    health_problems,
    address_problems,
]
BAD: list[tuple[Check, dict[str, Any]]] = [
    (schema_problems, {"port": ["80:80"]}),
    (secret_problems, {"environment": {"JWT_SECRET": "${JWT_SECRET:-letmein}"}}),
    (secret_problems, {"environment": {"JWT_SECRET": "letmein"}}),
    (variable_problems, {"environment": {"LOG_LEVEL": "${LOGLEVEL}"}}),
    (variable_problems, {"environment": {"MESSAGING_API_PROT": "1"}}),
    (command_problems, {"command": ["edges"]}),
    (health_problems, {"depends_on": {"migrate": {"condition": "service_started"}}}),
    (address_problems, {"ports": ["8080:8080"]}),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_file_passes_the_check(check: Check, compose: Compose) -> None:
    assert not list(check(compose))


@pytest.mark.parametrize(("check", "change"), BAD)
def test_each_check_finds_its_bad_sample(
    check: Check, change: dict[str, Any], compose: Compose
) -> None:
    services = {**compose["services"], "api": {**compose["services"]["api"], **change}}
    assert list(check({**compose, "services": services}))


def test_it_runs_everything_that_the_platform_consists_of(compose: Compose) -> None:
    expected = {"postgres", "nats", "prometheus", *OUR_SERVICES}
    assert set(compose["services"]) == expected


def test_every_service_has_its_own_login_and_only_that(compose: Compose) -> None:
    nats = compose["services"]["nats"]["environment"]
    for name in OUR_SERVICES[1:]:
        role = name.split("-")[0]
        text = json.dumps(compose["services"][name])
        assert f"nats://{role}:${{LILITH_NATS_{role.upper()}_PASSWORD" in text
        assert set(re.findall(r"LILITH_NATS_\w+_PASSWORD", text)) == {
            f"LILITH_NATS_{role.upper()}_PASSWORD"
        }
    for role in ROLES:
        # nats-server reads the value as configuration text: quoted, or a digit begins a number.
        assert re.fullmatch(
            r'"\$\{LILITH_NATS_\w+_PASSWORD:\?[^"]+\}"',
            nats[f"LILITH_NATS_{role.upper()}_PASSWORD"],
        )


def test_edges_get_no_key_to_the_database_and_only_doors_get_the_token_key(
    compose: Compose,
) -> None:
    holders = {
        name
        for name in OUR_SERVICES
        if any(key.startswith("DATABASE") for key in compose["services"][name]["environment"])
    }
    assert holders == {"migrate", "provision", "persister", "analytics", "api"}
    knowing = {
        name for name in OUR_SERVICES if "JWT_SECRET" in compose["services"][name]["environment"]
    }
    assert knowing == {"edge-0", "edge-1", "api"}


def test_our_services_run_with_the_least_they_need(compose: Compose) -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    for name in OUR_SERVICES:
        service = compose["services"][name]
        assert service["image"] == f"lilith-messaging:{version}"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["stop_grace_period"] == "40s"


def test_prometheus_scrapes_every_process(compose: Compose) -> None:
    configuration = yaml.safe_load(read("deploy/prometheus.yml"))
    targets = {
        target
        for job in configuration["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    services = compose["services"]
    expected = {"127.0.0.1:9090"}
    for name in OUR_SERVICES[2:]:
        environment = services[name]["environment"]
        port = environment.get("MESSAGING_HEALTH_PORT") or environment["MESSAGING_API_PORT"]
        expected.add(f"{name}:{port}")
    assert targets == expected


def test_the_image_runs_as_nobody_special_and_knows_its_health() -> None:
    text = read("deploy/Dockerfile")
    last_stage = text.rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in last_stage
    assert "HEALTHCHECK" in last_stage
    assert '["lilith", "healthcheck"]' in last_stage
    assert 'ENTRYPOINT ["lilith"]' in last_stage
    assert ("healthcheck",) in commands_of(app)
    assert text.count("--require-hashes") == text.count("pip install --require-hashes") == 2


def test_the_builder_sees_every_package_and_nothing_secret() -> None:
    # Given what the wheel is made of
    project = tomllib.loads(read("pyproject.toml"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    seen = [
        line[1:]
        for line in read("deploy/Dockerfile.dockerignore").splitlines()
        if line.startswith("!")
    ]
    # Then each lies in what is sent to the builder, and everything else stays here
    assert all(any(package.startswith(entry) for entry in seen) for package in packages)
    assert all((ROOT / entry).exists() for entry in seen)
    assert not {".", ".env", ".git", ".data"} & set(seen)


def _environment(compose: Compose) -> Iterator[tuple[str, str]]:
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            # Without a value it is handed through, as it is or not at all.
            yield name, f"${{{name}:?}}" if value is None else str(value)
