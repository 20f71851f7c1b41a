"""What each user of the running server needs for its work, it may do."""

import asyncio
from functools import partial

import pytest

from shared import subjects
from shared.bus import (
    Bus,
)
from shared.identity import new_id
from shared.settings import load_settings
from tests.shared.permissions.guests import AVA, LIVE, MSG, THREAD, Guests, heard
from tests.support.eventually import eventually
from tests.support.nats_streams import make_streams
from tests.support.servers import NatsServer


@pytest.fixture
async def home(nats_server: NatsServer) -> NatsServer:
    """A server of the test alone: these tests count what they store."""
    await make_streams(nats_server, load_settings(messaging_platform_consumers="crm"))
    return nats_server


async def test_an_edge_can_publish_a_message_hear_it_live_and_read_it_back(guests: Guests) -> None:
    # Given an edge that listens to a thread
    edge = await guests.come("edge")
    live: list[bytes] = []
    edge.subscribe(LIVE, lambda _subject, _reply, _headers, payload: live.append(payload))
    await edge.flush()
    # When it publishes a message
    ack = await edge.store(MSG, b"hello", message_id="m1")
    # Then it hears it live and reads it in every way that it uses
    await eventually(lambda: live == [b"hello"])
    stored = await edge.get_seq("MSG_0", ack.seq)
    last = await edge.get_last("MSG_0", MSG)
    many = await edge.get_last_many("MSG_0", [MSG])
    page = await edge.get_range("MSG_0", MSG, from_seq=1, max_messages=10, max_bytes=10_000)
    info = await edge.api("STREAM.INFO.MSG_0")
    floor = await edge.consumer_info("MSG_0", subjects.PERSISTER_DURABLE)
    read = {
        (found.seq, found.payload) for found in (stored, last, many[0], page.messages[0]) if found
    }
    assert read == {(ack.seq, b"hello")}
    assert info["state"]["messages"] == 1
    assert floor.ack_floor_seq < ack.seq
    # And the leader answers what a replica could not
    leader = await edge.api("STREAM.MSG.GET.MSG_0", {"seq": ack.seq})
    assert leader["message"]["seq"] == ack.seq
    assert guests.violations == []


async def test_an_edge_can_use_counters_receipts_feeds_typing_presence_and_services(
    guests: Guests,
) -> None:
    # Given an edge, and an api that answers
    edge, api = await guests.come("edge"), await guests.come("api")

    async def answer(question: bytes) -> bytes:
        return b"answer to " + question

    api.serve(subjects.SVC_USER_SEEN, subjects.SVC_QUEUE, answer, concurrency=2)
    await api.flush()
    # When it does everything else that its work needs
    counted = await edge.store(
        subjects.rate_subject(AVA, 1), b"", headers={"Nats-Incr": "+1"}, timeout_s=2
    )
    await edge.store(subjects.rcpt_subject(THREAD, AVA), b"{}", timeout_s=2)
    await edge.kv_put(subjects.PRESENCE_BUCKET, "ava.edge-0", b"{}", expected=None)
    await edge.kv_put(subjects.NODES_BUCKET, "edge-0", b"{}", expected=None)
    answered = await edge.request(subjects.SVC_USER_SEEN, b"ava", timeout_s=2)
    receipts = await edge.get_last_many(subjects.RCPT_STREAM, [subjects.rcpt_subject(THREAD, "*")])
    for subject in (subjects.eph_subject(THREAD), subjects.user_subject(AVA)):
        assert await heard(edge, subject, partial(edge.publish, subject, b"x"))
    # Then nothing of it is refused
    assert counted.value == 1
    assert answered == b"answer to ava"
    assert len(receipts) == 1
    assert guests.violations == []


async def test_the_api_writes_buckets_and_an_edge_hears_and_reads_the_entries(
    guests: Guests,
) -> None:
    # Given an edge that listens for changed entries
    edge, api = await guests.come("edge"), await guests.come("api")
    for bucket in (subjects.ACCESS_BUCKET, subjects.USERS_BUCKET, subjects.STANDING_BUCKET):
        key = new_id()
        # When the api writes one
        writes = partial(api.kv_put, bucket, key, b"{}", expected=0)
        heard_it = await heard(edge, subjects.invalidation_subject(bucket), writes)
        entry = await edge.kv_get(bucket, key)
        # Then the edge hears of it and can read it
        assert heard_it
        assert entry is not None
    assert guests.violations == []


async def test_the_api_publishes_every_kind_of_event_and_consumes_the_platforms(
    guests: Guests,
) -> None:
    # Given the api and a platform service
    api, platform = await guests.come("api"), await guests.come("platform")
    # When both publish what is theirs
    await api.store(MSG, b"{}", message_id="e1")
    await api.store("messaging.thread.created", b"{}", message_id="e2")
    await api.store(subjects.rcpt_subject(THREAD, AVA), b"{}")
    for subject in ("marketplace.x", "profile.user.updated", "safety.user.banned"):
        await platform.store(subject, b"{}")
    # Then the api pulls the platform's events and acknowledges them
    puller = api.puller(
        subjects.PLATFORM_STREAM, subjects.API_DURABLE, batch_max=10, bytes_max=100_000
    )
    deliveries = await puller.next_batch(wait_s=2)
    await puller.ack(deliveries[-1])
    assert len(deliveries) == 3
    assert guests.violations == []


@pytest.mark.parametrize(
    ("role", "stream"), [("persister", "MSG_0"), ("persister", "RCPT"), ("analytics", "EVENTS")]
)
async def test_a_consumer_pulls_acknowledges_and_resets_its_own_durable(
    guests: Guests, role: str, stream: str
) -> None:
    # Given something in the stream
    api, worker = await guests.come("api"), await guests.come(role)
    subject = {"MSG_0": MSG, "RCPT": subjects.rcpt_subject(THREAD, AVA), "EVENTS": "messaging.x"}
    ack = await api.store(subject[stream], b"{}")
    # When its consumer works
    puller = worker.puller(stream, role, batch_max=10, bytes_max=100_000)
    (delivery,) = await puller.next_batch(wait_s=2)
    await puller.ack(delivery)
    await puller.reset_to(ack.seq)
    again = await puller.next_batch(wait_s=2)
    info = await worker.consumer_info(stream, role)
    # Then nothing of it is refused
    assert delivery.seq == again[0].seq == info.delivered_seq == ack.seq
    assert guests.violations == []


async def test_a_persister_tells_users_and_the_platform(guests: Guests) -> None:
    # Given a persister, an edge and a platform service that listen
    persister, edge = await guests.come("persister"), await guests.come("edge")
    platform = await guests.come("platform")
    # When it publishes
    feed = await heard(
        edge, subjects.user_subject(AVA), lambda: persister.publish("user.ava", b"x")
    )
    event = await heard(
        platform,
        "messaging.message.sent",
        lambda: persister.store("messaging.message.sent", b"{}", message_id="e1"),
    )
    # Then both hear it
    assert (feed, event) == (True, True)
    assert guests.violations == []


async def test_a_platform_service_asks_answers_and_pulls_from_its_own_consumer(
    guests: Guests,
) -> None:
    # Given a platform service beside the api
    api, platform = await guests.come("api"), await guests.come("platform")

    async def answer(question: bytes) -> bytes:
        return b"answer to " + question

    api.serve(subjects.SVC_MESSAGE_SEND, subjects.SVC_QUEUE, answer, concurrency=2)
    platform.serve("safety.message.check", "checkers", answer, concurrency=2)
    await api.flush()
    await platform.flush()
    # When each asks the other, and an event is there to be pulled
    sent = await platform.request(subjects.SVC_MESSAGE_SEND, b"x", timeout_s=2)
    checked = await api.request("safety.message.check", b"text", timeout_s=2)
    await api.store("messaging.thread.created", b"{}")
    pulled = await _pull(platform, "crm")
    # Then all of it works
    assert sent == b"answer to x"
    assert checked == b"answer to text"
    assert pulled == b"{}"
    assert guests.violations == []


async def test_an_answer_can_be_given_once_and_only_to_who_asked(guests: Guests) -> None:
    # Given an api that was asked something by an edge
    api, edge = await guests.come("api"), await guests.come("edge")
    replies: list[bytes] = []
    api.subscribe("svc.command", lambda _subject, reply, _headers, _payload: replies.append(reply))
    await api.flush()
    asking = asyncio.create_task(edge.request("svc.command", b"x", timeout_s=2))
    await eventually(lambda: replies)
    # When it answers twice
    api.publish(replies[0], b"first")
    assert await asking == b"first"
    assert guests.violations == []
    api.publish(replies[0], b"second")
    # Then the second is refused
    await guests.refuses(None, naming=replies[0].decode())


async def test_a_request_of_a_broken_connection_does_not_end_the_api_when_it_answers(
    guests: Guests,
) -> None:
    # Given an api in the middle of a request when the server is killed
    api, edge = await guests.come("api"), await guests.come("edge")
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_question: bytes) -> bytes:
        asked.set()
        await go_on.wait()
        return b"late"

    api.serve("svc.command", subjects.SVC_QUEUE, slow, concurrency=1)
    await api.flush()
    asking = asyncio.create_task(edge.request("svc.command", b"x", timeout_s=30))
    await asked.wait()
    await asyncio.to_thread(guests.server.restart, kill=True)
    await eventually(lambda: api.connected and edge.connected, within_s=10)
    # When the handler is done after the reconnect
    go_on.set()
    with pytest.raises(Exception, match="connect"):
        await asking
    answer = await edge.request("svc.command", b"x", timeout_s=2)
    # Then the new server, which knows nothing of that request, was not asked to deliver its answer
    assert answer == b"late"
    assert guests.violations == []


async def _pull(platform: Bus, durable: str) -> bytes:
    """Pull one message and acknowledge it, as any client library does."""
    got: list[tuple[bytes, bytes]] = []
    platform.subscribe("_INBOX.pull", lambda _s, reply, _h, payload: got.append((reply, payload)))
    await platform.flush()
    subject = f"$JS.API.CONSUMER.MSG.NEXT.EVENTS.{durable}"
    platform.publish(subject, b'{"batch":1}', reply=b"_INBOX.pull")
    await eventually(lambda: got)
    platform.publish(got[0][0], b"+ACK")
    await platform.flush()
    return got[0][1]
