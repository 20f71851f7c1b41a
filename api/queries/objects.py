"""The parts that several statements share: a message and its quote as JSON columns.

Each fragment names the tables it expects in scope. ``me`` is always the asking user's row of ``thread_members``.
"""

from typing import Final, LiteralString

# The message that m answers, as the asking user may see it: of the same thread, not before their first one. A subquery,
# because as a join the planner may build it for the whole table first (measured: 360 ms instead of 1).
_QUOTE: Final[LiteralString] = """
    CASE WHEN m.reply_to IS NOT NULL AND m.deleted_at IS NULL THEN (
        SELECT json_build_object(
            'message_id', encode(uuid_send(q.message_id), 'hex'),
            'sender_id', q.sender_id,
            'body', CASE WHEN q.deleted_at IS NULL THEN q.body ELSE '' END,
            'deleted', q.deleted_at IS NOT NULL
        )
        FROM messages AS q
        WHERE q.message_id = m.reply_to AND q.seq >= me.visible_from AND q.thread_id =
"""

_BEFORE_QUOTE: Final[LiteralString] = """
    encode(uuid_send(m.message_id), 'hex') AS message_id,
    encode(uuid_send(m.thread_id), 'hex') AS thread_id,
    encode(uuid_send(m.client_msg_id), 'hex') AS client_msg_id,
    m.sender_id,
    m.kind,
    CASE WHEN m.deleted_at IS NULL THEN m.body ELSE '' END AS body,
    CASE WHEN m.deleted_at IS NULL THEN m.attachments ELSE '[]' END AS attachments,
    encode(uuid_send(m.reply_to), 'hex') AS reply_to,
"""

# Reactions and pins do not exist yet, so no message has any.
_AFTER_QUOTE: Final[LiteralString] = """
    CASE WHEN m.deleted_at IS NULL THEN m.metadata ELSE '{}' END AS metadata,
    to_char(m.sent_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS sent_at,
    to_char(m.edited_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS edited_at,
    to_char(m.deleted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS deleted_at,
    '[]'::json AS reactions,
    false AS pinned,
    m.seq,
    to_hex(m.seq) || suffix AS cursor
"""

# The columns of the object Message (protocol, section 3). In scope: m (messages), and suffix, the second half of every
# cursor of the thread.
MESSAGE_COLUMNS: Final[LiteralString] = (
    _BEFORE_QUOTE + _QUOTE + "m.thread_id) END AS quote," + _AFTER_QUOTE
)

# The same in a statement whose $1 is the thread: one partition is planned instead of sixteen (1 ms of planning).
MESSAGE_COLUMNS_IN_THREAD: Final[LiteralString] = (
    _BEFORE_QUOTE + _QUOTE + "$1) END AS quote," + _AFTER_QUOTE
)

QUOTE_IN_THREAD: Final[LiteralString] = _QUOTE + "$1) END AS quote"

# The columns of the object Participant. In scope: p (thread_members), u (users), r (receipts).
PARTICIPANT_COLUMNS: Final[LiteralString] = """
    p.user_id,
    u.name,
    u.avatar_url,
    p.role,
    to_char(p.joined_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS joined_at,
    coalesce(r.shown_seq, 0) AS read_seq,
    coalesce(r.delivered_seq, 0) AS delivered_seq,
    'unknown' AS presence
"""

PARTICIPANT_JOINS: Final[LiteralString] = """
    LEFT JOIN users AS u ON u.user_id = p.user_id
    LEFT JOIN receipts AS r ON r.thread_id = p.thread_id AND r.user_id = p.user_id
"""

# Visible messages of others above the own marker, without deleted and system ones. In scope: me, mine (own receipts,
# may be absent).
UNREAD_MESSAGES: Final[LiteralString] = """
    SELECT
    FROM messages AS n
    WHERE n.thread_id = me.thread_id
      AND n.seq > coalesce(mine.read_seq, 0) AND n.seq >= me.visible_from
      AND n.sender_id <> me.user_id AND n.kind = 'text' AND n.deleted_at IS NULL
"""

# To be continued with a limit and an alias: counting stops there, so that there is no counter that could drift.
COUNT_UNREAD: Final[LiteralString] = (
    "SELECT count(*) AS unread FROM (" + UNREAD_MESSAGES  # noqa: S608 - constants of this package only
)
