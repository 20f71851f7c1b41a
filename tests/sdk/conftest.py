"""A scripted platform, and a client whose waits are short."""

import random
from collections.abc import AsyncIterator

import pytest

from tests.sdk.scripted import Api, Edge, Fabric, platform


@pytest.fixture
def quick_reconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw every wait from the first tenth of its range."""
    draw = random.Random.uniform
    monkeypatch.setattr(
        random.Random, "uniform", lambda self, a, b: draw(self, a, a + (b - a) / 10)
    )


@pytest.fixture
async def one_edge(quick_reconnects: None) -> AsyncIterator[tuple[Fabric, Edge, Api]]:
    del quick_reconnects
    async with platform() as (fabric, [edge], api):
        yield fabric, edge, api
