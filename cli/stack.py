"""What the platform consists of: which processes, at which addresses, with which environment, in which order.

With ``DATABASE_URL`` or ``NATS_URL`` given, that server is not part of it.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final

from cli.child import ChildSpec
from cli.data_directory import LocalSecrets
from cli.embedded.nats import EmbeddedNats
from cli.embedded.postgres import EmbeddedPostgres
from cli.embedded.privileges import Account
from cli.ports import SEARCH_START, PortReservations
from cli.preparation import migrate, provision
from cli.probes import http_status
from cli.processes import Launch
from cli.supervisor import Stage

EDGES_MAX: Final = 64
_ROOT: Final = Path(__file__).parents[1]
_LOOPBACK: Final = "127.0.0.1"
# Together below the five seconds that a stop may take: edges first, then the rest, then the servers.
_EDGE_STOP_S: Final = 1.5
_SERVICE_STOP_S: Final = 1.2
_SERVER_STOP_S: Final = 1.2


@dataclass(frozen=True, slots=True)
class External:
    """The servers that somebody else runs: ``DATABASE_URL``, ``NATS_URL`` and ``NATS_URL_<SERVICE>``."""

    database_url: str | None
    nats_url: str | None
    nats_urls: Mapping[str, str]


def edge_names(edges: int) -> list[str]:
    """Return ``edge-0`` and so on: the names of the edge processes."""
    return [f"edge-{number}" for number in range(edges)]


def choose_ports(
    edges: int,
    remembered: Mapping[str, int],
    reservations: PortReservations,
    *,
    start: int | None = None,
) -> dict[str, int]:
    """Hold and return one port per listener: the remembered one, else the first free one.

    ``start`` is where the search begins and what the api gets, if it is free; another one than last
    time moves every port.
    """
    if start is not None and remembered.get("api") != start:
        remembered = {}
    edge_listeners = edge_names(edges)
    services = [*edge_listeners, "persister", "analytics"]
    listeners = ["api", *edge_listeners, *(f"{name}-health" for name in services)]
    listeners += ["postgres", "nats", "nats-http"]
    # All remembered ones first: a search must not take what another listener had.
    ports = {
        name: remembered[name]
        for name in listeners
        if name in remembered and reservations.reserve(remembered[name])
    }
    for name in listeners:
        if name not in ports:
            ports[name] = reservations.search(start or SEARCH_START)
    return ports


@dataclass(frozen=True, slots=True)
class Stack:
    """One platform, completely described."""

    edges: int
    external: External
    ports: Mapping[str, int]
    secrets: LocalSecrets
    servers_home: Path
    account: Account | None

    def stages(self) -> list[Stage]:
        """Return what starts after what."""
        return [
            Stage(
                children=self._servers(),
                steps=[
                    ("migrations", partial(migrate, self.database_url)),
                    ("streams", self._provision),
                ],
            ),
            Stage(
                children=[
                    self._service("persister", _SERVICE_STOP_S),
                    self._service("analytics", _SERVICE_STOP_S),
                    self._service("api", _SERVICE_STOP_S),
                ]
            ),
            Stage(children=[self._service(name, _EDGE_STOP_S) for name in edge_names(self.edges)]),
        ]

    @property
    def database_url(self) -> str:
        """The address of the database for the services."""
        return self.external.database_url or self._postgres.dsn()

    @property
    def api_url(self) -> str:
        """The address of the REST interface."""
        return f"http://{_LOOPBACK}:{self.ports['api']}"

    @property
    def edge_urls(self) -> list[str]:
        """The WebSocket addresses, one per edge."""
        names = edge_names(self.edges)
        return [f"ws://{_LOOPBACK}:{self.ports[name]}/ws/messaging" for name in names]

    def nats_url(self, user: str) -> str:
        """Return the address of NATS for one service (or ``platform``, or ``provision``)."""
        if self.external.nats_url is not None:
            return self.external.nats_urls.get(user, self.external.nats_url)
        return self._nats.url(user)

    def metrics_urls(self) -> dict[str, str]:
        """Return where Prometheus finds each process."""
        names = [*edge_names(self.edges), "persister", "analytics", "api"]
        return {name: f"http://{_LOOPBACK}:{self._health_port(name)}/metrics" for name in names}

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of the service process ``name`` (``edge-0``, ``api``, …)."""
        service = name.split("-")[0]
        origins = ",".join(
            f"http://{host}:{self.ports['api']}" for host in (_LOOPBACK, "localhost")
        )
        defaults = {
            "MESSAGING_STREAMS": "1",
            "MESSAGING_REPLICAS": "1",
            "MESSAGING_HOST": _LOOPBACK,
            "MESSAGING_ALLOWED_ORIGINS": origins,
            "MESSAGING_WS_URL": self.edge_urls[0],
            "LOG_FORMAT": "console",
            "LOG_LEVEL": "INFO",
        }
        ours = {
            "DATABASE_URL": self.database_url,
            "NATS_URL": self.nats_url(service),
            "JWT_SECRET": self.secrets.jwt_secret,
            "MESSAGING_API_PORT": f"{self.ports['api']}",
            "MESSAGING_WS_PORT": f"{self.ports.get(name, self.ports['edge-0'])}",
            "MESSAGING_HEALTH_PORT": f"{self._health_port(name)}",
            "MESSAGING_NODE_NAME": name,
            # Before the working directory, whose folders may have the names of our packages.
            "PYTHONPATH": os.pathsep.join([f"{_ROOT}", f"{_ROOT / 'sdk' / 'python'}"]),
            "PYTHONUNBUFFERED": "1",
        }
        if service == "edge":
            del ours["DATABASE_URL"]
        # Nobody gets another one's key: edges hold nothing and need none of the database's.
        foreign = ("NATS_URL", "LILITH_NATS_", "DATABASE_" if service == "edge" else "DATABASE_URL")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        return {**defaults, **inherited, **ours}

    def _servers(self) -> list[ChildSpec]:
        children = []
        if self.external.database_url is None:
            children.append(_server("postgres", self._postgres, self._postgres.is_ready))
        if self.external.nats_url is None:
            children.append(_server("nats", self._nats, lambda _pid: self._nats.is_ready()))
        return children

    async def _provision(self) -> None:
        await provision(self.nats_url("provision"), self.database_url)

    def _service(self, name: str, stop_s: float) -> ChildSpec:
        launch = Launch(
            argv=[sys.executable, "-P", "-m", name.split("-")[0]],
            env=self.environment(name),
            cwd=Path.cwd(),
        )
        ready = partial(_answers_ready, self._health_port(name))
        return ChildSpec(name=name, launch=launch, is_ready=ready, stop_s=stop_s)

    def _health_port(self, name: str) -> int:
        return self.ports["api" if name == "api" else f"{name}-health"]

    @property
    def _postgres(self) -> EmbeddedPostgres:
        return EmbeddedPostgres(
            directory=self.servers_home / "postgres",
            port=self.ports["postgres"],
            password=self.secrets.postgres_password,
            superuser_password=self.secrets.postgres_superuser_password,
            account=self.account,
        )

    @property
    def _nats(self) -> EmbeddedNats:
        return EmbeddedNats(
            directory=self.servers_home / "nats",
            port=self.ports["nats"],
            http_port=self.ports["nats-http"],
            passwords=self.secrets.nats_passwords,
            account=self.account,
        )


def _server(
    name: str, server: EmbeddedPostgres | EmbeddedNats, is_ready: Callable[[int], bool]
) -> ChildSpec:
    return ChildSpec(
        name=name,
        launch=server.launch(),
        is_ready=is_ready,
        stop_s=_SERVER_STOP_S,
        prepare=server.prepare,
        log_shown=False,  # Thirty lines of banner at every start would bury those of the services.
    )


def _answers_ready(port: int, _pid: int) -> bool:
    return http_status(port, "/readyz") == HTTPStatus.OK
