"""The embedded servers: never root, no default password, back after a kill with what was stored."""

import os
import secrets
import subprocess
from pathlib import Path

import asyncpg
import pytest

from cli.data_directory import DataDirectory
from cli.embedded import privileges, runtime
from cli.embedded.nats import NATS_USERS, EmbeddedNats
from cli.embedded.postgres import EmbeddedPostgres
from cli.embedded.privileges import Account, can_reach, server_account
from cli.ports import PortReservations
from shared.errors import ConfigurationError
from tests.support.servers import NatsServer, PostgresServer, ServerProcess

NOBODY = Account(65534, 65534)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has an account to give up")


@pytest.fixture
def postgres(server_directory: Path, port_reservations: PortReservations) -> EmbeddedPostgres:
    return EmbeddedPostgres(
        directory=server_directory / f"own-{secrets.token_hex(4)}",
        port=port_reservations.search(21_000),
        password=secrets.token_urlsafe(12),
        superuser_password=secrets.token_urlsafe(12),
        account=server_account(os.geteuid()),
    )


def started(server: EmbeddedPostgres, log: Path) -> ServerProcess:
    server.prepare()
    process = ServerProcess(server.launch(), server.is_ready, log)
    process.start()
    return process


async def test_what_was_committed_survives_a_kill_of_the_embedded_postgres(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    # Given a server with the settings of the embedded default, and a committed row
    process = started(postgres, tmp_path / "log")
    try:
        connection = await asyncpg.connect(postgres.dsn())
        await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        # When it is killed -9 with the connection open, and started again
        process.kill9()
        connection.terminate()
        process.start()
        # Then the row is there
        connection = await asyncpg.connect(postgres.dsn())
        assert await connection.fetchval("SELECT answer FROM kept") == 42
        await connection.close()
    finally:
        process.stop()


async def test_postgres_takes_nobody_without_the_generated_password(
    postgres_server: PostgresServer,
) -> None:
    # Given the running server
    address = postgres_server.dsn().split("@")[1]
    # When somebody tries a wrong one, a common one, or the name itself
    for password in ("wrong", "postgres", "lilith", ""):
        # Then they are refused
        with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.PostgresError)):
            await asyncpg.connect(f"postgresql://lilith:{password}@{address}", timeout=5)


async def test_the_services_own_the_database_and_are_no_superuser(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    is_superuser = await connection.fetchval("SELECT current_setting('is_superuser')")
    await connection.close()
    assert is_superuser == "off"


@needs_root
def test_neither_server_runs_as_root(
    postgres_server: PostgresServer, nats_server: NatsServer
) -> None:
    for pid in (postgres_server.pid, nats_server.pid):
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        assert "Gid:\t65534\t65534\t65534\t65534" in status
        assert [line.split() for line in status if line.startswith("Groups:")] == [["Groups:"]]


def test_root_gives_its_account_up_and_nobody_else_does() -> None:
    assert server_account(0) == NOBODY
    assert server_account(1000) is None


@needs_root
def test_root_serves_the_data_of_an_ordinary_user_as_that_user(server_directory: Path) -> None:
    # Given data that an ordinary user's servers made, and data of root
    theirs = server_directory / f"theirs-{secrets.token_hex(4)}"
    theirs.mkdir()
    os.chown(theirs, 4711, 4712)
    # Then root runs the servers as that user, and never as itself
    assert server_account(0, theirs) == Account(4711, 4712)
    assert server_account(0, server_directory) == NOBODY
    assert server_account(0, theirs / "missing") == NOBODY
    assert server_account(4711, theirs) is None


@needs_root
def test_a_file_below_a_closed_folder_is_out_of_reach(server_directory: Path) -> None:
    # Given an open file in an open folder, below one that only root may enter
    closed = server_directory / f"closed-{secrets.token_hex(4)}"
    closed.mkdir(mode=0o700)
    (closed / "open").mkdir(mode=0o755)
    path = closed / "open" / "file"
    path.touch(mode=0o644)
    # Then nobody cannot reach it, whatever exists of it, and our own account can
    assert not can_reach(path, NOBODY)
    assert not can_reach(path.with_name("missing"), NOBODY)
    assert can_reach(path, None)
    # When the folder is opened
    closed.chmod(0o711)
    # Then it can
    assert can_reach(path, NOBODY)


@needs_root
def test_a_checkout_below_a_closed_home_is_copied_and_stays_closed(
    server_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a program in a folder that only root may enter
    closed = server_directory / f"home-{secrets.token_hex(4)}"
    closed.mkdir(mode=0o700)
    program = closed / "program"
    program.write_text("#!/bin/sh\necho reached\n")
    program.chmod(0o755)
    monkeypatch.setattr(runtime, "REACHABLE_HOME", server_directory / "reachable")
    # When a copy is made, twice
    first = runtime.reachable_copy([program], NOBODY, name="program-1")
    second = runtime.reachable_copy([program], NOBODY, name="program-1")
    # Then nobody can run the one copy, and the folder is as closed as before
    assert first == second == server_directory / "reachable" / "program-1"
    done = subprocess.run(
        [first / "program"], user=65534, capture_output=True, text=True, check=True
    )
    assert done.stdout == "reached\n"
    assert closed.stat().st_mode & 0o777 == 0o700


@needs_root
def test_data_below_a_closed_home_lies_elsewhere_and_is_found_again(
    server_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a data directory below a folder that only root may enter
    monkeypatch.setattr("cli.data_directory.REACHABLE_HOME", server_directory / "reachable")
    closed = server_directory / f"home-{secrets.token_hex(4)}"
    closed.mkdir(mode=0o700)
    directory = DataDirectory(closed / "data")
    # When the place of the servers' data is asked for, now and at the next start
    state = directory.state()
    home = directory.servers_home(state, NOBODY)
    # Then it is one that nobody can reach, remembered; and our own account needs none
    assert can_reach(home, NOBODY)
    assert directory.servers_home(state, NOBODY) == home
    assert DataDirectory(closed / "other").servers_home({}, None) == closed / "other"


def test_a_lock_file_whose_pid_is_another_process_does_not_stop_the_start(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    # Given a cluster whose killed server left a lock file, and a process that has that pid now
    postgres.prepare()
    lock = postgres.directory / "cluster" / "postmaster.pid"
    with subprocess.Popen(["sleep", "60"]) as innocent:
        lock.write_text(f"{innocent.pid}\n/elsewhere\n")
        # When the server is started
        process = started(postgres, tmp_path / "log")
        # Then it runs, and so does the other process
        process.stop()
        assert innocent.poll() is None
        innocent.kill()


def test_data_of_another_major_version_is_refused_with_a_sentence(
    postgres: EmbeddedPostgres,
) -> None:
    # Given a cluster of another version
    postgres.prepare()
    (postgres.directory / "cluster" / "PG_VERSION").write_text("12\n")
    # Then it is not started
    with pytest.raises(ConfigurationError, match="was made by PostgreSQL 12"):
        postgres.prepare()


def test_a_half_made_cluster_is_made_again(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    # Given what a start left that was killed inside initdb
    unfinished = postgres.directory / "cluster.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    # When the server is started
    process = started(postgres, tmp_path / "log")
    # Then it runs
    process.stop()
    assert not unfinished.exists()


def test_nats_keeps_its_port_and_store_over_a_kill(nats_server: NatsServer) -> None:
    # Given a running server
    port, pid = nats_server.port, nats_server.pid
    # When it is killed and started again
    nats_server.restart(kill=True)
    # Then it is another process at the same address
    assert nats_server.port == port
    assert nats_server.pid != pid


def test_a_password_of_digits_stays_a_text(
    server_directory: Path, port_reservations: PortReservations
) -> None:
    # Given passwords that nats-server would read as numbers
    server = EmbeddedNats(
        directory=server_directory / f"nats-{secrets.token_hex(4)}",
        port=port_reservations.search(21_000),
        http_port=port_reservations.search(21_000),
        passwords=dict.fromkeys(NATS_USERS, "12e4567890"),
        account=server_account(os.geteuid()),
    )
    # When it is started
    server.prepare()
    log = server.directory.with_suffix(".log")
    process = ServerProcess(server.launch(), lambda _pid: server.is_ready(), log)
    process.start()
    # Then it runs
    process.stop()


def test_two_searches_never_find_the_same_port(tmp_path: Path) -> None:
    # Given two supervisors that look at the same moment
    one, other = PortReservations(tmp_path), PortReservations(tmp_path)
    # When both search from the same number
    first, second = one.search(22_000), other.search(22_000)
    # Then they find two
    assert first != second
    # And a port comes back when its holder is gone
    one.release()
    assert other.reserve(first)
    other.release()


def test_the_reachable_home_is_outside_of_every_home() -> None:
    assert can_reach(privileges.REACHABLE_HOME, NOBODY)
