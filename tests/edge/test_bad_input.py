"""The bad-input table of the protocol: every row is answered as written, and nothing is stored."""

import asyncio
import json
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from shared.identity import new_id
from tests.edge.house import Client, Edge, House, uuid7_at


@pytest.fixture
async def edge(house: House) -> Edge:
    """One edge."""
    return await house.edge()


def command(thread_id: str, /, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a good message.send with some fields changed, or taken away by ``...``."""
    fields = {
        "type": "message.send",
        "ref": "r",
        "thread_id": thread_id,
        "client_msg_id": new_id(),
        "body": "hi",
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def nested(depth: int) -> Any:  # noqa: ANN401
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


BAD_FRAMES = ["not json", "", "{", "[]", "1", '"text"', "null", '{"a":NaN}', '{"a":Infinity}',
              '{"a":-Infinity}', '{"type":"ping"} {}', "{'type':'ping'}"]  # fmt: skip

INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({"type": ...}, "/type"),
    "type is a number": ({"type": 1}, "/type"),
    "no thread id": ({"thread_id": ...}, "/thread_id"),
    "thread id is null": ({"thread_id": None}, "/thread_id"),
    "thread id is a number": ({"thread_id": 7}, "/thread_id"),
    "no client id": ({"client_msg_id": ...}, "/client_msg_id"),
    "client id of version 4": ({"client_msg_id": "0" * 12 + "4" + "0" * 3 + "8" + "0" * 15}, "/client_msg_id"),
    "client id malformed": ({"client_msg_id": "x"}, "/client_msg_id"),
    "client id far ahead": ({"client_msg_id": uuid7_at(3_600)}, "/client_msg_id"),
    "no body": ({"body": ...}, "/body"),
    "body too long": ({"body": "x" * 4_001}, "/body"),
    "body empty": ({"body": ""}, "/body"),
    "body is a list": ({"body": []}, "/body"),
    "body with NUL": ({"body": "a\0b"}, "/body"),
    "body with a lone surrogate": ({"body": "a\ud800b"}, "/body"),
    "metadata too large": ({"metadata": {"a": "x" * 4_100}}, "/metadata"),
    "metadata is a list": ({"metadata": []}, "/metadata"),
    "number beyond 2^53": ({"metadata": {"n": 2**53 + 1}}, "/metadata/n"),
    "number beyond -2^53": ({"metadata": {"n": -(2**53) - 1}}, "/metadata/n"),
    "NUL in metadata": ({"metadata": {"n": ["\0"]}}, "/metadata/n/0"),
    "NUL in a key": ({"metadata": {"a\0": 1}}, "/metadata"),
    "NUL in an unknown field": ({"other": "\0"}, "/other"),
    "too many attachments": ({"attachments": [{"clip_id": new_id()}] * 11}, "/attachments"),
    "attachment without id": ({"attachments": [{}]}, "/attachments/0"),
    "attachment with two ids": ({"attachments": [{"clip_id": "a", "upload_id": "b"}]}, "/attachments/0"),
    "reply_to is a number": ({"reply_to": 1}, "/reply_to"),
}  # fmt: skip


async def answers(house: House, edge: Edge, frames: list[str]) -> list[dict[str, Any]]:
    """Send each frame to a session of its own, so that none is closed for the others' sake."""
    errors = []
    for text in frames:
        client = await house.client(edge, "ava")
        await client.say_raw(text)
        errors.append(await client.next("error"))
    return errors


async def test_what_is_no_json_object_is_a_bad_frame(house: House, edge: Edge) -> None:
    for text, error in zip(BAD_FRAMES, await answers(house, edge, BAD_FRAMES), strict=True):
        assert error["code"] == "bad_frame", text
        assert error["retryable"] is False
        assert "ref" not in error


async def test_an_unknown_type_is_named_so(house: House, edge: Edge) -> None:
    (error,) = await answers(house, edge, ['{"type":"message.sent","ref":"r"}'])
    assert (error["code"], error["ref"]) == ("unknown_type", "r")


async def test_everything_invalid_is_named_with_its_path_and_nothing_is_stored(
    house: House, edge: Edge
) -> None:
    thread_id = await house.thread("ava")
    frames = [json.dumps(command(thread_id, **changes)) for changes, _ in INVALID.values()]
    for (name, (_, path)), error in zip(
        INVALID.items(), await answers(house, edge, frames), strict=True
    ):
        assert error["code"] == "invalid", name
        assert [detail["path"] for detail in error["details"]] == [path], (name, error)
        assert error["ref"] == "r", name
    assert await house.stored() == 0


async def test_numbers_and_nesting_that_python_reads_and_postgresql_does_not(
    house: House, edge: Edge
) -> None:
    thread_id = await house.thread("ava")
    base = json.dumps(command(thread_id))[:-1]
    frames = [
        base + ',"metadata":{"n":1e400}}',
        base + ',"metadata":{"n":' + "9" * 5_000 + "}}",
        json.dumps(command(thread_id, metadata={"n": nested(7)})),
        base + ',"metadata":' + "[" * 20_000 + "]" * 20_000 + "}",
    ]
    for text, error in zip(frames, await answers(house, edge, frames), strict=True):
        assert (error["code"], error["ref"]) == ("invalid", "r"), text[:200]
    # And eight levels, the frame being the first, are fine
    ava = await house.client(edge, "ava")
    ack = await ava.send(thread_id, metadata={"n": nested(6)})
    assert ack["type"] == "ack", ack
    assert await house.stored() == 1


async def test_ref_is_echoed_only_when_it_is_a_valid_one(house: House, edge: Edge) -> None:
    frames = [
        '{"type":"nothing","ref":"%s"}' % ("x" * 64),
        '{"type":"nothing","ref":"%s"}' % ("x" * 65),
        '{"type":"nothing","ref":5}',
        '{"ref":"r"}',
    ]
    errors = await answers(house, edge, frames)
    assert [error.get("ref") for error in errors] == ["x" * 64, None, None, "r"]


FOREIGN_IDS = ["*", ">", "a.b", "", "x" * 300, "thread", new_id(), "0" * 31, "é" * 32, " "]


async def test_malformed_unknown_and_foreign_threads_are_not_found_in_the_same_words(
    house: House, edge: Edge
) -> None:
    # Given a thread of somebody else, one that does not exist, and ids that would be wildcards
    foreign = await house.thread("ben")
    client = await house.client(edge, "ava")
    said = set()
    for thread_id in [foreign, *FOREIGN_IDS]:
        for type_, fields in (
            ("message.send", {"body": "hi", "client_msg_id": new_id()}),
            ("thread.subscribe", {}),
            ("thread.subscribe", {"after": "5.deadbeef"}),
            ("typing.start", {}),
            ("typing.stop", {}),
        ):
            error = await client.ask(type_, thread_id=thread_id, **fields)
            error.pop("ref")
            said.add(json.dumps(error, sort_keys=True))
            await asyncio.sleep(0.04)  # Not faster than thirty commands a second.
    # Then all of them hear the same words
    assert len(said) == 1
    assert json.loads(said.pop())["code"] == "not_found"
    # And nothing reached the log, nor any wildcard NATS
    assert await house.stored() == 0


async def test_attachments_and_answers_to_nothing_that_is_visible(house: House) -> None:
    edge, without = await house.edge(), await house.edge(messaging_enable_clips=False)
    thread_id = await house.thread("ava")
    ava = await house.client(edge, "ava")
    for attachment in ({"clip_id": new_id()}, {"upload_id": "rubbish"}):
        assert (await ava.send(thread_id, attachments=[attachment]))["code"] == "not_found"
    assert (await ava.send(thread_id, reply_to="rubbish"))["code"] == "not_found"
    ava = await house.client(without, "ava")
    refused = await ava.send(thread_id, attachments=[{"clip_id": new_id()}])
    assert refused["code"] == "feature_disabled"
    assert await house.stored() == 0
    # And an answer to a message of which only the form can be checked is taken
    assert (await ava.send(thread_id, reply_to=new_id()))["type"] == "ack"


async def test_the_third_bad_frame_is_answered_and_then_closed_with_1008(
    house: House, edge: Edge
) -> None:
    thread_id = await house.thread("ava")
    client = await house.client(edge, "ava")
    await client.say_raw("not json")
    await client.say(type="nothing")
    await client.say(**command(thread_id, client_msg_id="x"))
    await client.say(**command(thread_id))
    codes = [(await client.next("error"))["code"] for _ in range(3)]
    assert codes == ["bad_frame", "unknown_type", "invalid"]
    assert await client.closed() == 1008
    assert await house.stored() == 0
    await house.eventually(lambda: _is_gone(edge))
    assert await edge.metric('messaging_edge_closes_total{code="1008"}') == 1


async def close_code(client: Client, frames: list[Frame]) -> int:
    """Write frames as they are, masked, and return the close code that comes back."""
    data = b"".join(frame.serialize(mask=True) for frame in frames)
    client.socket.transport.write(data)
    return await client.closed()


async def test_frames_that_the_protocol_forbids_close_with_the_code_of_rfc_6455(
    house: House, edge: Edge
) -> None:
    text, binary, more = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
    cases: dict[str, tuple[list[Frame], int]] = {
        "binary": ([Frame(binary, b"{}")], 1003),
        "a binary fragment": ([Frame(binary, b"{", fin=False), Frame(more, b"}")], 1003),
        "no utf-8": ([Frame(text, b'{"type":"\xff"}')], 1007),
        "half a character": ([Frame(text, b"\xc3", fin=False), Frame(more, b"x")], 1007),
        "over 64 KiB": ([Frame(text, b"x" * 65_537)], 1009),
        "fragments over 64 KiB": (
            [Frame(text, b"x" * 40_000, fin=False), Frame(more, b"x" * 40_000)],
            1009,
        ),
        "endless empty fragments": (
            [Frame(text, b"", fin=False), *[Frame(more, b"", fin=False)] * 2_000],
            1009,
        ),
        "a continuation of nothing": ([Frame(more, b"x")], 1002),
    }
    for name, (frames, code) in cases.items():
        client = await house.client(edge, "ava")
        assert await close_code(client, frames) == code, name
    await house.eventually(lambda: _is_gone(edge))
    assert await edge.metric('messaging_edge_closes_total{code="1009"}') == 3


async def test_an_unmasked_frame_closes_with_1002(house: House, edge: Edge) -> None:
    client = await house.client(edge, "ava")
    client.socket.transport.write(b"\x81\x02{}")
    assert await client.closed() == 1002


async def test_a_frame_of_exactly_64_kib_and_a_fragmented_one_are_taken(
    house: House, edge: Edge
) -> None:
    client = await house.client(edge, "ava")
    ping = json.dumps({"type": "ping", "ref": "1", "pad": ""})
    full = ping[:-2] + "x" * (65_536 - len(ping)) + '"}'
    assert len(full) == 65_536
    await client.say_raw(full)
    assert (await client.next("pong"))["ref"] == "1"
    await client.socket.send(['{"type":"pi', 'ng","ref"', ':"2"}'])
    assert (await client.next("pong"))["ref"] == "2"


async def test_a_peers_close_and_pings_are_answered(house: House, edge: Edge) -> None:
    client = await house.client(edge, "ava")
    pong = await client.socket.ping(b"payload")
    async with asyncio.timeout(5):
        await pong
    await client.socket.close(1000, "bye")
    assert client.socket.close_code == 1000
    await house.eventually(lambda: _is_gone(edge))


async def _is_gone(edge: Edge) -> bool:
    return await edge.metric("messaging_edge_connections") == 0
