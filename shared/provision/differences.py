"""Where a stream or consumer is not as it should be, and whether that can be changed in place. Pure: no I/O."""

import reprlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from typing_extensions import override

from shared.provision.streams import Config

# What JetStream can change without touching what is stored. Everything else (subjects of a message stream, storage,
# retention, deny_*, first_seq, persist_mode, counters) needs another stream, and is an operator's decision.
STREAM_UPDATABLE: Final = frozenset(
    {
        "allow_atomic",
        "allow_direct",
        "allow_msg_ttl",
        "allow_rollup_hdrs",
        "description",
        "discard",
        "duplicate_window",
        "max_age",
        "max_bytes",
        "max_msg_size",
        "max_msgs_per_subject",
        "num_replicas",
        "republish",
        "subject_delete_marker_ttl",
    }
)
CONSUMER_UPDATABLE: Final = frozenset({"ack_wait", "max_ack_pending", "max_deliver", "max_waiting"})


class Difference(NamedTuple):
    """One field that is not as it should be."""

    field: str
    actual: object
    wanted: object

    @override
    def __str__(self) -> str:
        return f"{self.field}: {reprlib.repr(self.actual)} -> {reprlib.repr(self.wanted)}"


def differences(actual: Mapping[str, Any], wanted: Config) -> list[Difference]:
    """Return the fields of ``wanted`` that ``actual`` has otherwise. The server adds fields and metadata of its own.

    ``first_seq`` is left out: it is a fact of the stream's birth, which its state tells (``generation_of``).
    """
    found = []
    for field, value in wanted.items():
        present = actual.get(field)
        if field == "metadata":
            present = {key: (present or {}).get(key) for key in value}
        if field != "first_seq" and present != value:
            found.append(Difference(field, present, value))
    return found


def generation_of(info: Mapping[str, Any]) -> int:
    """Return the generation that a message stream carries in its metadata, 0 when it carries none."""
    text = (info["config"].get("metadata") or {}).get("generation", "0")
    return int(text) if text.isdigit() else 0
