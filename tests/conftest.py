"""Makes the real servers of ``tests.support.servers`` available to every test."""

pytest_plugins = ["tests.support.servers", "tests.support.fabric"]
