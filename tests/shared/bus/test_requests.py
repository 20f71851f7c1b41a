"""Request and reply, bounded responders, the JetStream API."""

import asyncio

import pytest

from shared.bus import (
    Bus,
    BusDisconnectedError,
    BusOverloadedError,
    JetStreamApiError,
    NoRespondersError,
    RequestTimeoutError,
    ServiceFailedError,
)
from tests.shared.bus.server import Buses, LocalNats, create_stream
from tests.support.eventually import eventually


async def echo(payload: bytes) -> bytes:
    return b"echo:" + payload


async def test_a_request_is_answered_by_a_member_of_the_queue(buses: Buses) -> None:
    # Given two responders
    asker, one, two = [await buses.connect() for _ in range(3)]
    one.serve("svc.echo", "q", echo, concurrency=4)
    two.serve("svc.echo", "q", echo, concurrency=4)
    await one.flush()
    await two.flush()
    # When fifty requests are made at once
    answers = await asyncio.gather(
        *(asker.request("svc.echo", b"%d" % number, timeout_s=5.0) for number in range(50))
    )
    # Then each gets its own answer
    assert answers == [b"echo:%d" % number for number in range(50)]


async def test_a_request_to_nobody_fails_at_once(bus: Bus) -> None:
    # Given no responder
    # When somebody asks
    # Then the answer does not wait for the deadline
    with pytest.raises(NoRespondersError):
        await bus.request("svc.nobody", b"x", timeout_s=60.0)


async def test_a_request_without_an_answer_times_out(bus: Bus) -> None:
    # Given somebody who listens and never answers
    bus.subscribe("svc.silent", lambda *_message: None)
    # When somebody asks
    with pytest.raises(RequestTimeoutError):
        await bus.request("svc.silent", b"x", timeout_s=0.1)
    # Then nothing is left behind
    assert bus._requests._asking == {}


async def test_outstanding_requests_are_bounded(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given somebody who never answers, and room for two requests
    monkeypatch.setattr("shared.bus.requests.OUTSTANDING_MAX", 2)
    bus.subscribe("svc.silent", lambda *_message: None)
    # When three ask
    outcomes = await asyncio.gather(
        *(bus.request("svc.silent", b"x", timeout_s=0.2) for _ in range(3)), return_exceptions=True
    )
    # Then the third is told that nothing was sent
    assert [type(outcome) for outcome in outcomes] == [
        RequestTimeoutError,
        RequestTimeoutError,
        BusOverloadedError,
    ]


async def test_a_request_fails_promptly_when_the_connection_breaks(
    bus: Bus, nats: LocalNats
) -> None:
    # Given a request that waits for a slow answer
    bus.subscribe("svc.silent", lambda *_message: None)
    asking = asyncio.create_task(bus.request("svc.silent", b"x", timeout_s=60.0))
    await bus.flush()
    # When the server dies
    nats.kill9()
    # Then the asker knows before its deadline
    with pytest.raises(BusDisconnectedError):
        await asyncio.wait_for(asking, 5.0)


async def test_a_failing_handler_answers_with_an_error_and_serves_the_next(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a handler that fails on one request
    async def handler(payload: bytes) -> bytes:
        if payload == b"bad":
            raise RuntimeError("our own bug")
        return payload

    bus.serve("svc.x", "q", handler, concurrency=1)
    # When it gets that one and another
    with pytest.raises(ServiceFailedError) as failure:
        await bus.request("svc.x", b"bad", timeout_s=5.0)
    answer = await bus.request("svc.x", b"good", timeout_s=5.0)
    # Then the asker is told at once, without the text of our bug, and the log has it
    assert failure.value.code == 500
    assert "our own bug" not in str(failure.value)
    assert answer == b"good"
    assert bus.callback_errors == 1
    assert "our own bug" in caplog.text


async def test_handlers_and_their_queue_are_bounded_and_the_rest_is_told_at_once(bus: Bus) -> None:
    # Given a responder of two handlers that are stuck
    running: list[bytes] = []
    most = 0
    gate = asyncio.Event()

    async def handler(payload: bytes) -> bytes:
        nonlocal most
        running.append(payload)
        most = max(most, len(running))
        await gate.wait()
        running.remove(payload)
        return payload

    bus.serve("svc.x", "q", handler, concurrency=2)
    # When forty ask: two run, 32 wait, six are too many
    asking = [
        asyncio.create_task(bus.request("svc.x", b"%d" % number, timeout_s=20.0))
        for number in range(40)
    ]
    await eventually(lambda: sum(task.done() for task in asking) == 6)
    refused = [task.exception() for task in asking if task.done()]
    gate.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    # Then the six were refused at once, all others are answered, never more than two at a time
    assert all(isinstance(error, ServiceFailedError) and error.code == 503 for error in refused)
    assert sum(isinstance(answer, bytes) for answer in answers) == 34
    assert most == 2


async def test_a_draining_service_answers_what_it_has_taken_and_leaves_the_rest_to_others(
    buses: Buses,
) -> None:
    # Given a slow responder with one request in hand and one waiting
    asker, responder, other = [await buses.connect() for _ in range(3)]
    started = asyncio.Event()

    async def slow(payload: bytes) -> bytes:
        started.set()
        await asyncio.sleep(0.2)
        return b"first:" + payload

    responder.serve("svc.x", "q", slow, concurrency=1)
    await responder.flush()
    asking = [
        asyncio.create_task(asker.request("svc.x", payload, timeout_s=5.0))
        for payload in (b"1", b"2")
    ]
    await started.wait()
    await asker.flush()
    await responder.flush()
    # When it drains and another takes over
    other.serve("svc.x", "q", echo, concurrency=1)
    await other.flush()
    await responder.drain()
    # Then both old requests are answered by the first, a new one by the other
    assert await asyncio.gather(*asking) == [b"first:1", b"first:2"]
    assert await asker.request("svc.x", b"3", timeout_s=5.0) == b"echo:3"


async def test_closing_tells_those_who_wait_that_the_service_stops(buses: Buses) -> None:
    # Given a stuck handler and one request behind it
    asker, responder = await buses.connect(), await buses.connect()
    taken = asyncio.Event()

    async def stuck(_payload: bytes) -> bytes:
        taken.set()
        await asyncio.sleep(60)
        return b""

    responder.serve("svc.x", "q", stuck, concurrency=1)
    await responder.flush()
    asking = [asyncio.create_task(asker.request("svc.x", b"x", timeout_s=20.0)) for _ in range(2)]
    await taken.wait()
    await asker.flush()
    await responder.flush()
    # When the responder is closed
    await responder.close()
    # Then nobody waits for the deadline
    errors = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 5.0)
    assert [getattr(error, "code", None) for error in errors] == [503, 503]


async def test_an_api_error_carries_its_numbers(bus: Bus) -> None:
    # Given a server with JetStream and without streams
    await create_stream(bus)
    # When an unknown stream is described
    with pytest.raises(JetStreamApiError) as failure:
        await bus.api("STREAM.INFO.UNKNOWN")
    # Then the numbers tell what is wrong
    assert (failure.value.code, failure.value.err_code) == (404, 10059)


async def test_a_request_that_comes_as_the_last_handler_ends_is_not_forgotten(bus: Bus) -> None:
    # Given a responder with one handler, which has just done its work
    loop = asyncio.get_running_loop()
    inbox = "_INBOX.test.late"
    answers: list[bytes] = []
    bus.subscribe(inbox, lambda _subject, _reply, _headers, payload: answers.append(payload))

    async def handler(payload: bytes) -> bytes:
        if payload == b"first":
            # When the next request is read before the loop has noticed that the handler's task ended
            loop.call_soon(bus._services[0]._take, b"svc.one", inbox.encode(), b"", b"second")
        return payload

    bus.serve("svc.one", "q", handler, concurrency=1)
    await bus.flush()
    assert await bus.request("svc.one", b"first", timeout_s=2.0) == b"first"
    # Then it is answered too
    await eventually(lambda: answers == [b"second"], within_s=2.0)
