"""Subjects: equal to what the server computes, and closed to every token that is no id."""

import itertools
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from cli.embedded.privileges import server_account
from cli.embedded.runtime import nats_server_binary
from cli.ports import PortReservations
from shared import subjects
from shared.errors import InvalidIdError
from shared.identity import ThreadId, UserId, new_id
from tests.support.eventually import wait_until

THREAD = ThreadId("0190a0b1c2d37e4f8a9b0c1d2e3f4a5b")
USER = UserId("ava")
BUILDERS: list[Callable[[str], str]] = [
    lambda text: subjects.msg_subject(ThreadId(text)),
    lambda text: subjects.live_subject(ThreadId(text)),
    lambda text: subjects.eph_subject(ThreadId(text)),
    lambda text: subjects.rcpt_subject(ThreadId(text), USER),
    lambda text: subjects.user_subject(UserId(text)),
    lambda text: subjects.rate_subject(UserId(text), 1),
    lambda text: subjects.bucket_subject(subjects.ACCESS_BUCKET, text),
    lambda text: subjects.bucket_subject(subjects.PRESENCE_BUCKET, f"ava.{text}"),
    lambda text: subjects.inbox_prefix("edge", text),
]
UNSAFE = ["", "*", ">", "a b", "a\tb", "a\r\nPUB x 0", "a*", "a>", "é", "a\0", "$SYS", "a" * 65]
thread_ids = st.from_regex(r"[0-9a-f]{32}", fullmatch=True).map(ThreadId)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("token", UNSAFE)
def test_no_builder_lets_an_unsafe_token_through(builder: Callable[[str], str], token: str) -> None:
    with pytest.raises(InvalidIdError):
        builder(token)


@given(st.text(max_size=70))
def test_a_subject_has_exactly_its_tokens_whatever_the_id(text: str) -> None:
    try:
        subject = subjects.msg_subject(ThreadId(text))
    except InvalidIdError:
        return
    assert subject.split(".") == ["msg", str(subjects.shard_of(ThreadId(text))), text]


@pytest.mark.parametrize("key", ["a.*", "a..b", ".a", "a.", "a.>"])
def test_a_key_of_two_tokens_is_checked_token_by_token(key: str) -> None:
    with pytest.raises(InvalidIdError):
        subjects.bucket_subject(subjects.PRESENCE_BUCKET, key)


def test_a_user_with_dots_cannot_reach_into_another_thread() -> None:
    with pytest.raises(InvalidIdError):
        subjects.rcpt_subject(THREAD, "ava.*")
    with pytest.raises(InvalidIdError):
        subjects.rcpt_subject(THREAD, ">")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # The published test vectors of FNV-1a, 32 bits.
        ("", 0x811C9DC5),
        ("a", 0xE40C292C),
        ("b", 0xE70C2DE5),
        ("foobar", 0xBF9CF968),
    ],
)
def test_the_hash_is_fnv_1a(text: str, value: int) -> None:
    assert subjects.hash_of(ThreadId(text)) == value


@pytest.fixture
def mapping_server(tmp_path: Path, port_reservations: PortReservations) -> Iterator[int]:
    """The port of a nats-server that writes the partition of ``ask.<token>`` into ``told.<partition>.<token>``."""
    port = port_reservations.search(20_000)
    configuration = tmp_path / "mapping.conf"
    configuration.write_text(
        f"listen: 127.0.0.1:{port}\n"
        'mappings: { "ask.*": "told.{{partition(256,1)}}.{{wildcard(1)}}" }\n'
    )
    binary = nats_server_binary(server_account(os.geteuid()))
    server = subprocess.Popen([binary, "-c", configuration], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port), because="nats-server does not listen")
        yield port
    finally:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_the_shard_is_the_servers_own_partition(mapping_server: int) -> None:
    threads = [ThreadId(new_id()) for _ in range(500)]
    asked = "".join(f"PUB ask.{thread} 0\r\n\r\n" for thread in threads)
    with socket.create_connection(("127.0.0.1", mapping_server), timeout=10) as connection:
        # When the server maps them
        connection.sendall(f'CONNECT {{"verbose":false}}\r\nSUB told.> 1\r\n{asked}'.encode())
        deliveries = (line for line in connection.makefile() if line.startswith("MSG "))
        told = [line.split()[1] for line in itertools.islice(deliveries, len(threads))]
    # Then it puts every thread where we do
    assert told == [f"told.{subjects.shard_of(thread)}.{thread}" for thread in threads]


@given(thread_ids)
def test_all_subjects_of_a_thread_name_its_shard_and_give_the_thread_back(
    thread: ThreadId,
) -> None:
    built = [
        subjects.msg_subject(thread),
        subjects.live_subject(thread),
        subjects.eph_subject(thread),
        subjects.rcpt_subject(thread, USER),
        subjects.rcpt_subject(thread, "*"),
    ]
    assert {subjects.thread_of(subject) for subject in built} == {thread}
    assert {subject.split(".")[1] for subject in built} == {str(subjects.shard_of(thread))}


@pytest.mark.parametrize("streams", [1, 2, 3, 8, 255, 256])
def test_every_shard_belongs_to_exactly_one_stream(streams: int) -> None:
    names = subjects.stream_names(streams)
    held = [subjects.stream_subjects(number, streams) for number in range(streams)]
    if streams == 1:
        assert held == [["msg.*.*"]]
    else:
        everything = [subject for subjects_ in held for subject in subjects_]
        assert sorted(everything) == sorted(f"msg.{shard}.*" for shard in range(subjects.SHARDS))
        assert all(held)
    assert len(set(names)) == streams


@pytest.mark.parametrize("streams", [2, 3, 8, 256])
@given(thread=thread_ids)
def test_the_stream_of_a_thread_is_the_one_that_takes_its_subject(
    streams: int, thread: ThreadId
) -> None:
    number = subjects.stream_names(streams).index(subjects.stream_of(thread, streams))
    assert f"msg.{subjects.shard_of(thread)}.*" in subjects.stream_subjects(number, streams)


def test_one_stream_takes_every_thread() -> None:
    assert subjects.stream_of(THREAD, 1) == "MSG_0"


def test_an_edge_may_not_delete_purge_spoof_or_listen_to_others() -> None:
    edge = subjects.permissions("edge", 8)
    assert not [
        subject
        for subject in edge.publish
        if subject.startswith(("live", "$JS.API.>", "inv", "messaging", "safety", "_INBOX"))
        or any(word in subject for word in ("DELETE", "PURGE", "CREATE", "UPDATE"))
    ]
    assert [subject for subject in edge.subscribe if "INBOX" in subject] == ["_INBOX_edge.>"]
    assert not [subject for subject in edge.subscribe if subject.startswith(("msg", "rcpt"))]
    assert not edge.answers


@pytest.mark.parametrize("role", subjects.ROLES)
def test_no_role_may_use_everything(role: str) -> None:
    allowed = subjects.permissions(role, 1)
    everything = {">", "*", "$JS.>", "$JS.ACK.>", "$KV.>", "$SYS.>"}
    assert not everything & {*allowed.publish, *allowed.subscribe}
    assert all(subject.isascii() for subject in (*allowed.publish, *allowed.subscribe))


def test_only_provisioning_may_change_streams() -> None:
    able = [
        role
        for role in subjects.ROLES
        for subject in subjects.permissions(role, 1).publish
        if subject in {"$JS.API.>", "$JS.API.STREAM.>", "$JS.API.STREAM.CREATE.*"}
    ]
    assert able == ["provision"]


def test_an_unknown_role_has_no_permissions() -> None:
    with pytest.raises(KeyError):
        subjects.permissions("nobody", 1)


@pytest.mark.parametrize("bucket", subjects.BUCKETS)
def test_a_bucket_has_one_stream_and_one_subject_a_key(bucket: str) -> None:
    assert subjects.bucket_stream(bucket) == f"KV_{bucket}"
    assert subjects.bucket_subject(bucket, "ava") == f"$KV.{bucket}.ava"
    assert subjects.invalidation_subject(bucket, "ava") == f"inv.{bucket}.ava"
