"""What `base.VectorProvider` has of collections: made, found, listed, deleted, and known from one call to the next."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Tuple

from modules.storage.vectors.checks import CollectionSpec, check_dimension
from modules.storage.vectors.errors import VectorNotFoundError
from modules.storage.vectors.lifecycle import ProviderLifecycle
from modules.storage.vectors.models import CollectionInfo, DistanceMetric
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier, encode_json

__all__ = ["ProviderCollections"]


class ProviderCollections(ProviderLifecycle):
    """The collections of a vector store; its arguments are those of `base.VectorProvider`."""

    async def create_collection(
        self,
        name: str,
        dimension: int,
        *,
        metric: DistanceMetric = DistanceMetric.COSINE,
        metadata: Optional[Mapping[str, Any]] = None,
        index: Optional[Mapping[str, Any]] = None,
        tenant_id: Optional[str] = None,
    ) -> CollectionInfo:
        """Create a collection.

        Args:
            name: An identifier; any text of one, the provider maps it to what its engine takes.
            dimension: Numbers in a vector, 1 to 16,000.
            metric: How nearness is measured.
            metadata: JSON object kept with the collection.
            index: Options of the provider; unknown ones are refused.
            tenant_id: Whose collection.

        Raises:
            VectorCollectionError: there is one of this name, or the engine cannot have it.
        """
        tenant = await self._enter(tenant_id)
        try:
            chosen = DistanceMetric(metric)
        except ValueError:
            raise InvalidValueError(
                f"the metric must be one of {', '.join(item.value for item in DistanceMetric)}"
            ) from None
        given = dict(metadata or {})
        encode_json(given, "the collection's metadata")
        spec = CollectionSpec(
            check_identifier(name, "the collection's name"),
            check_dimension(dimension),
            chosen,
            "",
            given,
            dict(index or {}),
        )
        created = await self._create_collection(tenant, spec)
        self._specs[tenant, name] = created
        return _info(created, 0)

    async def delete_collection(self, name: str, *, tenant_id: Optional[str] = None) -> bool:
        """Delete a collection of this tenant and its documents; return whether it was there."""
        tenant = await self._enter(tenant_id)
        known = check_identifier(name, "the collection's name")
        self._specs.pop((tenant, known), None)
        return await self._delete_collection(tenant, known)

    async def list_collections(self, *, tenant_id: Optional[str] = None) -> List[CollectionInfo]:
        """Return this tenant's collections, by name."""
        tenant = await self._enter(tenant_id)
        found = await self._list_collections(tenant)
        return [_info(spec, count) for spec, count in sorted(found, key=lambda item: item[0].name)]

    async def get_collection(self, name: str, *, tenant_id: Optional[str] = None) -> Optional[CollectionInfo]:
        """Return a collection of this tenant, None when there is none of this name."""
        tenant = await self._enter(tenant_id)
        spec = await self._read_collection(tenant, check_identifier(name, "the collection's name"))
        return None if spec is None else _info(spec, await self._count(tenant, spec, None, None))

    async def rebuild_index(self, collection: str, *, tenant_id: Optional[str] = None) -> CollectionInfo:
        """Make the collection's search index anew from its documents; nothing to do where search is exact."""
        tenant, spec = await self._known(collection, tenant_id)
        rebuilt = await self._rebuild_index(tenant, spec)
        self._specs[tenant, collection] = rebuilt
        return _info(rebuilt, await self._count(tenant, rebuilt, None, None))

    # --- inside -------------------------------------------------------------------------------------------------

    async def _known(self, collection: str, tenant_id: Optional[str]) -> Tuple[str, CollectionSpec]:
        tenant = await self._enter(tenant_id)
        check_identifier(collection, "the collection's name")
        spec = self._specs.get((tenant, collection))
        if spec is None:
            spec = await self._read_collection(tenant, collection)
            if spec is None:
                raise VectorNotFoundError(
                    f"there is no vector collection {collection!r}; create_collection makes one"
                )
            self._specs[tenant, collection] = spec
        return tenant, spec

    def _forget(self, tenant_id: str, collection: str) -> None:
        """Called by a provider that finds a known collection gone (another process deleted it)."""
        self._specs.pop((tenant_id, collection), None)


def _info(spec: CollectionSpec, count: int) -> CollectionInfo:
    return CollectionInfo(spec.name, spec.dimension, count, spec.metric, spec.index_type, dict(spec.metadata))
