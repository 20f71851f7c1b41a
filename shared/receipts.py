"""How far each member has read: one value per member and thread in stream ``RCPT``, moved by compare-and-set.

Several devices on several nodes move the same marker. Each writer reads the value, changes what it saw and writes it on
the condition that nothing was written since (``Nats-Expected-Last-Subject-Sequence``); refused, it reads again. So a
marker never goes back because somebody wrote an older view of it.

Own messages mark everything before them as read as well; they are not written here, because the log has them. The
persister folds both (``persister.receipts``).
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from shared.bus import Bus, BusError, PublishRefusedError, PublishTimeoutError
from shared.bus.errors import WRONG_LAST_SEQUENCE, WRONG_LAST_SEQUENCE_CONSTANT
from shared.identity import ThreadId, UserId
from shared.subjects import RCPT_STREAM, rcpt_subject

EXPECTED_LAST: Final = "Nats-Expected-Last-Subject-Sequence"
WRITE_S: Final = 2.0
TRIES: Final = 30
_PAUSE_S: Final = 0.02


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One member's markers in one thread. All are positions: everything of others up to them."""

    read: int = 0
    """The member's own marker; it may be put back ("mark as unread")."""
    shown: int = 0
    """What others are shown as read: the furthest that ``read`` ever was."""
    delivered: int = 0
    over: int = 0
    """The thread's end when ``read`` was put back: own messages up to it mark nothing as read any more."""
    at: str = ""
    """When ``shown`` moved last."""

    def read_up_to(self, seq: int, at: str) -> "Receipt":
        """Return it with everything up to ``seq`` read; never back."""
        return self._shown_up_to(seq, at, read=max(self.read, seq), over=self.over)

    def put_to(self, seq: int, tail: int, at: str) -> "Receipt":
        """Return it with the member's own marker at ``seq``, back included; what others are shown never goes back.

        Args:
            seq: The new position.
            tail: The newest position of the thread.
            at: The time.
        """
        return self._shown_up_to(seq, at, read=seq, over=max(self.over, tail))

    def _shown_up_to(self, seq: int, at: str, *, read: int, over: int) -> "Receipt":
        return Receipt(
            read=read,
            shown=max(self.shown, seq),
            delivered=max(self.delivered, seq),
            over=over,
            at=at if seq > self.shown else self.at,
        )


class Moved(NamedTuple):
    """What a write found and what it left; equal when there was nothing to write."""

    before: Receipt
    after: Receipt


class ReceiptContendedError(BusError):
    """Other writers were quicker every time."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"{subject} was written by others {TRIES} times in a row")


_DECODER: Final = msgspec.json.Decoder(Receipt)
_ENCODER: Final = msgspec.json.Encoder()


def decode_receipt(payload: bytes) -> Receipt:
    """Return the value in a stored payload.

    Raises:
        msgspec.DecodeError: Not one of ours.
    """
    return _DECODER.decode(payload)


def encode_receipt(receipt: Receipt) -> bytes:
    """Return the payload to store."""
    return _ENCODER.encode(receipt)


async def move_receipt(
    bus: Bus, thread_id: ThreadId, user_id: UserId, change: Callable[[Receipt], Receipt]
) -> Moved:
    """Change a member's markers; returned means stored (PubAck).

    Args:
        bus: A connection that may read and write ``RCPT``.
        thread_id: The thread; that the user may see it was checked.
        user_id: The member.
        change: From the newest value to the wanted one; called once per attempt.

    Raises:
        BusError: Not stored, or nobody knows: calling again does no harm.
    """
    subject = rcpt_subject(thread_id, user_id)
    for _ in range(TRIES):
        stored = await bus.get_last(RCPT_STREAM, subject)
        before = Receipt()
        if stored is not None:
            # A value that nobody can read counts as none, and is overwritten.
            with contextlib.suppress(msgspec.DecodeError):
                before = decode_receipt(stored.payload)
        after = change(before)
        if after == before:
            return Moved(before, before)
        expected = {EXPECTED_LAST: str(0 if stored is None else stored.seq)}
        try:
            await bus.store(subject, encode_receipt(after), timeout_s=WRITE_S, headers=expected)
        except PublishRefusedError as error:
            if error.err_code not in (WRONG_LAST_SEQUENCE, WRONG_LAST_SEQUENCE_CONSTANT):
                raise
        except PublishTimeoutError:
            pass  # Stored or not: reading again tells.
        else:
            return Moved(before, after)
        # Jitter keeps two nodes from refusing each other for ever; no secret depends on it.
        await asyncio.sleep(random.uniform(0.0, _PAUSE_S))  # noqa: S311
    raise ReceiptContendedError(subject)
