"""The SQL of appending, the hot path of the store.

SQLite: two statements in the writer's transaction (bump the counter, insert), for many waiting calls two as well.
PostgreSQL: one data-modifying CTE, in a form for one message and one for many waiting calls (docs of the project,
ACCESS_PATH items 5 and 14).

The counter's row is the lock: whoever bumps `last_sequence` has the conversation until its transaction ends, which makes
the sequence gapless and its order the order of commits.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, String, Text, bindparam, insert, literal_column, or_, select, text, update
from sqlalchemy import func as sql
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

from modules.conversation_store.models import ConversationRow, MessageRow
from modules.storage.columns import NOW_SQLITE, FreeText, JsonValue, UtcDateTime, utc_now
from modules.storage.statements import Statement

__all__ = [
    "APPEND",
    "APPEND_BATCH",
    "BATCHED",
    "BUMP",
    "BUMP_CHECKED",
    "BUMP_MANY",
    "FIND_CLIENT",
    "INSERT",
    "INSERTED",
    "INSERT_MANY",
    "STATE",
]

_C = ConversationRow
_M = MessageRow

#: The columns a new message has, in the order of the inserts below.
INSERTED = (
    "tenant_id", "conversation_id", "sequence", "id", "role", "name", "type", "status", "content", "search_text",
    "metadata", "author_id", "parent_id", "client_message_id", "body_digest", "created_at",
)  # fmt: skip


def _bump(checked: bool, now: Any) -> Any:
    statement = (
        update(_C)
        .where(
            _C.tenant_id == bindparam("tenant_id"),
            _C.id == bindparam("conversation_id"),
            _C.status == "active",
        )
        .values(last_sequence=_C.last_sequence + bindparam("count", type_=BigInteger), updated_at=now)
        .returning(_C.last_sequence, _C.updated_at)
    )
    if not checked:
        return statement
    expect = bindparam("expect", type_=BigInteger)
    fence = bindparam("fence", type_=BigInteger)
    return statement.where(
        or_(expect.is_(None), _C.last_sequence == expect),
        or_(fence.is_(None), (_C.lease_fence == fence) & (_C.lease_owner == bindparam("owner"))),
    )


# clock_timestamp(): read after the row's lock was got, so that times follow the sequence
BUMP = Statement(_bump(False, utc_now()), postgresql=_bump(False, sql.clock_timestamp()))
BUMP_CHECKED = Statement(_bump(True, utc_now()), postgresql=_bump(True, sql.clock_timestamp()))

#: The counters of many conversations at once, given as JSON: an array of [tenant_id, conversation_id, count].
BUMP_MANY = Statement(
    sqlite=text(
        "UPDATE atlas_conversations SET last_sequence = last_sequence + w.count, updated_at = w.now"
        " FROM (SELECT json_extract(value, '$[0]') AS tenant_id, json_extract(value, '$[1]') AS id,"
        f" json_extract(value, '$[2]') AS count, {NOW_SQLITE} AS now FROM json_each(:counts)) AS w"
        " WHERE atlas_conversations.tenant_id = w.tenant_id AND atlas_conversations.id = w.id AND status = 'active'"
        " RETURNING tenant_id, id, last_sequence, updated_at"
    )
    .bindparams(bindparam("counts", type_=Text))
    .columns(tenant_id=String, id=String, last_sequence=BigInteger, updated_us=BigInteger)
)

# SQLAlchemy 2.0 takes names for those of attributes, and `metadata` is one of every declarative class
_ATTRIBUTES = {name: "metadata_" if name == "metadata" else name for name in INSERTED}
_INSERT = insert(_M).values(
    version=literal_column("1", BigInteger), **{_ATTRIBUTES[name]: bindparam(name) for name in INSERTED}
)
INSERT = Statement(_INSERT)
#: The same with times as SQLite holds them: many messages get one time, which need not be converted for each.
INSERT_MANY = Statement(sqlite=_INSERT.values(created_at=bindparam("created_at", type_=BigInteger)))

FIND_CLIENT = Statement(
    select(_M.sequence, _M.body_digest).where(
        _M.tenant_id == bindparam("tenant_id"),
        _M.conversation_id == bindparam("conversation_id"),
        _M.client_message_id == bindparam("client_message_id"),
    )
)

#: Why a bump found nothing.
STATE = Statement(
    select(_C.status, _C.last_sequence, _C.lease_fence, _C.lease_owner).where(
        _C.tenant_id == bindparam("tenant_id"), _C.id == bindparam("conversation_id")
    )
)

_LIST = ", ".join(INSERTED)

_APPEND_SQL = f"""
WITH known AS (
    SELECT sequence, body_digest FROM atlas_messages
    WHERE :client_message_id IS NOT NULL AND tenant_id = :tenant_id AND conversation_id = :conversation_id
        AND client_message_id = :client_message_id
), bumped AS (
    UPDATE atlas_conversations SET last_sequence = last_sequence + 1, updated_at = clock_timestamp()
    WHERE tenant_id = :tenant_id AND id = :conversation_id AND status = 'active' AND NOT EXISTS (SELECT 1 FROM known)
      AND (:expect IS NULL OR last_sequence = :expect)
      AND (:fence IS NULL OR (lease_fence = :fence AND lease_owner = :owner))
    RETURNING last_sequence, updated_at
), added AS (
    INSERT INTO atlas_messages ({_LIST}, version)
    SELECT :tenant_id, :conversation_id, last_sequence, :id, :role, :name, :type, :status, :content, :search_text,
        :metadata, :author_id, :parent_id, :client_message_id, :body_digest, coalesce(:created_at, updated_at), 1
    FROM bumped
    RETURNING sequence, created_at
)
SELECT sequence, created_at, NULL AS body_digest FROM added
UNION ALL
SELECT sequence, NULL, body_digest FROM known
"""

_STRINGS = ("tenant_id", "conversation_id", "id", "role", "type", "status", "author_id", "parent_id")

APPEND = Statement(
    postgresql=text(_APPEND_SQL)
    .bindparams(
        *[
            bindparam(name, type_=String())
            for name in (*_STRINGS, "client_message_id", "body_digest", "owner")
        ],
        bindparam("name", type_=FreeText),
        bindparam("search_text", type_=FreeText),
        bindparam("content", type_=JsonValue),
        bindparam("metadata", type_=JsonValue),
        bindparam("created_at", type_=UtcDateTime),
        bindparam("expect", type_=BigInteger),
        bindparam("fence", type_=BigInteger),
    )
    .columns(sequence=BigInteger, created_at=UtcDateTime, body_digest=String)
)

# Rows of one conversation get consecutive numbers in the order of the calls. The counters are locked in the order of
# their keys, so that two batches never wait for each other in a circle.
_BATCH_SQL = f"""
WITH given AS (
    SELECT * FROM unnest(:tenant_id, :conversation_id, :id, :role, :name, :type, :status, :content, :search_text,
        :metadata, :author_id, :parent_id, :client_message_id, :body_digest, :created_at) WITH ORDINALITY
      AS g (tenant_id, conversation_id, id, role, name, type, status, content, search_text, metadata, author_id,
        parent_id, client_message_id, body_digest, created_at, n)
), known AS (
    SELECT g.n, m.sequence, m.body_digest FROM given g
    JOIN atlas_messages m ON m.tenant_id = g.tenant_id AND m.conversation_id = g.conversation_id
        AND m.client_message_id = g.client_message_id
    WHERE g.client_message_id IS NOT NULL
), fresh AS (
    SELECT g.*, row_number() OVER (PARTITION BY tenant_id, conversation_id ORDER BY n) AS step FROM given g
    WHERE g.client_message_id IS NULL OR g.n NOT IN (SELECT n FROM known)
), locked AS (
    SELECT c.tenant_id, c.id FROM atlas_conversations c
    JOIN (SELECT DISTINCT tenant_id, conversation_id FROM fresh) f ON c.tenant_id = f.tenant_id AND c.id = f.conversation_id
    WHERE c.status = 'active'
    ORDER BY c.tenant_id, c.id
    FOR NO KEY UPDATE OF c
), counted AS (
    SELECT l.tenant_id, l.id, max(f.step) AS steps FROM locked l
    JOIN fresh f ON f.tenant_id = l.tenant_id AND f.conversation_id = l.id
    GROUP BY l.tenant_id, l.id
), bumped AS (
    UPDATE atlas_conversations c SET last_sequence = c.last_sequence + k.steps, updated_at = clock_timestamp()
    FROM counted k WHERE c.tenant_id = k.tenant_id AND c.id = k.id
    RETURNING c.tenant_id, c.id, c.last_sequence - k.steps AS base, c.updated_at
), added AS (
    INSERT INTO atlas_messages ({_LIST}, version)
    SELECT f.tenant_id, f.conversation_id, b.base + f.step, f.id, f.role, f.name, f.type, f.status, f.content::json,
        f.search_text, f.metadata::json, f.author_id, f.parent_id, f.client_message_id, f.body_digest,
        coalesce(f.created_at, b.updated_at), 1
    FROM fresh f JOIN bumped b ON b.tenant_id = f.tenant_id AND b.id = f.conversation_id
    RETURNING tenant_id, conversation_id, id, sequence, created_at
)
SELECT g.n, coalesce(a.sequence, k.sequence) AS sequence, a.created_at, k.body_digest
FROM given g
LEFT JOIN known k ON k.n = g.n
LEFT JOIN added a ON k.n IS NULL AND a.tenant_id = g.tenant_id AND a.conversation_id = g.conversation_id AND a.id = g.id
"""

#: The parameters of `APPEND_BATCH`, each an array.
BATCHED = tuple(name for name in INSERTED if name != "sequence")

APPEND_BATCH = Statement(
    postgresql=text(_BATCH_SQL)
    .bindparams(
        *[bindparam(name, type_=ARRAY(Text())) for name in BATCHED if name != "created_at"],
        bindparam("created_at", type_=ARRAY(TIMESTAMP(timezone=True))),
    )
    .columns(n=BigInteger, sequence=BigInteger, created_at=UtcDateTime, body_digest=String)
)
