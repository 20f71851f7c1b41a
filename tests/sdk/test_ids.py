"""Client message ids: UUIDv7 on the server's clock, sorted as made."""

import random
import re
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from lilith_client.ids import MessageIds, unix_ms_of, uuid7

UUID7 = re.compile(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}")


@given(st.integers(0, 2**48 - 1), st.integers(0, 0xFFF), st.integers(0, 2**62 - 1))
def test_every_made_id_is_a_uuid7_that_begins_with_its_time(
    unix_ms: int, counter: int, entropy: int
) -> None:
    made = uuid7(unix_ms, counter, entropy)
    assert UUID7.fullmatch(made)
    assert int(made[:12], 16) == unix_ms


def test_ids_follow_the_servers_clock_and_not_a_wrong_local_one() -> None:
    # Given a local clock that is a day behind
    ids = MessageIds(random.Random(1))
    ids.set_clock(server_ms=86_400_000 + 5_000, local_ms=5_000)
    # When an id is made a second later
    made = ids.new(6_000)
    # Then it carries the server's time
    assert int(made[:12], 16) == 86_400_000 + 6_000


def test_ids_made_in_one_millisecond_sort_in_the_order_of_making() -> None:
    ids = MessageIds(random.Random(1))
    made = [ids.new(1_000) for _ in range(10_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_a_clock_that_is_corrected_backwards_makes_no_ids_of_the_future() -> None:
    # Given ids made while the local clock was an hour ahead
    ids = MessageIds(random.Random(1))
    ids.new(3_600_000)
    # When hello tells the server's time
    ids.set_clock(server_ms=1_000, local_ms=3_600_000)
    # Then the next id is not an hour ahead any more
    assert int(ids.new(3_600_001)[:12], 16) <= 1_002


@given(st.integers(0, 4_000_000_000_000))
def test_a_time_of_the_protocol_is_read_to_the_millisecond(unix_ms: int) -> None:
    text = datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
    assert unix_ms_of(text.replace("+00:00", "Z")) == unix_ms
