"""Retention of vectors: what is older than so many days goes, whoever's it is. For upkeep, not for callers' requests."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import List, Optional

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.errors import VectorNotFoundError
from modules.storage.vectors.models import CollectionInfo

__all__ = ["FOLLOWS", "delete_older_everywhere"]

logger = logging.getLogger(__name__)

#: Key of a collection's metadata that says whose life its vectors follow: they go with it, and not by their own age.
FOLLOWS = "atlas_follows"


async def delete_older_everywhere(
    provider: VectorProvider, before: datetime, tenant_id: Optional[str] = None
) -> int:
    """Delete the documents created before `before` in every collection, but those that follow something else.

    Args:
        provider: Open, or opened by its first use.
        before: Aware.
        tenant_id: Only of this tenant; None: of all.

    Returns:
        How many went.

    Raises:
        VectorStoreError: the provider cannot do it.
    """
    await provider.require_open()
    tenants: List[str] = await provider._list_tenants() if tenant_id is None else [tenant_id]
    total = 0
    for tenant in tenants:
        for info in await provider.list_collections(tenant_id=tenant):
            if FOLLOWS not in info.metadata:
                total += await _one(provider, info, before, tenant)
    return total


async def _one(provider: VectorProvider, info: CollectionInfo, before: datetime, tenant_id: str) -> int:
    try:
        return await provider.delete_older(info.name, before, tenant_id=tenant_id)
    except VectorNotFoundError:
        return 0  # deleted meanwhile
