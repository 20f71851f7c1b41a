"""Who has read what, on the whole platform: over two edges, in lists, on other devices, and after kills."""

from functools import partial

from lilith_client import Event, MessageRead
from tests.acceptance.platform import Platform
from tests.support.eventually import eventually, eventually_passes


class Listener:
    """What one device heard."""

    def __init__(self) -> None:
        self.reads: list[MessageRead] = []
        self.unread: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        if event.read is not None:
            self.reads.append(event.read)
        if event.type == "thread.activity":
            self.unread[event.data["thread_id"]] = event.data["unread"]


async def unread_over_rest(platform: Platform, user: str, thread_id: str, *, expected: int) -> None:
    """Check what a list of threads says."""
    thread = await platform.rest(user).thread(thread_id)
    assert thread["unread"] == expected


async def read_as_told(
    platform: Platform, user: str, thread_id: str, reader: str, *, seq: int
) -> None:
    """Check up to where ``user`` is shown that ``reader`` has read."""
    thread = await platform.rest(user).thread(thread_id)
    shown = {member["user_id"]: member["read_seq"] for member in thread["participants"]}
    assert shown[reader] == seq


async def test_reading_on_one_edge_shows_on_the_other_in_lists_and_on_other_devices(
    platform: Platform,
) -> None:
    # Given ava on one edge, and two devices of ben's on two edges
    ava_heard, ben_heard, ben_too_heard = Listener(), Listener(), Listener()
    async with (
        platform.client("read-ava", edge=0, on_event=ava_heard) as ava,
        platform.client("read-ben", edge=1, on_event=ben_heard) as ben,
        platform.client("read-ben", edge=0, on_event=ben_too_heard),
    ):
        thread_id = (await platform.rest("read-ava").create_thread(["read-ben"]))["thread_id"]
        for client in (ava, ben):
            await client.subscribe(thread_id, after="0")
        sent = [await ava.send(thread_id, f"{number}") for number in range(5)]
        await eventually(lambda: ben_too_heard.unread.get(thread_id) == 5)
        # When ben reads the third message, named in one way and then in the other
        assert await ben.mark_read(thread_id, seq=sent[1].seq) == sent[1].seq
        assert await ben.mark_read(thread_id, message_id=sent[2].message_id) == sent[2].seq
        # Then ava sees it, live and over REST
        await eventually(
            lambda: [read.seq for read in ava_heard.reads] == [sent[1].seq, sent[2].seq]
        )
        assert {read.user_id for read in ava_heard.reads} == {"read-ben"}
        await eventually_passes(
            partial(read_as_told, platform, "read-ava", thread_id, "read-ben", seq=sent[2].seq)
        )
        # And ben's lists count two, on his other device too, which hears no receipt of his own
        await eventually_passes(
            partial(unread_over_rest, platform, "read-ben", thread_id, expected=2)
        )
        await eventually(lambda: ben_too_heard.unread[thread_id] == 2)
        assert not ben_too_heard.reads
        # And it never goes back, whichever device says what
        assert await ben.mark_read(thread_id, seq=sent[0].seq) == sent[2].seq


async def test_a_message_of_long_ago_can_be_marked_by_its_id(platform: Platform) -> None:
    # Given a message that no edge has in mind: nobody is subscribed
    async with platform.client("old-ava") as ava, platform.client("old-ben", edge=1) as ben:
        thread_id = (await platform.rest("old-ava").create_thread(["old-ben"]))["thread_id"]
        sent = [await ava.send(thread_id, f"{number}") for number in range(3)]
        # When ben marks it by its id, Then it is found
        assert await ben.mark_read(thread_id, message_id=sent[1].message_id) == sent[1].seq
        await eventually_passes(
            partial(unread_over_rest, platform, "old-ben", thread_id, expected=1)
        )


async def test_a_mark_survives_the_persister_and_nats_being_killed(own_platform: Platform) -> None:
    own_platform.start()
    async with (
        own_platform.client("ava") as ava,
        own_platform.client("ben", edge=1) as ben,
    ):
        thread_id = (await own_platform.rest("ava").create_thread(["ben"]))["thread_id"]
        sent = [await ava.send(thread_id, f"{number}") for number in range(4)]
        # When a persister that has marks to fold is killed
        await ben.mark_read(thread_id, seq=sent[0].seq)
        own_platform.kill9("persister")
        await eventually_passes(
            partial(unread_over_rest, own_platform, "ben", thread_id, expected=3), within_s=20
        )
        # And NATS right after a mark
        await ben.mark_read(thread_id, seq=sent[2].seq)
        own_platform.kill9("nats")
        # Then the marker is where it was said to be, because the client says it again if need be
        await eventually_passes(
            partial(unread_over_rest, own_platform, "ben", thread_id, expected=1), within_s=30
        )
