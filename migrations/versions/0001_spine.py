"""The spine: threads, members, users, messages, receipts, cursors, outboxes.

Every table has exactly one writing service, named in a comment of the database; ``tests/migrations`` holds it.
Ids are ``uuid`` (16 bytes; 32 hex digits outside), user ids text, positions ``bigint``. No foreign keys between tables
of different writers: the log may be ahead of the api's tables or behind them.

``downgrade`` drops everything, history included.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Hash partitions let vacuum, reindex and later Citus work on a sixteenth; each thread lives in one of them.
_PARTITIONS = 16

_TABLES = (
    "idempotency_keys",
    "analytics_event_counts",
    "api_outbox",
    "persister_outbox",
    "dead_letters",
    "stream_generations",
    "stream_cursors",
    "receipts",
    "thread_tails",
    "thread_events",
    "messages",
    "users",
    "thread_members",
    "threads",
)


def upgrade() -> None:
    """Make all tables."""
    _conversations()
    _messages()
    _thread_states()
    _positions()
    _outboxes()
    _others()


def downgrade() -> None:
    """Drop all tables."""
    op.execute(f"DROP TABLE {', '.join(_TABLES)}")


def _conversations() -> None:
    op.execute("""
    CREATE TABLE threads (
        thread_id      uuid        PRIMARY KEY,
        kind           text        NOT NULL CHECK (kind IN ('direct', 'group', 'broadcast')),
        title          text,
        metadata       jsonb       NOT NULL DEFAULT '{}',
        owner_id       text        NOT NULL,
        history        text        NOT NULL CHECK (history IN ('all', 'joined')),
        -- The sorted pair of a direct thread, joined by ':' (no user id has one): one thread per pair.
        direct_key     text        UNIQUE,
        revision       bigint      NOT NULL DEFAULT 1,
        created_at     timestamptz NOT NULL DEFAULT now(),
        archived_at    timestamptz,
        archive_reason text        CHECK (archive_reason IN ('user', 'inactivity', 'deactivation')),
        CHECK ((kind = 'direct') = (direct_key IS NOT NULL)),
        CHECK ((archived_at IS NULL) = (archive_reason IS NULL))
    )
    """)
    op.execute("COMMENT ON TABLE threads IS 'writer: api'")
    op.execute("""
    CREATE TABLE thread_members (
        thread_id    uuid        NOT NULL REFERENCES threads,
        user_id      text        NOT NULL,
        role         text        NOT NULL CHECK (role IN ('owner', 'admin', 'member')),
        joined_at    timestamptz NOT NULL DEFAULT now(),
        -- Events with a seq below it are not shown to this member; 0 shows all.
        visible_from bigint      NOT NULL DEFAULT 0,
        removed_at   timestamptz,
        PRIMARY KEY (thread_id, user_id)
    )
    """)
    op.execute("COMMENT ON TABLE thread_members IS 'writer: api'")
    op.execute(
        "CREATE INDEX thread_members_of_user ON thread_members (user_id) WHERE removed_at IS NULL"
    )
    op.execute("""
    CREATE TABLE users (
        user_id    text        PRIMARY KEY,
        name       text,
        avatar_url text,
        role       text        NOT NULL DEFAULT 'client' CHECK (role IN ('client', 'creator', 'admin', 'service')),
        settings   jsonb       NOT NULL DEFAULT '{}',
        revision   bigint      NOT NULL DEFAULT 1,
        seen_at    timestamptz NOT NULL DEFAULT now()
    )
    """)
    op.execute("COMMENT ON TABLE users IS 'writer: api'")


def _messages() -> None:
    # message_id is a function of (thread, sender, client_msg_id), so its uniqueness is the triple's.
    op.execute("""
    CREATE TABLE messages (
        thread_id      uuid        NOT NULL,
        seq            bigint      NOT NULL,
        message_id     uuid        NOT NULL,
        client_msg_id  uuid        NOT NULL,
        sender_id      text        NOT NULL,
        kind           text        NOT NULL CHECK (kind IN ('text', 'system')),
        body           text        NOT NULL,
        attachments    jsonb       NOT NULL,
        reply_to       uuid,
        metadata       jsonb       NOT NULL,
        sent_at        timestamptz NOT NULL,
        edited_at      timestamptz,
        deleted_at     timestamptz,
        -- The seq of the last event that changed the row; the row's own while it is new.
        changed_seq    bigint      NOT NULL,
        content_digest bytea       NOT NULL,
        -- The transaction of the last change: a reader that gets its snapshot's xmin back misses nothing.
        changed_xid    xid8        NOT NULL DEFAULT pg_current_xact_id(),
        PRIMARY KEY (thread_id, seq),
        UNIQUE (message_id, thread_id)
    ) PARTITION BY HASH (thread_id)
    """)
    op.execute("COMMENT ON TABLE messages IS 'writer: persister'")
    for number in range(_PARTITIONS):
        op.execute(f"""
        CREATE TABLE messages_{number:02d} PARTITION OF messages
        FOR VALUES WITH (MODULUS {_PARTITIONS}, REMAINDER {number})
        """)
    # Only rows that were changed after they were new: inserting costs a tenth less without an entry for each. "All
    # changes above a cursor" are the rows with seq above it, and these.
    op.execute("""
    CREATE INDEX messages_changed ON messages (thread_id, changed_seq) WHERE changed_seq > seq
    """)
    op.execute("""
    CREATE TABLE thread_events (
        thread_id uuid        NOT NULL,
        seq       bigint      NOT NULL,
        event_id  uuid        NOT NULL,
        type      text        NOT NULL,
        payload   jsonb       NOT NULL,
        at        timestamptz NOT NULL,
        PRIMARY KEY (thread_id, seq),
        UNIQUE (event_id, thread_id)
    )
    """)
    op.execute("COMMENT ON TABLE thread_events IS 'writer: persister'")


def _thread_states() -> None:
    # fillfactor: every message updates its thread's row in place, without touching an index.
    op.execute("""
    CREATE TABLE thread_tails (
        thread_id        uuid        PRIMARY KEY,
        last_seq         bigint      NOT NULL,
        last_message_seq bigint      NOT NULL,
        last_activity_at timestamptz NOT NULL,
        changed_xid      xid8        NOT NULL DEFAULT pg_current_xact_id()
    ) WITH (fillfactor = 70)
    """)
    op.execute("COMMENT ON TABLE thread_tails IS 'writer: persister'")
    op.execute("""
    CREATE TABLE receipts (
        thread_id     uuid        NOT NULL,
        user_id       text        NOT NULL,
        read_seq      bigint      NOT NULL DEFAULT 0,
        delivered_seq bigint      NOT NULL DEFAULT 0,
        read_at       timestamptz,
        PRIMARY KEY (thread_id, user_id)
    ) WITH (fillfactor = 70)
    """)
    op.execute("COMMENT ON TABLE receipts IS 'writer: persister'")


def _positions() -> None:
    op.execute("""
    CREATE TABLE stream_cursors (
        stream   text   NOT NULL,
        consumer text   NOT NULL,
        last_seq bigint NOT NULL,
        PRIMARY KEY (stream, consumer)
    ) WITH (fillfactor = 10)
    """)
    op.execute("COMMENT ON TABLE stream_cursors IS 'writer: each consumer its own rows'")
    op.execute("""
    CREATE TABLE stream_generations (
        stream     text        PRIMARY KEY,
        generation integer     NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """)
    op.execute("COMMENT ON TABLE stream_generations IS 'writer: provision'")
    op.execute("""
    CREATE TABLE dead_letters (
        id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        stream   text        NOT NULL,
        consumer text        NOT NULL,
        seq      bigint      NOT NULL,
        subject  text        NOT NULL,
        payload  bytea       NOT NULL,
        error    text        NOT NULL,
        at       timestamptz NOT NULL DEFAULT now(),
        UNIQUE (stream, consumer, seq)
    )
    """)
    op.execute("COMMENT ON TABLE dead_letters IS 'writer: each consumer its own rows'")


def _outboxes() -> None:
    # A queue by deletion: vacuum often, or the index's left edge fills with dead entries.
    for service in ("persister", "api"):
        op.execute(f"""
        CREATE TABLE {service}_outbox (
            id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            kind       text        NOT NULL,
            subject    text        NOT NULL,
            message_id text,
            payload    bytea       NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)
        """)
        op.execute(f"COMMENT ON TABLE {service}_outbox IS 'writer: {service}'")


def _others() -> None:
    op.execute("""
    CREATE TABLE analytics_event_counts (
        type  text        NOT NULL,
        hour  timestamptz NOT NULL,
        count bigint      NOT NULL,
        PRIMARY KEY (type, hour)
    )
    """)
    op.execute("COMMENT ON TABLE analytics_event_counts IS 'writer: analytics'")
    op.execute("""
    CREATE TABLE idempotency_keys (
        user_id     text        NOT NULL,
        route       text        NOT NULL,
        key         text        NOT NULL,
        body_digest bytea       NOT NULL,
        -- The answer, once there is one; until then the first request is running.
        status      smallint,
        location    text,
        response    bytea,
        created_at  timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (user_id, route, key)
    )
    """)
    op.execute("COMMENT ON TABLE idempotency_keys IS 'writer: api'")
    op.execute("CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at)")
