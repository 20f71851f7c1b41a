"""${message}.

What is new, and why. Say here what ``downgrade`` loses.
"""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add."""
    op.execute("""
    """)


def downgrade() -> None:
    """Take away what ``upgrade`` added."""
    op.execute("""
    """)
