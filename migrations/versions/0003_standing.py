"""Bans, deactivations and revoked tokens; and the log of what administrators and users did about them.

``downgrade`` forgets every ban.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make both tables."""
    op.execute("""
    CREATE TABLE standings (
        user_id      text        PRIMARY KEY,
        revision     bigint      NOT NULL DEFAULT 1,
        -- Null: no ban; the year 9999: for ever.
        banned_until timestamptz,
        banned_at    timestamptz,
        banned_by    text,
        reason       text,
        -- Unix seconds: tokens issued before are refused.
        min_iat      bigint      NOT NULL DEFAULT 0,
        deactivated  boolean     NOT NULL DEFAULT false,
        changed_at   timestamptz NOT NULL DEFAULT now()
    )
    """)
    op.execute("COMMENT ON TABLE standings IS 'writer: api'")
    op.execute("""
    CREATE TABLE audit_log (
        id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        at       timestamptz NOT NULL DEFAULT now(),
        actor_id text        NOT NULL,
        action   text        NOT NULL,
        target   text        NOT NULL,
        details  jsonb       NOT NULL DEFAULT '{}'
    )
    """)
    op.execute("COMMENT ON TABLE audit_log IS 'writer: api'")
    op.execute("CREATE INDEX audit_log_target ON audit_log (target, id)")


def downgrade() -> None:
    """Drop both tables."""
    op.execute("DROP TABLE audit_log, standings")
