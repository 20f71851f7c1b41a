"""A removal that an edge never heard of: found by comparing what is in use with the bucket."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cli.ports import PortReservations
from edge import directory, threads
from edge.directory import EntryCache
from tests.edge.house import Client, House
from tests.edge.test_cluster import ClusterHouse
from tests.support.cluster import running_cluster


@pytest.fixture
async def clustered(
    server_directory: Path, port_reservations: PortReservations
) -> AsyncIterator[ClusterHouse]:
    """A house whose buckets have leaders that can change."""
    with running_cluster(server_directory, port_reservations) as cluster:
        house = ClusterHouse(cluster, port_reservations)
        try:
            await house.provisioned()
            yield house
        finally:
            await house.close()


async def _removed_unheard(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> tuple[Client, Client, str]:
    """Two subscribers, one of whom is removed while every announcement is lost."""
    monkeypatch.setattr(EntryCache, "overwrite", lambda *_: None)
    # Nor does the log ever tell of it, which it otherwise does first.
    monkeypatch.setattr(threads, "LEAVING_S", 0.2)
    edge = await house.edge()
    thread_id = await house.thread("ava", "ben")
    ava, ben = await house.client(edge, "ava"), await house.client(edge, "ben")
    await ava.subscribe(thread_id)
    await ben.subscribe(thread_id)
    await house.thread("ava", thread_id=thread_id, revision=2)
    return ava, ben, thread_id


async def test_a_removed_member_whose_removal_was_not_heard_is_put_out_at_the_next_comparison(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a comparison twice a second instead of each minute, and such a member
    assert directory.REVALIDATE_S == 60.0
    monkeypatch.setattr(directory, "REVALIDATE_S", 0.5)
    ava, ben, thread_id = await _removed_unheard(house, monkeypatch)

    # When the entry was compared
    async def is_out() -> bool:
        await ava.send(thread_id, "psst")
        await ava.next("message.new")
        try:
            await ben.next("message.new", within_s=0.2)
        except TimeoutError:
            return True
        return False

    # Then they read nothing any more, and write nothing
    await house.eventually(is_out)
    assert (await ben.send(thread_id))["code"] == "not_found"


async def test_without_the_comparison_they_would_read_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "REVALIDATE_S", 3600.0)
    ava, ben, thread_id = await _removed_unheard(house, monkeypatch)
    await ava.silence("message.new", for_s=1.0)
    await ava.send(thread_id, "psst")
    assert (await ben.next("message.new"))["body"] == "psst"


async def test_after_a_reconnect_a_removed_member_is_put_out_soon(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a removal that nobody heard of, and no comparison for an hour
    monkeypatch.setattr(directory, "REVALIDATE_S", 3600.0)
    ava, ben, thread_id = await _removed_unheard(house, monkeypatch)
    # When the edge loses its connections and makes new ones
    house.nats.restart(kill=True)

    # Then the member is out
    async def is_out() -> bool:
        await ava.send(thread_id, "psst")
        await ava.next("message.new")
        try:
            await ben.next("message.new", within_s=0.2)
        except TimeoutError:
            return True
        return False

    await house.eventually(is_out)


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_a_new_leader_of_the_bucket_is_a_reason_to_compare(
    clustered: ClusterHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a removal that nobody heard of, and no comparison for an hour
    monkeypatch.setattr(directory, "REVALIDATE_S", 3600.0)
    ava, ben, thread_id = await _removed_unheard(clustered, monkeypatch)
    await ava.send(thread_id, "before")
    assert (await ben.next("message.new"))["body"] == "before"
    # When the bucket gets another leader
    provision = await clustered.bus("provision")
    await provision.api("STREAM.LEADER.STEPDOWN.KV_access", timeout_s=10)

    # Then the member is out
    async def is_out() -> bool:
        return (await ben.send(thread_id)).get("code") == "not_found"

    await clustered.eventually(is_out)
