"""The one path to the log: every message of every door is stored by this, and by nothing else.

It keeps three promises (architecture, section 2) at the point where they are won or lost:

* **Acknowledged means stored and flushed**: ``Sent`` comes from the stream's own acknowledgement.
* **One sender's messages keep their order**: per (thread, sender) at most one publish is outstanding, the others wait
  behind it. When the first cannot be stored within its budget, those behind it are refused with it.
* **A retry is the same message**: the stream knows ids for a while (``message_id`` is ``Nats-Msg-Id``); a ``duplicate``
  counts only after the stored message was read and has the same content. A retry that may be older than that memory
  asks the api first (``svc.message.find``), and is published only when it is surely not stored.

A publish is repeated with the same id and the same bytes for ``MESSAGING_PUBLISH_BUDGET``; an R3 leader election takes
4 to 9 s. What is still unknown then is ``unavailable``: the client sends the same ids again and gets the same message.
"""

from shared.sending.outcomes import Done, Outcome, Refused, SendRequest, Sent
from shared.sending.sender import Sender

__all__ = ["Done", "Outcome", "Refused", "SendRequest", "Sender", "Sent"]
