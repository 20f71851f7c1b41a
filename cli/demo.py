"""``demo``: the platform with people who know each other, and what to try first."""

import asyncio
from functools import partial
from typing import Final

from cli.addresses import Addresses
from cli.bots import living_bots
from cli.console import Console, stderr_console
from cli.people import PEOPLE, Person
from cli.seed import seed
from cli.tokens import token_text
from cli.up import Running, data_dir_option

DEMO_DATA: Final = 1
VALID_FOR: Final = "7d"
_VISITORS: Final = ("ava", "ben")
_SEEDED: Final = "demo_data"


async def announce_demo(running: Running) -> None:
    """Make the demo data at the first start, print what to try, and let the bots live until cancelled."""
    console = stderr_console()
    addresses = Addresses(running.stack.api_url, running.stack.edge_urls)
    await _seed_once(running, addresses, console)
    print(_text(running), flush=True)
    await living_bots(addresses, lambda person: _token(running, person), stop=asyncio.Event())


async def _seed_once(running: Running, addresses: Addresses, console: Console) -> None:
    state = running.directory.state()
    if state.get(_SEEDED) == DEMO_DATA:
        return
    await seed(
        addresses,
        lambda person: _token(running, person),
        number=DEMO_DATA,
        report=partial(console.note, name="demo"),
    )
    running.directory.save_state({**state, _SEEDED: DEMO_DATA})


def _token(running: Running, person: Person) -> str:
    return token_text(
        running.directory.path, person.user_id, role=person.role, name=person.name, ttl=VALID_FOR
    )


def _text(running: Running) -> str:
    stack, option = running.stack, data_dir_option(running.directory)
    lines = [
        f"ready in {running.ready_s:.1f} s     data {running.directory.path}     stop Ctrl+C",
        "",
    ]
    for user_id in _VISITORS:
        person = PEOPLE[user_id]
        lines.append(f"{person.name} ({person.role}), token: {_token(running, person)}")
    lines += [
        "",
        f"REST docs    {stack.api_url}/docs",
        f"WebSocket    {'   '.join(stack.edge_urls)}     docs {stack.api_url}/docs/asyncapi",
        f"metrics      {stack.metrics_urls()['edge-0']}",
        "",
        "try in two terminals, each on another edge:",
        f"    ./run chat --user ava --with ben{option}",
        f"    ./run chat --user ben --with ava{option}",
        "",
        "the secrets are generated and stay on this machine; for production see compose.yaml",
    ]
    return "\n" + "\n".join(f"  {line}".rstrip() for line in lines) + "\n"
