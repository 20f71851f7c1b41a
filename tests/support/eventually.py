"""Waiting for something to become true, with a deadline and a message, instead of sleeping.

::

    await eventually(lambda: session.closed)                       # a condition
    row = await eventually(lambda: connection.fetchrow(SQL, id))    # returns the first truthy result
    await eventually_passes(everything_arrived)                     # a function full of asserts
    wait_until(lambda: not path.exists())                           # the first one, without asyncio
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, overload

T = TypeVar("T")

WAIT_S: Final = 5.0
_POLL_S: Final = 0.01


@overload
async def eventually(
    probe: Callable[[], Awaitable[T | None]], *, within_s: float = WAIT_S, because: str = ""
) -> T: ...
@overload
async def eventually(
    probe: Callable[[], T | None], *, within_s: float = WAIT_S, because: str = ""
) -> T: ...
async def eventually(
    probe: Callable[[], object], *, within_s: float = WAIT_S, because: str = ""
) -> object:
    """Call ``probe``, awaiting what it returns, until the result is truthy; return that result.

    Exceptions of the probe end the wait.

    Raises:
        AssertionError: Not within ``within_s`` seconds; says ``because`` and the last result.
    """
    deadline = time.monotonic() + within_s
    while True:
        result = await _call(probe, deadline)
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {because or 'last result'}: {result!r}")
        await asyncio.sleep(_POLL_S)


async def eventually_passes(
    assertions: Callable[[], object | Awaitable[object]], *, within_s: float = WAIT_S
) -> None:
    """Call ``assertions``, awaiting what it returns, until it raises no AssertionError.

    Raises:
        AssertionError: Not within ``within_s`` seconds: the last one.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            await _call(assertions, deadline)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        else:
            return
        await asyncio.sleep(_POLL_S)


def wait_until(probe: Callable[[], T], *, within_s: float = WAIT_S, because: str = "") -> T:
    """Do what ``eventually`` does, blocking: for processes and files."""
    deadline = time.monotonic() + within_s
    while not (result := probe()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {because or 'last result'}: {result!r}")
        time.sleep(_POLL_S)
    return result


async def _call(probe: Callable[[], object], deadline: float) -> object:
    result = probe()
    if not inspect.isawaitable(result):
        return result
    try:
        return await asyncio.wait_for(result, max(0.05, deadline - time.monotonic()))
    except TimeoutError as error:
        raise AssertionError("the probe itself did not return in time") from error
