"""The platform that the acceptance tests share, and one for tests that stop it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.platform import Platform


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    """A running platform with two edges and no rate limit. Tests use users of their own."""
    with tempfile.TemporaryDirectory(prefix="lilith-") as name:
        Path(name).chmod(0o755)
        running = Platform(Path(name) / "data", {"MESSAGING_THROTTLE_LIMIT": "0"})
        running.start()
        try:
            yield running
        finally:
            running.close()


@pytest.fixture
def own_platform() -> Iterator[Platform]:
    """A platform of this test alone, with the default settings; the test starts it."""
    with tempfile.TemporaryDirectory(prefix="lilith-") as name:
        Path(name).chmod(0o755)
        made = Platform(Path(name) / "data", {})
        try:
            yield made
        finally:
            made.close()
