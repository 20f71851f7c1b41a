"""What a user of the running server must not do, the server refuses: no code of ours is needed for that."""

import pytest

from shared import subjects
from shared.bus import PublishRefusedError
from tests.shared.permissions.guests import LIVE, MSG, PATIENCE_S, Guests, heard


@pytest.mark.parametrize(
    "command",
    [
        "STREAM.DELETE.MSG_0",
        "STREAM.PURGE.MSG_0",
        "STREAM.MSG.DELETE.MSG_0",
        "STREAM.UPDATE.MSG_0",
        "STREAM.CREATE.MINE",
        "STREAM.SNAPSHOT.MSG_0",
        "STREAM.RESTORE.MSG_0",
        "STREAM.LEADER.STEPDOWN.MSG_0",
        "CONSUMER.CREATE.MSG_0.mine",
        "CONSUMER.CREATE.MSG_0.mine.msg.>",
        "CONSUMER.DURABLE.CREATE.MSG_0.mine",
        "CONSUMER.DELETE.MSG_0.persister",
        "CONSUMER.RESET.MSG_0.persister",
        "CONSUMER.PAUSE.MSG_0.persister",
        "CONSUMER.MSG.NEXT.MSG_0.persister",
        "ACCOUNT.PURGE.LILITH",
    ],
)
async def test_an_edge_cannot_change_or_consume_a_stream(guests: Guests, command: str) -> None:
    # Given an edge
    edge = await guests.come("edge")
    # When it sends a command of the JetStream API that is not its business
    # Then the server refuses, and nothing happens
    await guests.refuses(edge.api(command, {}, timeout_s=PATIENCE_S), naming=command)
    provision = await guests.come("provision")
    info = await provision.api("STREAM.INFO.MSG_0")
    assert info["config"]["max_age"] > 0
    assert info["state"]["consumer_count"] == 1


@pytest.mark.parametrize("subject", [LIVE, "live.1.x", "inv.access.x", "messaging.message.sent"])
async def test_an_edge_cannot_speak_for_the_server_or_for_the_domain(
    guests: Guests, subject: str
) -> None:
    # Given an edge, and another one that listens
    edge, other = await guests.come("edge"), await guests.come("edge")
    # When the first publishes where only the server does
    listened = subject if not subject.startswith("messaging") else "live.*.*"
    spoofed = await heard(other, listened, lambda: edge.publish(subject, b"spoofed"))
    # Then nobody hears it, and the server says no
    assert not spoofed
    await guests.refuses(None, naming=subject)


@pytest.mark.parametrize("bucket", [subjects.ACCESS_BUCKET, subjects.USERS_BUCKET, "standing"])
async def test_an_edge_cannot_let_anybody_in(guests: Guests, bucket: str) -> None:
    # Given an edge
    edge = await guests.come("edge")
    # When it writes an entry that only the api may write
    attempt = edge.store(f"$KV.{bucket}.x", b"{}", timeout_s=PATIENCE_S)
    # Then it is refused
    await guests.refuses(attempt, naming=f"$KV.{bucket}.x")
    assert await (await guests.come("api")).kv_get(bucket, "x") is None


@pytest.mark.parametrize(
    ("role", "subject"),
    [
        # What the stream refused and every retry would be seen there.
        ("edge", "msg.>"),
        ("edge", MSG),
        ("edge", ">"),
        ("edge", "rcpt.>"),
        ("edge", "$KV.access.>"),
        ("edge", "$JS.API.>"),
        ("edge", "$JS.ACK.>"),
        ("edge", "$SYS.>"),
        # Somebody else's answers.
        ("edge", "_INBOX.>"),
        ("edge", "_INBOX_api.>"),
        ("edge", "_INBOX_persister.>"),
        ("edge", "*.>"),
        ("persister", "_INBOX_edge.>"),
        ("persister", "svc.>"),
        ("persister", "live.>"),
        ("api", "_INBOX_edge.>"),
        ("api", "msg.>"),
        ("api", "user.*"),
        ("analytics", "messaging.>"),
        ("analytics", "_INBOX_edge.>"),
        ("platform", "live.>"),
        ("platform", "msg.>"),
        ("platform", "user.>"),
        ("platform", "svc.>"),
        ("platform", "marketplace.>"),
        ("platform", "_INBOX_api.>"),
        ("provision", "msg.>"),
    ],
)
async def test_nobody_hears_what_is_not_theirs(guests: Guests, role: str, subject: str) -> None:
    # Given a connection of that role
    bus = await guests.come(role)
    # When it subscribes to something else
    bus.subscribe(subject, lambda *_message: None)
    # Then the server refuses
    await guests.refuses(None, naming=subject)


@pytest.mark.parametrize(
    ("role", "subject"),
    [
        ("persister", MSG),
        ("persister", "$KV.access.x"),
        ("persister", "rate.ava.1"),
        ("persister", "marketplace.x"),
        ("analytics", MSG),
        ("analytics", "messaging.message.sent"),
        ("api", LIVE),
        ("api", "_INBOX_edge.a.b"),
        ("api", "marketplace.x"),
        ("platform", MSG),
        ("platform", "messaging.message.sent"),
        ("platform", "user.ava"),
        ("platform", "_INBOX_api.a.b"),
        ("platform", subjects.SVC_MESSAGE_FIND),
        ("provision", MSG),
        ("provision", "$KV.access.x"),
    ],
)
async def test_nobody_says_what_is_not_theirs(guests: Guests, role: str, subject: str) -> None:
    # Given a connection of that role
    bus = await guests.come(role)
    # When it publishes something else
    bus.publish(subject, b"{}")
    # Then the server refuses
    await guests.refuses(None, naming=subject)


@pytest.mark.parametrize("role", ["persister", "api", "analytics", "platform"])
async def test_only_provisioning_deletes_streams(guests: Guests, role: str) -> None:
    # Given every other role
    bus = await guests.come(role)
    # When it deletes the log
    attempt = bus.api("STREAM.DELETE.MSG_0", timeout_s=PATIENCE_S)
    # Then the server refuses
    await guests.refuses(attempt, naming="STREAM.DELETE")


async def test_even_provisioning_cannot_purge_the_log_or_delete_from_it(guests: Guests) -> None:
    # Given a stored message
    edge, provision = await guests.come("edge"), await guests.come("provision")
    ack = await edge.store(MSG, b"hello")
    # When the one user who may change streams tries to take it out
    for command, body in (("PURGE.MSG_0", {}), ("MSG.DELETE.MSG_0", {"seq": ack.seq})):
        with pytest.raises(Exception, match=r"(?i)not permitted|denied|deny"):
            await provision.api(f"STREAM.{command}", body)
    # Then it is still there
    assert await edge.get_seq("MSG_0", ack.seq) is not None


@pytest.mark.parametrize(
    "headers",
    [
        {"Nats-Rollup": "all"},
        {"Nats-Rollup": "sub"},
        {"Nats-TTL": "1"},
        {"Nats-Schedule": "@at 2030-01-01T00:00:00Z", "Nats-Schedule-Target": "msg.1.x"},
        {"Nats-Incr": "+1"},
    ],
)
async def test_no_header_of_a_message_has_power_over_the_log(
    guests: Guests, headers: dict[str, str]
) -> None:
    # Given a stored message
    edge = await guests.come("edge")
    kept = await edge.store(MSG, b"kept")
    # When another one comes with a header that would delete, expire or send
    with pytest.raises(PublishRefusedError):
        await edge.store(MSG, b"evil", headers=headers, timeout_s=2)
    # Then it is refused as a whole
    info = await edge.api("STREAM.INFO.MSG_0")
    assert info["state"]["last_seq"] == kept.seq
    assert await edge.get_seq("MSG_0", kept.seq) is not None


async def test_a_platform_service_cannot_pull_what_is_for_analytics(guests: Guests) -> None:
    # Given a platform service
    platform = await guests.come("platform")
    # When it pulls from our own consumer
    subject = "$JS.API.CONSUMER.MSG.NEXT.EVENTS.analytics"
    platform.publish(subject, b"1", reply=b"_INBOX.x")
    # Then the server refuses
    await guests.refuses(None, naming=subject)
