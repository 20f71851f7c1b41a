"""The servers of the embedded default: PostgreSQL and nats-server from PyPI wheels, run by us.

Nothing here is used in production, where ``DATABASE_URL`` and ``NATS_URL`` name real servers.
"""
