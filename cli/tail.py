"""``tail``: every live event of a user as one line of JSON, for a look into the wire and for scripts."""

import asyncio
import json
import signal
from contextlib import suppress
from typing import Any, Final

from cli.chat import Access, ChatError
from lilith_client import Client, ClientError, CommandError, Event, Rest

THREADS_MAX: Final = 128


def run_tail(access: Access, thread_id: str | None) -> int:
    """Print events until Ctrl+C: of one thread, or of all threads of the user; return the exit code.

    Raises:
        LilithError: The platform cannot be reached, or refuses.
    """
    return asyncio.run(_run(access, thread_id))


async def _run(access: Access, thread_id: str | None) -> int:
    addresses, token = access.addresses(), access.signed()
    client = Client(addresses.edges_for(access.user, edge=access.edge), token, api=addresses.api)
    printing = asyncio.create_task(_print(client, Rest(addresses.api, token), thread_id))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, printing.cancel)
    try:
        await printing
    except asyncio.CancelledError:
        return 0
    except (ClientError, TimeoutError) as error:
        raise ChatError(str(error) or "nobody answers there") from error
    return 0


async def _print(client: Client, rest: Rest, thread_id: str | None) -> None:
    async with client:
        wanted = [thread_id] if thread_id else [item["thread_id"] for item in await rest.threads()]
        for wanted_id in wanted[:THREADS_MAX]:
            await client.subscribe(wanted_id)
        async for event in client.events():
            print(json.dumps(_line(event), ensure_ascii=False), flush=True)
            if event.type == "thread.created" and thread_id is None:
                with suppress(CommandError):  # Beyond the limit of a session the rest stays unseen.
                    await client.subscribe(event.data["thread"]["thread_id"])


def _line(event: Event) -> dict[str, Any]:
    return {"type": event.type, "source": event.source, **event.data}
