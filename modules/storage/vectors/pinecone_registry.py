"""Pinecone: which collections there are. Each is a record in the registry's namespace of the base index.

The record's id is made of the digests of tenant and name. It holds the collection's generation, an id that is never used
twice and is part of its namespaces: what a deleted collection left behind is never seen by a successor of its name.
"""

from __future__ import annotations

from typing import Any, AsyncIterator, Dict, List, Mapping, Optional

import numpy as np
import orjson

from modules.storage.vectors.checks import CollectionSpec
from modules.storage.vectors.errors import VectorCollectionError, VectorStoreError
from modules.storage.vectors.models import DistanceMetric
from modules.storage.vectors.pinecone_names import registry_id, registry_prefix
from modules.storage.vectors.pinecone_records import MAX_METADATA_BYTES, Record, metadata_bytes
from modules.storage.vectors.pinecone_space import Space, until
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import decode_json, encode_json

__all__ = ["GENERATION", "INDEX", "Registry"]

#: Keys of `CollectionSpec.options`.
GENERATION = "generation"
INDEX = "index_name"

_FIELD = "atlas_collection"


class Registry:
    """The collections of every tenant.

    Args:
        space: The registry's namespace.
        timeout_s: How long a change may take until it is visible.
    """

    def __init__(self, space: Space, timeout_s: float) -> None:
        self._space = space
        self._timeout_s = timeout_s

    async def read(self, tenant_id: str, name: str) -> Optional[CollectionSpec]:
        """Return a collection, None when there is none."""
        key = registry_id(tenant_id, name)
        found = (await self._space.fetch([key])).get(key)
        return None if found is None else _decoded(found.metadata)

    async def list(self, tenant_id: str) -> AsyncIterator[List[CollectionSpec]]:
        """Yield the collections of a tenant, in groups."""
        async for page in self._space.ids(registry_prefix(tenant_id)):
            yield [_decoded(item.metadata) for item in (await self._space.fetch(page)).values()]

    async def tenants(self) -> List[str]:
        """Return the tenants that have collections."""
        found = set()
        async for page in self._space.ids():
            for item in (await self._space.fetch(page)).values():
                found.add(_stored(item.metadata).get("tenant"))
        return sorted(tenant for tenant in found if isinstance(tenant, str))

    async def add(self, tenant_id: str, spec: CollectionSpec) -> None:
        """Add a collection and wait until it is visible.

        Raises:
            VectorCollectionError: another process added one of this name at the same time.
        """
        record = _encoded(tenant_id, spec, self._space.index.dimension)
        await self._space.upsert([record])
        winner: List[CollectionSpec] = []

        async def visible() -> bool:
            winner[:] = [item for item in [await self.read(tenant_id, spec.name)] if item is not None]
            return bool(winner)

        await until(visible, self._timeout_s, "the collection was created, but Pinecone does not show it yet")
        if winner[0].options[GENERATION] != spec.options[GENERATION]:
            raise VectorCollectionError(
                f"the vector collection {spec.name!r} was created by another process just now"
            )

    async def remove(self, tenant_id: str, spec: CollectionSpec) -> None:
        """Remove a collection and wait until nobody sees it any more."""
        await self._space.delete([registry_id(tenant_id, spec.name)])

        async def gone() -> bool:
            found = await self.read(tenant_id, spec.name)
            return found is None or found.options[GENERATION] != spec.options[GENERATION]

        await until(gone, self._timeout_s, "the collection was deleted, but Pinecone still shows it")


def _encoded(tenant_id: str, spec: CollectionSpec, dimension: int) -> Record:
    key = registry_id(tenant_id, spec.name)
    text = encode_json(
        {
            "tenant": tenant_id,
            "name": spec.name,
            "dimension": spec.dimension,
            "metric": spec.metric.value,
            "index_type": spec.index_type,
            "metadata": dict(spec.metadata),
            "options": dict(spec.options),
        },
        "the collection",
    )
    fields = {_FIELD: str(text)}
    size = metadata_bytes(fields)
    if size > MAX_METADATA_BYTES:
        raise InvalidValueError(
            f"the collection's metadata are {size} bytes as Pinecone stores them; it takes {MAX_METADATA_BYTES}"
        )
    values = np.zeros(dimension)
    values[0] = 1.0
    return Record(key, values.tolist(), fields, size + 4 * dimension + len(key) + 64)


def _stored(fields: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    stored: Dict[str, Any] = decode_json((fields or {})[_FIELD])
    return stored


def _decoded(fields: Optional[Mapping[str, Any]]) -> CollectionSpec:
    try:
        stored = _stored(fields)
        return CollectionSpec(
            stored["name"],
            stored["dimension"],
            DistanceMetric(stored["metric"]),
            stored["index_type"],
            stored["metadata"],
            stored["options"],
        )
    except (KeyError, ValueError, TypeError, orjson.JSONDecodeError) as exc:
        raise VectorStoreError(
            "a record of a collection in Pinecone is damaged, or somebody else's; is the index shared with another program?"
        ) from exc
