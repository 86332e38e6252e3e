"""The operations on documents of a pgvector collection: each one statement, but an upsert of many."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Row
from modules.storage.vectors.checks import PreparedDocument
from modules.storage.vectors.models import VectorDocument
from modules.storage.vectors.pgvector_codec import pack_vectors, prepare_connection, unpack_vector
from modules.storage.vectors.pgvector_filters import BoundFilter, search_texts
from modules.storage.vectors.pgvector_statements import CollectionStatements
from modules.store_common.values import encode_text

__all__ = [
    "count",
    "delete_ids",
    "delete_older",
    "delete_where",
    "get",
    "scroll",
    "to_document",
    "upsert_part",
    "upsert_parts",
]

# Rows looked at in one transaction by `delete_older`.
_AGED_ROWS = 2_000


def to_document(row: Row) -> VectorDocument:
    """Return a row of `get` or `scroll` as a document."""
    return VectorDocument(
        id=row[0],
        namespace=row[1],
        created_at=row[2],
        content=row[3],
        metadata=row[4],
        vector=unpack_vector(row[5]),
    )


def _columns(documents: Sequence[PreparedDocument]) -> Mapping[str, Any]:
    # what is one throughout is not sent for each: unnest fills up shorter arrays with NULL
    space = documents[0].namespace
    namespaces = [item.namespace for item in documents]
    metadata = [item.metadata_json for item in documents]
    contents = [encode_text(item.content) for item in documents]
    created = [item.created_at for item in documents]
    # np.stack would look at every vector once more
    vectors = np.concatenate([item.vector for item in documents]).reshape(len(documents), -1)
    return {
        "space": space,
        "namespaces": [] if namespaces.count(space) == len(namespaces) else namespaces,
        "ids": [item.id for item in documents],
        "vectors": pack_vectors(vectors),
        "contents": [] if contents.count(None) == len(contents) else contents,
        "metadata": metadata,
        "searches": search_texts(metadata),
        "created": [] if created.count(None) == len(created) else created,
    }


@write(atomic=False)
async def upsert_part(
    tx: Transaction,
    where: str,
    table: CollectionStatements,
    tenant_id: str,
    name: str,
    documents: Sequence[PreparedDocument],
) -> int:
    """Store documents by one statement; 0 when the collection is not registered any more."""
    await prepare_connection(tx, where)
    return await tx.run(
        table.upsert, tenant=tenant_id, name=name, physical=table.physical, **_columns(documents)
    )


@write
async def upsert_parts(
    tx: Transaction,
    where: str,
    table: CollectionStatements,
    tenant_id: str,
    name: str,
    parts: Sequence[Sequence[PreparedDocument]],
) -> int:
    """Store several parts in one transaction; 0 when the collection is not registered any more."""
    stored = 0
    for part in parts:
        stored = await upsert_part(tx, where, table, tenant_id, name, part)
        if not stored:
            return 0
    return stored


@write(atomic=False)
async def delete_ids(
    tx: Transaction, table: CollectionStatements, tenant_id: str, namespace: str, ids: List[str]
) -> int:
    """Delete by id; how many were there."""
    return await tx.run(table.delete_ids, tenant=tenant_id, space=namespace, ids=ids)


@write(atomic=False)
async def delete_where(
    tx: Transaction,
    table: CollectionStatements,
    tenant_id: str,
    namespace: str,
    bound: Optional[BoundFilter],
) -> int:
    """Delete what passes; how many."""
    filters = {} if bound is None else bound.params
    return await tx.run(table.delete_where(bound), tenant=tenant_id, space=namespace, **filters)


@write(atomic=False)
async def delete_older(
    tx: Transaction,
    table: CollectionStatements,
    tenant_id: str,
    before: datetime,
    after: Tuple[str, str],
) -> Tuple[int, Optional[Tuple[str, str]]]:
    """Look at the next rows after (namespace, id) and delete the old ones; how many, and where to go on."""
    row = await tx.first(
        table.delete_older,
        tenant=tenant_id,
        before=before,
        space=after[0],
        after=after[1],
        row_limit=_AGED_ROWS,
    )
    if row is None:
        return 0, None
    return row[0], (row[2], row[3]) if row[1] == _AGED_ROWS else None


@read
async def get(
    tx: Transaction, table: CollectionStatements, tenant_id: str, namespace: str, ids: List[str]
) -> List[Row]:
    """Return the rows of ids."""
    return await tx.all(table.get, tenant=tenant_id, space=namespace, ids=ids)


@read
async def count(
    tx: Transaction,
    table: CollectionStatements,
    tenant_id: str,
    namespace: Optional[str],
    bound: Optional[BoundFilter],
) -> int:
    """Count in a namespace, or (None) in all."""
    filters: Dict[str, Any] = {} if bound is None else dict(bound.params)
    if namespace is not None:
        filters["space"] = namespace
    row = await tx.one(table.count(bound, space=namespace is not None), tenant=tenant_id, **filters)
    return int(row[0])


@read
async def scroll(
    tx: Transaction,
    table: CollectionStatements,
    tenant_id: str,
    namespace: str,
    bound: Optional[BoundFilter],
    after_id: Optional[str],
    limit: int,
) -> List[Row]:
    """Return a page of rows, by id."""
    filters: Dict[str, Any] = {} if bound is None else dict(bound.params)
    if after_id is not None:
        filters["after"] = after_id
    statement = table.scroll(bound, after=after_id is not None)
    return await tx.all(statement, tenant=tenant_id, space=namespace, row_limit=limit, **filters)
