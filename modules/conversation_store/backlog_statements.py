"""The SQL of what is kept for search by meaning; see `backlog_models` for its tables, `backlog` for what runs it.

Taking messages from the outbox and acknowledging them is the outbox's own (`modules.storage.outbox_statements`).
"""

from __future__ import annotations

from typing import Any, List

from sqlalchemy import BigInteger, Double, String, Text, bindparam, literal_column, text
from sqlalchemy.dialects.postgresql import ARRAY

from modules.conversation_store.backlog_models import TRIGGER_DDL, TRIGGER_DROP_DDL
from modules.conversation_store.models import MessageRow
from modules.conversation_store.search_ddl import MAX_SEARCH_CHARACTERS
from modules.storage.columns import NOW_SQLITE, FreeText
from modules.storage.outbox_queue import EMBEDDING_PREFIX
from modules.storage.outbox_statements import STAGE_ROWS
from modules.storage.statements import Statement

__all__ = [
    "ANY_GIVEN",
    "ANY_INDEX",
    "ANY_MESSAGE",
    "ANY_MESSAGE_OF",
    "DROPS",
    "FILL",
    "FILLED",
    "FILL_LAST",
    "FORGET_INDEX",
    "INDEX",
    "LOCK",
    "NEXT_TENANT",
    "PENDING_ALL",
    "PENDING_ONE",
    "PROGRESS",
    "REGISTER",
    "TEXTS",
    "TRIGGERS",
    "TRIGGERS_THERE",
]

_NAME = bindparam("collection", type_=String())
_KEY_COLUMNS = {"tenant_id": String, "conversation_id": String, "sequence": BigInteger}

TRIGGERS_THERE = Statement(
    sqlite=text(
        "SELECT 1 AS n FROM sqlite_master WHERE type = 'trigger' AND name = 'atlas_embedding_add'"
    ).columns(n=BigInteger),
    postgresql=text(
        "SELECT 1 AS n FROM pg_trigger WHERE tgrelid = 'atlas_messages'::regclass AND tgname = 'atlas_embedding_add'"
    ).columns(n=BigInteger),
)
TRIGGERS = {name: [Statement(text(sql)) for sql in texts] for name, texts in TRIGGER_DDL.items()}
DROPS = {name: [Statement(text(sql)) for sql in texts] for name, texts in TRIGGER_DROP_DDL.items()}
# Who appended before the index was there must have committed before the old messages are gone through.
LOCK = Statement(postgresql=text("LOCK TABLE atlas_messages IN SHARE ROW EXCLUSIVE MODE"))

INDEX = Statement(
    text(
        "SELECT filled, filled_tenant_id, filled_conversation_id, filled_sequence FROM atlas_embedding_indexes"
        " WHERE collection = :collection"
    )
    .bindparams(_NAME)
    .columns(filled=BigInteger, tenant_id=String, conversation_id=String, sequence=BigInteger)
)
_ADD_INDEX = (
    "INSERT INTO atlas_embedding_indexes"
    " (collection, filled, filled_tenant_id, filled_conversation_id, filled_sequence, created_at)"
    " VALUES (:collection, 0, '', '', 0, {now}) ON CONFLICT (collection) DO NOTHING"
)
REGISTER = Statement(
    sqlite=text(_ADD_INDEX.format(now=NOW_SQLITE)).bindparams(_NAME),
    postgresql=text(_ADD_INDEX.format(now="statement_timestamp()")).bindparams(_NAME),
)
FORGET_INDEX = Statement(
    text("DELETE FROM atlas_embedding_indexes WHERE collection = :collection").bindparams(_NAME)
)
ANY_INDEX = Statement(text("SELECT 1 AS n FROM atlas_embedding_indexes LIMIT 1").columns(n=BigInteger))
FILLED = Statement(
    text(
        "UPDATE atlas_embedding_indexes SET filled = :filled, filled_tenant_id = :tenant_id,"
        " filled_conversation_id = :conversation_id, filled_sequence = :sequence WHERE collection = :collection"
    ).bindparams(
        _NAME,
        bindparam("filled", type_=BigInteger),
        bindparam("tenant_id", type_=String()),
        bindparam("conversation_id", type_=String()),
        bindparam("sequence", type_=BigInteger),
    )
)
FILL_LAST = Statement(
    text(
        "SELECT tenant_id, conversation_id, sequence FROM (SELECT tenant_id, conversation_id, sequence"
        " FROM atlas_messages WHERE (tenant_id, conversation_id, sequence) > (:tenant_id, :conversation_id, :sequence)"
        " ORDER BY tenant_id, conversation_id, sequence LIMIT :limit) AS following"
        " ORDER BY tenant_id DESC, conversation_id DESC, sequence DESC LIMIT 1"
    )
    .bindparams(
        bindparam("tenant_id", type_=String()),
        bindparam("conversation_id", type_=String()),
        bindparam("sequence", type_=BigInteger),
        bindparam("limit", type_=BigInteger),
    )
    .columns(**_KEY_COLUMNS)
)
_TARGET = f"'{EMBEDDING_PREFIX}' || "
_COLLATION = {"sqlite": "", "postgresql": ' COLLATE "C"'}
# What waits already keeps its place, and who works on it need not begin again.
_FILL = {
    dialect: into.format(
        key=f"tenant_id, {_TARGET}:collection, conversation_id, CAST(sequence AS text)",
        source="atlas_messages WHERE (tenant_id, conversation_id, sequence) > (:tenant_id, :conversation_id, :sequence)"
        " AND (tenant_id, conversation_id, sequence) <= (:last_tenant_id, :last_conversation_id, :last_sequence)"
        " AND deleted_at IS NULL AND status <> 'streaming'"
        f" ORDER BY tenant_id, conversation_id, CAST(sequence AS text){_COLLATION[dialect]}",
    )
    + " WHERE atlas_outbox.state = 'done'"
    for dialect, into in STAGE_ROWS.items()
}
_FILL_BINDS: Any = [
    _NAME,
    *[
        bindparam(f"{prefix}{name}", type_=kind())
        for prefix in ("", "last_")
        for name, kind in _KEY_COLUMNS.items()
    ],
]
FILL = Statement(
    sqlite=text(_FILL["sqlite"]).bindparams(*_FILL_BINDS),
    postgresql=text(_FILL["postgresql"]).bindparams(*_FILL_BINDS),
)

# Many keys as one parameter: JSON [[tenant, conversation, sequence], ...] on SQLite, arrays on PostgreSQL.
_KEYS_SQLITE = (
    "(SELECT json_extract(value, '$[0]') AS tenant_id, json_extract(value, '$[1]') AS conversation_id,"
    " json_extract(value, '$[2]') AS sequence FROM json_each(:keys))"
)
_KEYS_POSTGRESQL = "unnest(:tenants, :conversations, :sequences)"
_ARRAYS = (
    bindparam("tenants", type_=ARRAY(Text())),
    bindparam("conversations", type_=ARRAY(Text())),
    bindparam("sequences", type_=ARRAY(BigInteger())),
)

_WORDS_SQLITE = (
    "substr(coalesce(m.name || ': ', '') || coalesce(m.search_text,"
    " CASE WHEN json_type(m.content) = 'text' THEN json_extract(m.content, '$') END, ''),"
    f" 1, {MAX_SEARCH_CHARACTERS})"
)
_WORDS_POSTGRESQL = (
    "left(coalesce(m.name || ': ', '') || coalesce(m.search_text,"
    " CASE WHEN json_typeof(m.content) = 'string' THEN m.content #>> '{}' END, ''),"
    f" {MAX_SEARCH_CHARACTERS})"
)
_TEXTS_TAIL = (
    " AS k (tenant_id, conversation_id, sequence)"
    " JOIN atlas_messages m ON m.tenant_id = k.tenant_id AND m.conversation_id = k.conversation_id"
    " AND m.sequence = k.sequence WHERE m.deleted_at IS NULL AND m.status <> 'streaming'"
)
_TEXT_COLUMNS = "m.tenant_id, m.conversation_id, m.sequence, m.id, m.role, m.created_at, "
_TEXT_TYPES: List[Any] = [
    MessageRow.tenant_id,
    MessageRow.conversation_id,
    MessageRow.sequence,
    MessageRow.id,
    MessageRow.role,
    MessageRow.created_at,
    literal_column("words", FreeText).label("words"),
]
TEXTS = Statement(
    sqlite=text(
        "SELECT "
        + _TEXT_COLUMNS
        + _WORDS_SQLITE
        + " AS words FROM "
        + _KEYS_SQLITE
        + _TEXTS_TAIL.replace(" AS k (tenant_id, conversation_id, sequence)", " AS k CROSS", 1)
    )
    .bindparams(bindparam("keys", type_=Text()))
    .columns(*_TEXT_TYPES),
    postgresql=text(
        "SELECT " + _TEXT_COLUMNS + _WORDS_POSTGRESQL + " AS words FROM " + _KEYS_POSTGRESQL + _TEXTS_TAIL
    )
    .bindparams(*_ARRAYS)
    .columns(*_TEXT_TYPES),
)

_PROGRESS = (
    "SELECT i.collection, count(o.target) AS pending,"
    " coalesce(sum(CASE WHEN o.attempts > 0 THEN 1 ELSE 0 END), 0) AS failed, i.filled, {age} AS age"
    f" FROM atlas_embedding_indexes i LEFT JOIN atlas_outbox o ON o.target = {_TARGET}i.collection"
    " AND o.state = 'pending'"
    " GROUP BY i.collection, i.filled ORDER BY i.collection"
)
_PROGRESS_COLUMNS: Any = {
    "collection": String,
    "pending": BigInteger,
    "failed": BigInteger,
    "filled": BigInteger,
    "age": Double,
}
PROGRESS = Statement(
    sqlite=text(_PROGRESS.format(age=f"({NOW_SQLITE} - min(o.staged_at)) / 1000000.0")).columns(
        **_PROGRESS_COLUMNS
    ),
    postgresql=text(
        _PROGRESS.format(age="extract(epoch FROM statement_timestamp() - min(o.staged_at))::double precision")
    ).columns(**_PROGRESS_COLUMNS),
)
#: The next tenant that has conversations: one step of the index for each.
NEXT_TENANT = Statement(
    text("SELECT tenant_id FROM atlas_conversations WHERE tenant_id > :after ORDER BY tenant_id LIMIT 1")
    .bindparams(bindparam("after", type_=String()))
    .columns(tenant_id=String)
)
_ANY_MESSAGE = (
    "SELECT 1 AS n FROM atlas_messages WHERE tenant_id = :tenant_id{more}"
    " AND deleted_at IS NULL AND status <> 'streaming' LIMIT 1"
)
ANY_MESSAGE = Statement(
    text(_ANY_MESSAGE.format(more=""))
    .bindparams(bindparam("tenant_id", type_=String()))
    .columns(n=BigInteger)
)
#: A message of a tenant that the index was given already.
ANY_GIVEN = Statement(
    text(
        "SELECT 1 AS n FROM atlas_messages m WHERE m.tenant_id = :tenant_id AND m.deleted_at IS NULL"
        f" AND m.status <> 'streaming' AND NOT EXISTS (SELECT 1 FROM atlas_outbox o"
        f" WHERE o.tenant_id = m.tenant_id AND o.target = {_TARGET}:collection"
        " AND o.kind = m.conversation_id AND o.key = CAST(m.sequence AS text)) LIMIT 1"
    )
    .bindparams(_NAME, bindparam("tenant_id", type_=String()))
    .columns(n=BigInteger)
)
ANY_MESSAGE_OF = Statement(
    text(_ANY_MESSAGE.format(more=" AND conversation_id = :conversation_id"))
    .bindparams(bindparam("tenant_id", type_=String()), bindparam("conversation_id", type_=String()))
    .columns(n=BigInteger)
)
# Not EXISTS: PostgreSQL would read the whole outbox where it takes what is asked for to be frequent. Asked for in the order
# of the primary key, it is one look at it.
_PENDING = (
    "SELECT CASE WHEN EXISTS (SELECT 1 FROM atlas_embedding_indexes WHERE collection = :collection AND filled = 1)"
    f" AND (SELECT key FROM atlas_outbox WHERE tenant_id = :tenant_id AND target = {_TARGET}:collection{{more}}"
    " AND state <> 'done' ORDER BY tenant_id, target, kind, key LIMIT 1) IS NULL THEN 0 ELSE 1 END AS pending"
)
PENDING_ALL = Statement(
    text(_PENDING.format(more=""))
    .bindparams(_NAME, bindparam("tenant_id", type_=String()))
    .columns(pending=BigInteger)
)
PENDING_ONE = Statement(
    text(_PENDING.format(more=" AND kind = :conversation_id"))
    .bindparams(_NAME, bindparam("tenant_id", type_=String()), bindparam("conversation_id", type_=String()))
    .columns(pending=BigInteger)
)
