"""What cannot be kept is not acknowledged: full, gone, hanging, too far behind, not known yet."""

import asyncio

from shared import subjects
from shared.metrics import EdgeMetrics
from shared.protocol import ErrorCode
from shared.sending import Refused, Sender, SendRequest, Sent
from tests.shared.sending.lanes import (
    STREAM,
    Fabric,
    configured,
    refused,
    request,
    start,
)
from tests.support.eventually import eventually
from tests.support.nats_streams import connected, make_streams
from tests.support.servers import NatsServer


async def test_a_full_stream_refuses_at_once_and_forgets_nothing(nats_server: NatsServer) -> None:
    # Given a log of one megabyte
    settings = configured(messaging_log_bytes=1_000_000)
    await make_streams(nats_server, settings)
    async with connected(nats_server, "edge") as bus:
        fabric = await start(nats_server, bus, settings)
        # When more is sent than it holds
        outcomes = [await fabric.send(request("x" * 4000)) for _ in range(300)]
        # Then the first messages are kept and the rest is unavailable, not lost
        accepted = [outcome for outcome in outcomes if isinstance(outcome, Sent)]
        assert 200 < len(accepted) < 300
        assert {refused(outcome) for outcome in outcomes[len(accepted) :]} == {
            ErrorCode.UNAVAILABLE
        }
        assert [message.seq for message in await fabric.stored()] == [
            outcome.seq for outcome in accepted
        ]


async def test_without_a_server_the_budget_ends_in_unavailable_for_the_whole_lane(
    nats_server: NatsServer,
) -> None:
    # Given a budget of one second and a server that is gone
    settings = configured(messaging_publish_budget=1)
    await make_streams(nats_server, settings)
    async with connected(nats_server, "edge") as bus:
        fabric = await start(nats_server, bus, settings)
        nats_server.kill9()
        await eventually(lambda: not bus.connected)
        # When three messages of a lane are sent
        started = asyncio.get_running_loop().time()
        outcomes = await asyncio.gather(*(fabric.send(request(f"{n}")) for n in range(3)))
        took_s = asyncio.get_running_loop().time() - started
        # Then all are unavailable after the budget, with a hint when to try again
        assert outcomes == [Refused(ErrorCode.UNAVAILABLE, 1000)] * 3
        assert 0.9 < took_s < 3
        # And nothing of them appears when the server is back
        nats_server.start()
        await eventually(lambda: bus.connected, within_s=10)
        assert await fabric.bodies() == []


async def test_what_waits_behind_an_unavailable_message_does_not_overtake_it(
    nats_server: NatsServer,
) -> None:
    # Given a message whose budget will end, and one behind it whose own has just begun
    settings = configured(messaging_publish_budget=1)
    await make_streams(nats_server, settings)
    async with connected(nats_server, "edge") as bus:
        fabric = await start(nats_server, bus, settings)
        nats_server.pause()
        try:
            first = asyncio.create_task(fabric.send(request("first")))
            await asyncio.sleep(0.7)
            second = asyncio.create_task(fabric.send(request("second")))
            # When the first is given up
            outcome = await first
            # Then the second is too, at once: stored alone it would stand before the first one's retry
            assert second.done() or refused(await asyncio.wait_for(second, 0.1))
        finally:
            nats_server.resume()
        assert refused(outcome) is refused(second.result()) is ErrorCode.UNAVAILABLE
        assert "second" not in await fabric.bodies()


async def test_a_hanging_server_is_given_up_after_the_budget(nats_server: NatsServer) -> None:
    # Given a server that holds its connections and does not answer
    settings = configured(messaging_publish_budget=1)
    await make_streams(nats_server, settings)
    async with connected(nats_server, "edge") as bus:
        fabric = await start(nats_server, bus, settings)
        asked = request()
        nats_server.pause()
        # When a message is sent
        try:
            outcome = await fabric.send(asked)
        finally:
            nats_server.resume()
        # Then it is unavailable, and sent again it is the same message, once
        assert refused(outcome) is ErrorCode.UNAVAILABLE
        again = await eventually(lambda: _sent_or_none(fabric, asked), within_s=10)
        assert [message.seq for message in await fabric.stored()] == [again.seq]


async def _sent_or_none(fabric: Fabric, asked: SendRequest) -> Sent | None:
    outcome = await fabric.send(asked)
    return outcome if isinstance(outcome, Sent) else None


async def test_before_the_streams_were_read_nothing_is_taken(fabric: Fabric) -> None:
    # Given a sender that does not know its streams yet
    fresh = Sender(fabric.bus, fabric.settings, metrics=EdgeMetrics("test").sending)
    assert not fresh.ready
    # When a message comes
    # Then it is unavailable
    assert refused(await fresh.send(request())) is ErrorCode.UNAVAILABLE


async def test_a_persister_too_far_behind_blocks_sends_until_it_catches_up(
    nats_server: NatsServer,
) -> None:
    # Given a log of two seconds, so that one second unpersisted is too old
    settings = configured(
        messaging_log_age=2,
        messaging_dedupe_window=1,
        messaging_publish_budget=0.3,
        messaging_hold_expiry=1,
    )
    await make_streams(nats_server, settings)
    stop = asyncio.Event()
    async with connected(nats_server, "edge") as bus, connected(nats_server, "persister") as reader:
        fabric = await start(nats_server, bus, settings)
        assert isinstance(await fabric.send(request("first")), Sent)
        # When nobody persists it for longer than that
        await asyncio.sleep(1.1)
        await fabric.sender.prepare()
        # Then nothing is acknowledged that might not be kept
        assert refused(await fabric.send(request("second"))) is ErrorCode.UNAVAILABLE
        assert fabric.metrics.blocked_streams._value.get() == 1
        # And when the persister has caught up, sends go on
        puller = reader.puller(STREAM, subjects.PERSISTER_DURABLE, batch_max=10, bytes_max=100_000)
        batch = await puller.next_batch(wait_s=2)
        await puller.ack(batch[-1])
        await fabric.sender.prepare()
        assert isinstance(await fabric.send(request("third")), Sent)
        stop.set()


async def test_the_state_of_the_streams_is_read_again_and_again(fabric: Fabric) -> None:
    # Given a running watch
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fabric.sender.run(stop))
        # When it is told to stop
        stop.set()
    # Then it returns, and sends still work
    assert isinstance(await fabric.send(request()), Sent)
