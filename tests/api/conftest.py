"""One api per test, on a fabric of its own."""

from collections.abc import AsyncIterator

import pytest

from tests.api.support import Api, running_api
from tests.support.fabric import Fabric


@pytest.fixture(name="api")
async def api_fixture(fabric: Fabric) -> AsyncIterator[Api]:
    """A running api without a rate limit."""
    async with running_api(fabric) as api:
        yield api
