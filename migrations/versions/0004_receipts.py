"""Edits and read receipts: the versions of a message, and who moved a read marker by what.

A read marker has two sources that arrive independently: the member's own messages (through the log) and their cursor
(through ``RCPT``). Each keeps its own columns, so that the marker is the same in whatever order they are folded.

``downgrade`` forgets old versions of edited messages.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of versions and the columns of receipts."""
    op.execute("""
    CREATE TABLE message_edits (
        thread_id  uuid        NOT NULL,
        message_id uuid        NOT NULL,
        -- 1 is the message as it was sent; there is no row of a message that was never edited.
        version    integer     NOT NULL,
        -- The event that made the version; null for the first.
        event_id   uuid,
        body       text        NOT NULL,
        edited_at  timestamptz NOT NULL,
        editor_id  text        NOT NULL,
        PRIMARY KEY (thread_id, message_id, version),
        UNIQUE (event_id, thread_id)
    )
    """)
    op.execute("COMMENT ON TABLE message_edits IS 'writer: persister'")
    op.execute("""
    ALTER TABLE receipts
        -- The newest message of their own: it marks everything up to it as read.
        ADD COLUMN sent_seq    bigint NOT NULL DEFAULT 0,
        -- Where their cursor was put, and up to where own messages do not count: the thread's end when the cursor was
        -- moved back.
        ADD COLUMN marked_seq  bigint NOT NULL DEFAULT 0,
        ADD COLUMN marked_over bigint NOT NULL DEFAULT 0,
        -- What others are shown; read_seq, the member's own, may be moved back behind it.
        ADD COLUMN shown_seq   bigint NOT NULL DEFAULT 0,
        ADD COLUMN changed_xid xid8   NOT NULL DEFAULT pg_current_xact_id()
    """)
    # Until now only own messages moved a marker.
    op.execute("UPDATE receipts SET sent_seq = read_seq, shown_seq = read_seq")


def downgrade() -> None:
    """Drop them again."""
    op.execute("DROP TABLE message_edits")
    op.execute("""
    ALTER TABLE receipts
        DROP COLUMN sent_seq, DROP COLUMN marked_seq, DROP COLUMN marked_over,
        DROP COLUMN shown_seq, DROP COLUMN changed_xid
    """)
