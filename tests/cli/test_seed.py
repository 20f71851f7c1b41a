"""The demo data as a plan: the same every time, for people who exist, within everybody's limits."""

from collections import Counter
from pathlib import Path

import pytest

from cli.addresses import Addresses, running_platform
from cli.people import BOTS, PEOPLE
from cli.seed import client_message_id, conversations_of
from shared.errors import ConfigurationError
from shared.identity import client_message_id as checked
from shared.settings import Settings


def test_the_same_number_gives_the_same_data_and_another_one_gives_other() -> None:
    assert list(conversations_of(1)) == list(conversations_of(1))
    assert list(conversations_of(1)) != list(conversations_of(2))


def test_two_creators_and_eight_clients_talk_in_a_few_hundred_messages() -> None:
    roles = Counter(person.role for person in PEOPLE.values())
    assert roles == {"creator": 2, "client": 8}
    conversations = list(conversations_of(1))
    assert 200 <= sum(len(item.lines) for item in conversations) <= 400
    assert {user for item in conversations for user in item.members} == set(PEOPLE)
    assert set(BOTS) < set(PEOPLE)


def test_only_members_speak() -> None:
    for conversation in conversations_of(1):
        assert {sender for sender, _ in conversation.lines} <= set(conversation.members)


def test_nobody_reaches_the_rate_limit_by_being_seeded() -> None:
    # Given what each person sends and each owner creates, all within one window
    counted: Counter[str] = Counter()
    for conversation in conversations_of(1):
        counted[conversation.members[0]] += 1
        counted.update(sender for sender, _ in conversation.lines)
    # Then a quarter of the limit is left for whoever tries the demo at once
    limit = Settings.model_fields["messaging_throttle_limit"].default
    assert max(counted.values()) <= limit * 3 / 4


def test_ids_are_stable_valid_and_distinct() -> None:
    made = [client_message_id(1, "studio", index, 1_790_000_000_000) for index in range(100)]
    assert made == [client_message_id(1, "studio", i, 1_790_000_000_000) for i in range(100)]
    assert len(set(made)) == 100
    assert all(checked(item) == item for item in made)


def edges_of(count: int) -> Addresses:
    return Addresses("http://api", [f"ws://edge-{number}" for number in range(count)])


def test_ava_and_ben_begin_at_different_edges_and_try_the_others_after() -> None:
    for count in (2, 3, 4):
        ava, ben = (edges_of(count).edges_for(user) for user in ("ava", "ben"))
        assert ava[0] != ben[0]
        assert sorted(ava) == sorted(edges_of(count).edges)


def test_an_edge_can_be_chosen_by_its_number() -> None:
    addresses = edges_of(4)
    assert addresses.edges_for("ava", edge=2)[0] == "ws://edge-2"
    with pytest.raises(ConfigurationError, match="0 to 3"):
        addresses.edges_for("ava", edge=4)


def test_without_a_running_platform_the_next_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\./run up"):
        running_platform(tmp_path)
