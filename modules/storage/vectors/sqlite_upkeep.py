"""What upkeep does in the embedded vector store: documents that are too old go, a few thousand rows at a time."""

from __future__ import annotations

from datetime import datetime
from typing import Dict, List, Optional, Tuple

from modules.storage.operations import Transaction, read, write
from modules.storage.vectors.sqlite_operations import Place, delete_rows, read_state
from modules.storage.vectors.sqlite_statements import AGES, TENANTS

__all__ = ["delete_older", "list_tenants"]

# Rows looked at in one transaction: a few milliseconds of the writer.
_AGED_ROWS = 2_000


@write
async def delete_older(
    tx: Transaction, tenant: str, collection: int, before: datetime, after: Tuple[str, str]
) -> Tuple[int, Optional[Tuple[str, str]]]:
    """Look at the next rows after (namespace, id) and delete the old ones; return how many, and where to go on."""
    await read_state(tx, tenant, collection)
    rows = await tx.all(
        AGES, tenant=tenant, collection=collection, space=after[0], after=after[1], limit=_AGED_ROWS
    )
    old: Dict[str, List[str]] = {}
    for space, item, created_at in rows:
        if created_at < before:
            old.setdefault(space, []).append(item)
    gone = 0
    for space, ids in old.items():
        gone += await delete_rows(tx, Place(tenant, collection, space), ids)
    return gone, (rows[-1][0], rows[-1][1]) if len(rows) == _AGED_ROWS else None


@read
async def list_tenants(tx: Transaction) -> List[str]:
    """Return the tenants that have collections."""
    return [row[0] for row in await tx.all(TENANTS)]
