"""What an absent client asks for: which of a user's memberships changed since.

Rows that ``GET /api/sync`` reads carry the transaction that changed them last (``changed_xid``): a reader that hands
back the oldest transaction still running at its last read misses nothing, whatever commits in which order.

``downgrade`` loses nothing but these stamps.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Stamp memberships, and find those that ended."""
    op.execute("""
    ALTER TABLE thread_members ADD COLUMN changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id()
    """)
    # The present ones of a user have an index already; the ended ones are asked for since a transaction.
    op.execute("""
    CREATE INDEX thread_members_ended ON thread_members (user_id, changed_xid) WHERE removed_at IS NOT NULL
    """)


def downgrade() -> None:
    """Drop them again."""
    op.execute("DROP INDEX thread_members_ended")
    op.execute("ALTER TABLE thread_members DROP COLUMN changed_xid")
