"""Reading from processes of a test, within a time."""

import select
from typing import IO


def first_line(stream: IO[str], *, within_s: float) -> str:
    """Return the next line that a process prints, empty when none came in time.

    Polled: ``select`` refuses descriptors above 1,023, and a test before may hold hundreds of sockets.
    """
    poll = select.poll()
    poll.register(stream, select.POLLIN | select.POLLHUP)
    return stream.readline() if poll.poll(within_s * 1000) else ""
