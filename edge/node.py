"""What all sessions of one edge process share, handed down by ``__main__``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge.background import Spawn
from edge.directory import Directory
from edge.feeds import Feeds
from edge.introductions import Introductions
from edge.outbound import Flusher
from edge.receipts import Marks
from edge.replay import Replays
from edge.standing import Standing
from edge.tails import TailChecks
from edge.threads import Threads
from edge.typists import Typists
from shared.auth import Verifier
from shared.bus import Bus
from shared.metrics import EdgeMetrics, Tally
from shared.protocol import AnyCommand
from shared.rate import Rate
from shared.sending import Sender
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Node:
    """One edge process. ``clock`` is monotonic, ``wall`` is Unix time; both in seconds."""

    name: str
    settings: Settings
    metrics: EdgeMetrics
    received: Mapping[type[AnyCommand], Tally]
    verifier: Verifier
    standing: Standing
    fabric: Bus
    directory: Directory
    introductions: Introductions
    threads: Threads
    replays: Replays
    tails: TailChecks
    feeds: Feeds
    typists: Typists
    marks: Marks
    sender: Sender
    rate: Rate
    flusher: Flusher
    spawn: Spawn
    clock: Callable[[], float]
    wall: Callable[[], float]
