"""Poison is bisected out of its batch: the rest is stored, in order, and a dead letter says what was wrong."""

from typing import Any

import pytest

from shared.events import encode_event
from shared.identity import ThreadId
from shared.subjects import PERSISTER_DURABLE, msg_subject
from tests.support.fabric import STREAM, Fabric, new_message
from tests.support.persisters import lingering

POISONS = (
    "not JSON",
    "another schema",
    "NUL in the body",
    "NUL in the metadata",
    "no time",
    "no id",
    "too deep",
    "impossible kind",
)


def poison(kind: str, thread_id: ThreadId) -> bytes:
    """Return bytes that no retry will make storable."""
    fields: dict[str, dict[str, Any]] = {
        "NUL in the body": {"body": "\0"},
        "NUL in the metadata": {"metadata": {"x": "\0"}},
        "no time": {"sent_at": "yesterday"},
        "no id": {"message_id": "12"},
        "too deep": {"metadata": {"x": "DEEP"}},
        "impossible kind": {"kind": "shout"},
    }
    if kind == "not JSON":
        return b"{"
    if kind == "another schema":
        return b'{"type":"message.from.the.future"}'
    event = new_message(thread_id, "ava", **{"body": "poison", **fields[kind]})
    return encode_event(event).replace(b'"DEEP"', b"[" * 5_000 + b"]" * 5_000)


async def test_one_poison_among_500_costs_none_of_the_others(fabric: Fabric) -> None:
    # Given 500 events of which one in the middle can never be stored
    thread_id = await fabric.thread("ava")
    subject = msg_subject(thread_id)
    messages = [
        (subject, encode_event(new_message(thread_id, "ava", f"{number}"))) for number in range(499)
    ]
    messages.insert(250, (subject, poison("NUL in the body", thread_id)))
    seqs = await fabric.store_raw(messages)
    # When they are stored in one batch
    async with fabric.persister(source=lingering()) as persister:
        await fabric.reached(seqs[-1])
    # Then 499 are there in order, and one is a dead letter that says what was wrong with it
    good = [*seqs[:250], *seqs[251:]]
    assert await fabric.history(thread_id) == [(seq, f"{n}") for n, seq in enumerate(good)]
    letter = await fabric.pool.fetchrow("SELECT * FROM dead_letters")
    assert letter is not None
    assert (letter["stream"], letter["consumer"], letter["seq"], letter["subject"]) == (
        STREAM,
        PERSISTER_DURABLE,
        seqs[250],
        subject,
    )
    assert letter["payload"] == messages[250][1]
    assert "invalid byte sequence" in letter["error"]
    assert persister.metrics.consumer.dead_letters.labels(STREAM)._value.get() == 1
    assert await fabric.cursor() == seqs[-1]


@pytest.mark.parametrize("kind", POISONS)
async def test_every_kind_of_poison_is_a_dead_letter_and_blocks_nothing(
    fabric: Fabric, kind: str
) -> None:
    # Given poison at the beginning, in the middle and at the end
    thread_id = await fabric.thread("ava")
    subject, bad = msg_subject(thread_id), poison(kind, thread_id)
    good = [encode_event(new_message(thread_id, "ava", body)) for body in ("a", "b")]
    seqs = await fabric.store_raw(
        [(subject, payload) for payload in (bad, good[0], bad, good[1], bad)]
    )
    # When they are stored
    async with fabric.persister():
        await fabric.reached(seqs[-1])
    # Then what is good is there, in order, and the rest is put aside
    assert await fabric.history(thread_id) == [(seqs[1], "a"), (seqs[3], "b")]
    rows = await fabric.pool.fetch("SELECT seq FROM dead_letters ORDER BY seq")
    assert [row["seq"] for row in rows] == [seqs[0], seqs[2], seqs[4]]
