"""Three real nats-servers that are one cluster, with the repository's ``nats/cluster.conf``."""

import dataclasses
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cli.embedded.nats import NATS_USERS, EmbeddedNats
from cli.embedded.privileges import server_account
from cli.ports import PortReservations
from tests.support.servers import ServerProcess

NODES: Final = 3
_PORTS_START: Final = 23_000
_ROUTE_USER: Final = "route"


class ClusterNode(ServerProcess):
    """One node. Its name is the one that JetStream calls its leaders by."""

    def __init__(self, server: EmbeddedNats, name: str, environment: dict[str, str]) -> None:
        server.prepare()
        launch = server.launch()
        configuration = launch.argv[-1].replace("server.conf", "cluster.conf")
        super().__init__(
            dataclasses.replace(
                launch,
                argv=[*launch.argv[:-1], configuration],
                env={**launch.env, "LILITH_NATS_NAME": name, **environment},
            ),
            lambda _pid: server.is_ready(),
            server.directory.with_suffix(".log"),
        )
        self.name = name
        self.server = server


class NatsCluster:
    """The nodes, and one address for all of them."""

    def __init__(self, directory: Path, ports: PortReservations) -> None:
        start = _PORTS_START + secrets.randbelow(4_000)
        passwords = {user: secrets.token_urlsafe(12) for user in NATS_USERS}
        secret = secrets.token_hex(12)
        routes = [ports.search(start) for _ in range(NODES)]
        addresses = ", ".join(
            f'"nats://{_ROUTE_USER}:{secret}@127.0.0.1:{port}"' for port in routes
        )
        # Kept while the nodes run: a child ends with the thread that started it.
        self._threads = ThreadPoolExecutor(NODES)
        self.nodes: list[ClusterNode] = []
        for number, route in enumerate(routes):
            server = EmbeddedNats(
                directory=directory / f"nats-{number}",
                port=ports.search(start),
                http_port=ports.search(start),
                passwords=passwords,
                account=server_account(os.geteuid()),
            )
            environment = {
                "LILITH_NATS_CLUSTER_PORT": f"{route}",
                "LILITH_NATS_ROUTE_PASSWORD": f'"{secret}"',
                "LILITH_NATS_ROUTES": f"[{addresses}]",
            }
            self.nodes.append(ClusterNode(server, f"nats-{number}", environment))

    def start(self) -> None:
        """Start every node; a node is ready only when it has found the others."""
        list(self._threads.map(ClusterNode.start, self.nodes))

    def stop(self) -> None:
        """Stop every node."""
        for node in self.nodes:
            node.stop()
        self._threads.shutdown()

    def restart(self, node: ClusterNode) -> None:
        """Start a node that was killed."""
        self._threads.submit(node.start).result()

    def url(self, user: str) -> str:
        """Return the addresses of all nodes for ``user``."""
        return ",".join(node.server.url(user) for node in self.nodes)

    def node(self, name: str) -> ClusterNode:
        """Return the node of this name."""
        return next(node for node in self.nodes if node.name == name)


@contextmanager
def running_cluster(directory: Path, ports: PortReservations) -> Iterator[NatsCluster]:
    """Run a cluster with an empty store; it is gone at the end."""
    home = directory / f"cluster-{secrets.token_hex(4)}"
    home.mkdir(mode=0o755)
    cluster = NatsCluster(home, ports)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(home)
