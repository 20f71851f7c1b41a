"""Where the platform is and who is asking: what ``chat``, ``tail`` and ``seed`` need before their first byte."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.data_directory import DataDirectory
from shared.errors import ConfigurationError

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Addresses:
    """The public doors of one platform: REST, and one WebSocket address per edge."""

    api: str
    edges: Sequence[str]

    def edges_for(self, user: str, *, edge: int | None = None) -> list[str]:
        """Return the edges in the order in which ``user`` tries them.

        Two users usually begin at different ones, so that a chat on one machine crosses the fabric. ``edge`` names
        the first one by its number.

        Raises:
            ConfigurationError: There is no edge of that number.
        """
        if edge is not None and not 0 <= edge < len(self.edges):
            raise ConfigurationError(
                f"there is no edge {edge}: they are 0 to {len(self.edges) - 1}"
            )
        digest = hashlib.sha256(user.encode()).digest()
        first = int.from_bytes(digest[:4], "big") % len(self.edges) if edge is None else edge
        return [*self.edges[first:], *self.edges[:first]]


def running_platform(data_dir: Path) -> Addresses:
    """Return the addresses of the platform that runs on ``data_dir``.

    Raises:
        ConfigurationError: None does; the text says how to start one.
    """
    directory = DataDirectory(data_dir)
    names = [name for name in directory.recorded() if name.startswith("edge-")]
    if not names or not directory.supervisor_is_running():
        raise ConfigurationError(
            f"no platform runs on {data_dir}: start one with ./run up, name its --data-dir, "
            "or give --url, --api and --token of another"
        )
    ports = directory.state()["ports"]
    edges = [f"ws://{_LOOPBACK}:{ports[name]}/ws/messaging" for name in names]
    return Addresses(api=f"http://{_LOOPBACK}:{ports['api']}", edges=edges)
