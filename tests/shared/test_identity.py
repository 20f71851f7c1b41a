"""Ids: what is one, what follows from the triple, and when two contents are the same."""

import re
import uuid

import hypothesis.strategies as st
import pytest
from hypothesis import given

from shared.errors import InvalidIdError
from shared.identity import (
    ClientMessageId,
    ThreadId,
    UserId,
    canonical_id,
    client_message_id,
    content_digest,
    derived_id,
    message_id,
    new_id,
    now_ms,
    time_ms_of,
    user_id,
)

THREAD = ThreadId("0190a0b1c2d37e4f8a9b0c1d2e3f4a5b")
OTHER_THREAD = ThreadId("0190a0b1c2d37e4f8a9b0c1d2e3f4a5c")
CLIENT_ID = ClientMessageId("0190a0b1c2d37e4f8a9b0c1d2e3f4a5b")

user_ids = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True).map(UserId)
hex_ids = st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
client_ids = st.from_regex(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", fullmatch=True).map(
    ClientMessageId
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_a_new_id_is_a_uuid7_of_now() -> None:
    before, made, after = now_ms(), new_id(), now_ms()
    assert client_message_id(made) == made
    assert before <= time_ms_of(made) <= after


def test_new_ids_never_repeat() -> None:
    assert len({new_id() for _ in range(10_000)}) == 10_000


@given(st.uuids())
def test_an_id_may_carry_hyphens_and_capitals(value: uuid.UUID) -> None:
    spellings = [str(value), str(value).upper(), value.hex, value.hex.upper()]
    assert {canonical_id(spelling) for spelling in spellings} == {value.hex}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        ">",
        "0190a0b1c2d37e4f8a9b0c1d2e3f4a5",
        "0190a0b1c2d37e4f8a9b0c1d2e3f4a5b0",
        "0190a0b1c2d37e4f8a9b0c1d2e3f4a5b\n",
        " 0190a0b1c2d37e4f8a9b0c1d2e3f4a5b",
        "0190a0b1-c2d37e4f8a9b0c1d2e3f4a5b",
        "0190a0b1.c2d37e4f8a9b0c1d2e3f4a5b",
        "g190a0b1c2d37e4f8a9b0c1d2e3f4a5b",
        "\u0660190a0b1c2d37e4f8a9b0c1d2e3f4a5b",
        "{0190a0b1-c2d3-7e4f-8a9b-0c1d2e3f4a5b}",
        None,
        5,
        ["0190a0b1c2d37e4f8a9b0c1d2e3f4a5b"],
    ],
)
def test_anything_else_is_no_id(text: object) -> None:
    with pytest.raises(InvalidIdError):
        canonical_id(text)


@given(st.text())
def test_an_id_is_accepted_only_in_its_two_forms(text: str) -> None:
    try:
        canonical = canonical_id(text)
    except InvalidIdError:
        return
    assert re.fullmatch(r"[0-9a-f]{32}", canonical)


@given(user_ids)
def test_a_user_id_is_kept_as_it_is(text: UserId) -> None:
    assert user_id(text) == text


@pytest.mark.parametrize("text", ["", "a" * 65, "a.b", "a b", "*", ">", "a\n", "é", "a:b", 7, None])
def test_an_unsafe_user_id_is_refused(text: object) -> None:
    with pytest.raises(InvalidIdError):
        user_id(text)


@pytest.mark.parametrize("version", [version for version in "0123456789abcdef" if version != "7"])
def test_a_client_message_id_of_another_version_is_refused(version: str) -> None:
    with pytest.raises(InvalidIdError):
        client_message_id(f"{CLIENT_ID[:12]}{version}{CLIENT_ID[13:]}")


def test_a_client_message_id_of_another_variant_is_refused() -> None:
    with pytest.raises(InvalidIdError):
        client_message_id(f"{CLIENT_ID[:16]}c{CLIENT_ID[17:]}")


@given(hex_ids.map(ThreadId), user_ids, client_ids)
def test_a_message_id_is_a_pure_function_of_the_triple(
    thread: ThreadId, sender: UserId, client_id: ClientMessageId
) -> None:
    made = message_id(thread, sender, client_id)
    parsed = uuid.UUID(hex=made)
    assert made == message_id(thread, sender, client_id)
    assert (parsed.version, parsed.variant) == (8, uuid.RFC_4122)
    assert time_ms_of(made) == time_ms_of(client_id)


def test_the_message_id_of_a_known_triple_never_changes() -> None:
    # A change here would break every retry of a message that is already stored.
    assert message_id(THREAD, UserId("ava"), CLIENT_ID) == "0190a0b1c2d38901bb9e52fdd3c94ea2"


@given(client_ids, client_ids)
def test_message_ids_sort_by_time(one: ClientMessageId, other: ClientMessageId) -> None:
    older, newer = sorted([one, other], key=time_ms_of)
    if time_ms_of(older) < time_ms_of(newer):
        assert message_id(THREAD, UserId("ava"), older) < message_id(THREAD, UserId("ben"), newer)


def test_each_part_of_the_triple_changes_the_message_id() -> None:
    made = {
        message_id(THREAD, UserId("ava"), CLIENT_ID),
        message_id(OTHER_THREAD, UserId("ava"), CLIENT_ID),
        message_id(THREAD, UserId("av"), CLIENT_ID),
        message_id(THREAD, UserId("ava"), ClientMessageId(CLIENT_ID[:-1] + "0")),
    }
    assert len(made) == 4


@given(st.text(max_size=50), st.dictionaries(st.text(max_size=4), json_values, max_size=4))
def test_the_order_of_keys_does_not_change_a_content(
    body: str, metadata: dict[str, object]
) -> None:
    turned = dict(reversed(metadata.items()))
    assert content_digest(body, [], None, metadata) == content_digest(body, [], None, turned)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"n": 1}, {"n": 1.0}),
        ({"n": 0}, {"n": -0.0}),
        ({"a": {"n": [2.0]}}, {"a": {"n": [2]}}),
        ({"n": 1.5}, {"n": 1.50}),
    ],
)
def test_equal_json_values_are_the_same_content(
    one: dict[str, object], other: dict[str, object]
) -> None:
    assert content_digest("hi", [], None, one) == content_digest("hi", [], None, other)


def test_every_difference_is_another_content() -> None:
    contents: list[tuple[str, list[str], str | None, dict[str, object]]] = [
        ("hi", [], None, {}),
        ("hi ", [], None, {}),
        ("hi", ["a"], None, {}),
        ("hi", ["b"], None, {}),
        ("hi", ["a", "b"], None, {}),
        ("hi", ["b", "a"], None, {}),
        ("hi", [], "a", {}),
        ("hi", [], None, {"n": 1}),
        ("hi", [], None, {"n": True}),
        ("hi", [], None, {"n": "1"}),
        ("hi", [], None, {"n": None}),
        ("hi", [], None, {"n": 1.5}),
        ("hi", [], None, {"n": []}),
        ("hi", [], None, {"n": {}}),
    ]
    assert len({content_digest(*content) for content in contents}) == len(contents)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_a_derived_id_is_a_uuid_of_version_8_and_the_same_every_time(parts: list[str]) -> None:
    derived = uuid.UUID(derived_id(*parts))
    assert (derived.version, derived.variant) == (8, uuid.RFC_4122)
    assert derived_id(*parts) == derived.hex


def test_derived_ids_tell_where_one_part_ends() -> None:
    assert len({derived_id("a", "bc"), derived_id("ab", "c"), derived_id("abc")}) == 3
