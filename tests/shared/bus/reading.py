"""What the tests of the puller share: filling a stream, pulling from it, reading on."""

import asyncio

from shared.bus import Bus, Delivery, Puller
from tests.shared.bus.server import create_consumer, create_stream


def pull(bus: Bus, *, batch_max: int = 100, bytes_max: int = 1 << 20) -> Puller:
    """Return a puller of the consumer ``d``."""
    return bus.puller("S", "d", batch_max=batch_max, bytes_max=bytes_max)


async def prepare(bus: Bus, count: int, *, size: int = 0) -> None:
    """Create the stream, the consumer and ``count`` numbered messages."""
    await create_stream(bus)
    await create_consumer(bus)
    await store(bus, range(count), size=size)


async def store(bus: Bus, numbers: range, *, size: int = 0) -> None:
    """Store numbered messages, in order."""
    await asyncio.gather(*(bus.store("s.1", (b"%d" % number).ljust(size)) for number in numbers))


async def read(puller: Puller, count: int, *, within_s: float = 15.0) -> list[Delivery]:
    """Read ``count`` deliveries without acknowledging."""
    found: list[Delivery] = []
    async with asyncio.timeout(within_s):
        while len(found) < count:
            found.extend(await puller.next_batch(wait_s=0.5))
    return found


def numbers(deliveries: list[Delivery]) -> list[int]:
    """Return the numbers of the messages."""
    return [int(delivery.payload) for delivery in deliveries]
