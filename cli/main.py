"""The ``lilith`` command: one word each for running, looking and preparing.

Every word imports what it needs when it is used, so that ``--help`` and ``token`` answer at once.
Exit codes: 0, 1 (it failed), 2 (wrong usage).
"""

import asyncio
import json
import runpy
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from shared.errors import LilithError

DATA_DIRECTORY: Final = Path(".data")

DataDir = Annotated[Path, typer.Option("--data-dir", help="Folder of the platform's data.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Port = Annotated[int | None, typer.Option(min=1, max=65_535, help="Where to look for free ports.")]
Edges = Annotated[int, typer.Option(min=1, max=64, help="Number of edge processes.")]
User = Annotated[str, typer.Option(help="Who you are: a user id.")]
EdgeNumber = Annotated[
    int | None, typer.Option("--edge", min=0, help="Number of the edge; chosen by the user's id.")
]
Urls = Annotated[
    list[str] | None, typer.Option("--url", help="WebSocket address of another platform.")
]
ApiUrl = Annotated[str | None, typer.Option("--api", help="REST address of another platform.")]
GivenToken = Annotated[str | None, typer.Option("--token", help="Your token there.")]

app: Final = typer.Typer(
    name="lilith",
    help="A self-hosted realtime messaging platform. Start with: ./run demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
migrate: Final = typer.Typer(help="The tables of the database.", no_args_is_help=True)
config: Final = typer.Typer(help="The configuration.", no_args_is_help=True)
app.add_typer(migrate, name="migrate")
app.add_typer(config, name="config")


def main() -> None:
    """Run the command line and exit."""
    try:
        app()
    except (LilithError, OSError) as error:
        print(f"lilith: {error}", file=sys.stderr)
        sys.exit(1)


@app.command()
def demo(data_dir: DataDir = DATA_DIRECTORY, port: Port = None, edges: Edges = 2) -> None:
    """Run the whole platform with living demo data; Ctrl+C stops it."""
    from cli.demo import announce_demo
    from cli.up import UpOptions, run_platform

    run_platform(UpOptions(data_dir, port, edges), announce_demo)


@app.command()
def up(
    data_dir: DataDir = DATA_DIRECTORY,
    port: Port = None,
    edges: Edges = 2,
    as_json: AsJson = False,
    only_servers: Annotated[
        bool, typer.Option("--only-servers", help="PostgreSQL and NATS, without the services.")
    ] = False,
) -> None:
    """Run the whole platform; --json prints one line when it is ready."""
    from cli.up import UpOptions, announce_json, announce_text, run_platform

    options = UpOptions(data_dir, port, edges, only_servers, show_logs=not as_json)
    run_platform(options, announce_json if as_json else announce_text)


@app.command()
def ps(data_dir: DataDir = DATA_DIRECTORY, as_json: AsJson = False) -> None:
    """Show the processes of the platform."""
    from cli.up import processes

    found = processes(data_dir)
    if as_json:
        print(json.dumps(found))
        return
    print("ready" if found["ready"] else "not running: start it with ./run up")
    for name, pid in found["pids"].items():
        print(f"{name:<12} {pid or '-'}")


@app.command()
def token(
    user: Annotated[str, typer.Option(help="The user's id: the token's sub.")],
    role: Annotated[str, typer.Option(help="client, creator, admin or service.")] = "client",
    name: Annotated[str | None, typer.Option(help="The name that others see.")] = None,
    ttl: Annotated[str | None, typer.Option(help="How long it is valid: 30m, 24h, 7d.")] = None,
    data_dir: DataDir = DATA_DIRECTORY,
) -> None:
    """Print a token for a user, signed with this machine's key (or JWT_SECRET)."""
    from cli.tokens import token_text

    try:
        print(token_text(data_dir, user, role=role, name=name, ttl=ttl))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def chat(
    user: User,
    other: Annotated[str, typer.Option("--with", help="Whom to talk with.")],
    data_dir: DataDir = DATA_DIRECTORY,
    edge: EdgeNumber = None,
    url: Urls = None,
    api: ApiUrl = None,
    token: GivenToken = None,
) -> None:
    """Chat with somebody in this terminal."""
    from cli.chat import Access, run_chat

    access = Access(user, data_dir, url or (), api, token, edge=edge)
    raise typer.Exit(run_chat(access, other))


@app.command()
def tail(
    user: User,
    thread: Annotated[str | None, typer.Option(help="Only this thread, by its id.")] = None,
    data_dir: DataDir = DATA_DIRECTORY,
    edge: EdgeNumber = None,
    url: Urls = None,
    api: ApiUrl = None,
    token: GivenToken = None,
) -> None:
    """Print the live events of a user, one JSON object a line."""
    from cli.chat import Access
    from cli.tail import run_tail

    access = Access(user, data_dir, url or (), api, token, edge=edge)
    raise typer.Exit(run_tail(access, thread))


@app.command()
def seed(
    data_dir: DataDir = DATA_DIRECTORY,
    number: Annotated[int, typer.Option("--seed", help="Another number: other messages.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Fill the running platform with demo data; a second time adds nothing."""
    from cli.seed import run_seed

    seeded = run_seed(data_dir, number)
    if as_json:
        print(json.dumps(seeded._asdict()))
        return
    print(
        f"{seeded.threads} threads, {seeded.sent} messages sent, {seeded.known} were there already"
    )


@app.command()
def edge() -> None:
    """Run one edge: the WebSocket gateway."""
    _become("edge")


@app.command()
def persister() -> None:
    """Run one persister: the writer of history."""
    _become("persister")


@app.command()
def api() -> None:
    """Run one api: REST and everything that needs the database."""
    _become("api")


@app.command()
def analytics() -> None:
    """Run one analytics process."""
    _become("analytics")


@app.command()
def provision(
    new_generation: Annotated[
        list[str] | None,
        typer.Option("--new-generation", help="A message stream that is lost and may begin anew."),
    ] = None,
) -> None:
    """Create or verify the streams, consumers and buckets of NATS."""
    from cli import preparation

    url, database = preparation.nats_url(), preparation.database_url()
    for line in asyncio.run(
        preparation.provision(url, database, new_generation=new_generation or ())
    ):
        print(line)


@migrate.command("up")
def migrate_up(revision: Annotated[str, typer.Argument()] = "head") -> None:
    """Apply every migration up to REVISION."""
    from cli.preparation import database_url, explained
    from migrations import runner

    url = database_url()
    with explained(url):
        runner.upgrade(url, revision)


@migrate.command("down")
def migrate_down(revision: Annotated[str, typer.Argument()] = "-1") -> None:
    """Take migrations back: -1 the last one. Loses the data of what it drops."""
    from cli.preparation import database_url, explained
    from migrations import runner

    url = database_url()
    with explained(url):
        runner.downgrade(url, revision)


@migrate.command("status")
def migrate_status(as_json: AsJson = False) -> None:
    """Show every migration and whether it is applied."""
    from cli.preparation import database_url, explained
    from migrations import runner

    url = database_url()
    with explained(url):
        revisions = runner.status(url)
    if as_json:
        print(json.dumps([revision._asdict() for revision in revisions]))
        return
    for revision in revisions:
        print(
            f"{'applied' if revision.applied else 'missing':<8} {revision.revision} {revision.title}"
        )


@migrate.command("new")
def migrate_new(name: str) -> None:
    """Make an empty migration."""
    from migrations import runner

    print(runner.new(name))


@migrate.command("sql")
def migrate_sql(revision: Annotated[str, typer.Argument()] = "head") -> None:
    """Print the SQL of the migrations, for those who run it by hand."""
    from migrations import runner

    print(runner.sql(revision))


@config.command("show")
def config_show(as_json: AsJson = False) -> None:
    """Print every setting, its value (secrets masked) and where it comes from."""
    from shared.settings import describe, load_settings

    rows = describe(load_settings())
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['name']:<40} {row['value']:<30} {row['source']:<20} {row['description']}")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path(".env"),
) -> None:
    """Write a .env with fresh secrets for production."""
    from cli.initial import write_environment_file

    write_environment_file(path)
    print(f"{path} written: it holds secrets, keep it out of version control")


@app.command()
def doctor(data_dir: DataDir = DATA_DIRECTORY, as_json: AsJson = False) -> None:
    """Check whether this machine can run the platform, and whether it runs well."""
    from cli.doctor import diagnose

    findings = diagnose(data_dir)
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings]))
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.check:<24} {finding.text}")
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def healthcheck(
    port: Annotated[int | None, typer.Option(help="Health port; MESSAGING_HEALTH_PORT.")] = None,
) -> None:
    """Ask the service on this machine (in this container) whether it is ready."""
    from cli.doctor import is_service_ready

    raise typer.Exit(0 if is_service_ready(port) else 1)


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the versions of the platform and of its servers."""
    from cli.doctor import versions

    found = versions()
    if as_json:
        print(json.dumps(found))
        return
    for name, number in found.items():
        print(f"{name} {number}")


@app.command()
def openapi() -> None:
    """Print the description of the REST interface."""
    from cli.descriptions import openapi_document

    print(json.dumps(openapi_document(), indent=2))


@app.command()
def asyncapi() -> None:
    """Print the description of the WebSocket interface."""
    from cli.descriptions import asyncapi_document

    print(json.dumps(asyncapi_document(), indent=2))


def _become(service: str) -> None:
    runpy.run_module(service, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
