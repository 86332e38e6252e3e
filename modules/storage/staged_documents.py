"""The home of documents whose place is another store: their newest state in SQL, written inside units of work.

A document staged for Chroma, Pinecone or MongoDB is a row here, and its key is dirty in the outbox, both in the transaction
of the unit. The relay reads the row and brings the other store up to it; reconciliation compares the two and rebuilds what
was lost. A deleted document stays as a tombstone, so that a late or repeated delivery never brings it back.

A collection is the row with an empty namespace and id.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import orjson
from sqlalchemy import BigInteger, LargeBinary, String, Text, bindparam, text

from modules.storage.columns import NOW_SQLITE, UtcDateTime
from modules.storage.operations import Transaction, read, write
from modules.storage.outbox_queue import OutboxKey
from modules.storage.statements import Statement
from modules.store_common.values import JsonText, decode_json

__all__ = [
    "COLLECTION_ID",
    "DocumentKey",
    "StagedDocument",
    "collections",
    "digest_of",
    "document_key",
    "following",
    "namespaces",
    "outbox_key",
    "put",
    "read_many",
    "row_of",
    "tombstone",
]

#: Namespace and id of the row that is the collection itself.
COLLECTION_ID = ("", "")

#: Tenant, target, collection, namespace, id.
DocumentKey = Tuple[str, str, str, str, str]


@dataclass(frozen=True)
class StagedDocument:
    """A document as it ought to be in its store.

    Attributes:
        key: Which one.
        version: Grows with every change.
        created_at: When it was first staged.
        deleted: It is a tombstone.
        digest: Of its contents; see `digest_of`.
        body: JSON text, None for a tombstone.
        vector: Little-endian float32, None where there is none.
    """

    key: DocumentKey
    version: int
    created_at: datetime
    deleted: bool
    digest: str
    body: Optional[str]
    vector: Optional[bytes]

    @property
    def contents(self) -> Any:
        """The body as a JSON value."""
        return None if self.body is None else decode_json(self.body)


def digest_of(body: Any, vector: Optional[bytes] = None) -> str:
    """Return the digest of a document's contents; the order of the keys in an object does not count.

    Args:
        body: JSON value.
        vector: Little-endian float32.
    """
    made = hashlib.blake2b(orjson.dumps(body, option=orjson.OPT_SORT_KEYS), digest_size=16)
    made.update(b"" if vector is None else vector)
    return made.hexdigest()


def outbox_key(key: DocumentKey) -> OutboxKey:
    """Return the key under which a document is staged: kind is the collection, and the name is `namespace/id`."""
    tenant_id, target, collection, namespace, id_ = key
    quoted = namespace.replace("%", "%25").replace("/", "%2F")
    return tenant_id, target, collection, f"{quoted}/{id_}"


def document_key(address: OutboxKey) -> DocumentKey:
    """Return the document that `outbox_key` made `address` of."""
    tenant_id, target, collection, name = address
    quoted, _, id_ = name.partition("/")
    return tenant_id, target, collection, quoted.replace("%2F", "/").replace("%25", "%"), id_


_NAMES = ("tenant_id", "target", "collection", "namespace", "id")
_THIS: Any = tuple(bindparam(name, type_=String()) for name in _NAMES)
_PUT_TEXT = (
    "INSERT INTO atlas_staged (tenant_id, target, collection, namespace, id, version, created_at, updated_at, deleted,"
    " digest, body, vector) VALUES (:tenant_id, :target, :collection, :namespace, :id, {now_us},"
    " coalesce(:created_at, {now}), {now}, :deleted, :digest, :body, :vector)"
    " ON CONFLICT (tenant_id, target, collection, namespace, id) DO UPDATE SET"
    " version = {greatest}(atlas_staged.version + 1, excluded.version), updated_at = excluded.updated_at,"
    " created_at = CASE WHEN atlas_staged.deleted = 1 OR :created_at IS NOT NULL THEN excluded.created_at"
    " ELSE atlas_staged.created_at END,"
    " deleted = excluded.deleted, digest = excluded.digest, body = excluded.body, vector = excluded.vector"
)
_PUTTING = (
    *_THIS,
    bindparam("created_at", type_=UtcDateTime()),
    bindparam("deleted", type_=BigInteger),
    bindparam("digest", type_=String()),
    bindparam("body", type_=Text()),
    bindparam("vector", type_=LargeBinary()),
)
_PUT = Statement(
    sqlite=text(_PUT_TEXT.format(now=NOW_SQLITE, now_us=NOW_SQLITE, greatest="max")).bindparams(*_PUTTING),
    postgresql=text(
        _PUT_TEXT.format(
            now="statement_timestamp()",
            now_us="CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS bigint)",
            greatest="greatest",
        )
    ).bindparams(*_PUTTING),
)
_COLUMNS: Dict[str, Any] = {
    **dict.fromkeys(_NAMES, String),
    "version": BigInteger,
    "created_at": UtcDateTime,
    "deleted": BigInteger,
    "digest": String,
    "body": Text,
    "vector": LargeBinary,
}
_SELECT = (
    "SELECT tenant_id, target, collection, namespace, id, version, created_at, deleted, digest, body, vector"
    " FROM atlas_staged WHERE tenant_id = :tenant_id AND target = :target AND collection = :collection"
)
_GET = Statement(
    text(_SELECT + " AND namespace = :namespace AND id = :id").bindparams(*_THIS).columns(**_COLUMNS)
)
_FOLLOWING = Statement(
    text(_SELECT + " AND namespace = :namespace AND id > :id AND id <> '' ORDER BY id LIMIT :limit")
    .bindparams(*_THIS, bindparam("limit", type_=BigInteger))
    .columns(**_COLUMNS)
)
_COLLECTIONS = Statement(
    text(
        "SELECT tenant_id, collection FROM atlas_staged WHERE target = :target"
        " AND (tenant_id, collection) > (:tenant_id, :collection)"
        " GROUP BY tenant_id, collection ORDER BY tenant_id, collection LIMIT :limit"
    )
    .bindparams(_THIS[0], _THIS[1], _THIS[2], bindparam("limit", type_=BigInteger))
    .columns(tenant_id=String, collection=String)
)
_NAMESPACES = Statement(
    text(
        "SELECT DISTINCT namespace FROM atlas_staged WHERE tenant_id = :tenant_id AND target = :target"
        " AND collection = :collection AND namespace > :namespace AND id <> '' ORDER BY namespace LIMIT :limit"
    )
    .bindparams(*_THIS[:4], bindparam("limit", type_=BigInteger))
    .columns(namespace=String)
)


def _document(row: Any) -> StagedDocument:
    return StagedDocument(tuple(row[:5]), row[5], row[6], bool(row[7]), *row[8:])


def _named(key: DocumentKey) -> Dict[str, Any]:
    return dict(zip(_NAMES, key))


@write
async def put(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store documents or tombstones: rows made by `row_of` or `tombstone`, in the order of their keys."""
    await tx.run_many(_PUT, rows)


def row_of(
    key: DocumentKey,
    body: JsonText,
    digest: str,
    vector: Optional[bytes] = None,
    created_at: Optional[datetime] = None,
) -> Dict[str, Any]:
    """Return the parameters that store a document; `created_at` None keeps the one there is."""
    return {
        **_named(key),
        "created_at": created_at,
        "deleted": 0,
        "digest": digest,
        "body": body,
        "vector": vector,
    }


def tombstone(key: DocumentKey) -> Dict[str, Any]:
    """Return the parameters that mark a document as gone."""
    return {**_named(key), "created_at": None, "deleted": 1, "digest": "", "body": None, "vector": None}


@read
async def read_many(tx: Transaction, keys: Sequence[DocumentKey]) -> List[Optional[StagedDocument]]:
    """Return the documents and tombstones of `keys`, None where there never was one."""
    rows = [await tx.first(_GET, **_named(key)) for key in keys]
    return [None if row is None else _document(row) for row in rows]


@read
async def following(
    tx: Transaction, tenant_id: str, target: str, collection: str, namespace: str, after_id: str, limit: int
) -> List[StagedDocument]:
    """Return the next documents and tombstones of a namespace, by id in code-point order."""
    key = (tenant_id, target, collection, namespace, after_id)
    return [_document(row) for row in await tx.all(_FOLLOWING, **_named(key), limit=limit)]


@read
async def collections(
    tx: Transaction, target: str, after: Tuple[str, str], limit: int
) -> List[Tuple[str, str]]:
    """Return the next (tenant, collection) pairs that have anything staged for `target`."""
    rows = await tx.all(_COLLECTIONS, target=target, tenant_id=after[0], collection=after[1], limit=limit)
    return [(row[0], row[1]) for row in rows]


@read
async def namespaces(
    tx: Transaction, tenant_id: str, target: str, collection: str, after: str, limit: int
) -> List[str]:
    """Return the next namespaces of a collection."""
    rows = await tx.all(
        _NAMESPACES,
        tenant_id=tenant_id,
        target=target,
        collection=collection,
        namespace=after,
        limit=limit,
    )
    return [row[0] for row in rows]
