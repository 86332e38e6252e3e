"""Collections inside Chroma: how they are made, found again and read, row by row."""

from __future__ import annotations

from functools import partial
from typing import Any, AsyncIterator, Dict, List, Optional, Tuple

from modules.storage.vectors.checks import CollectionSpec
from modules.storage.vectors.chroma_client import ChromaLink, ChromaNotFoundError
from modules.storage.vectors.chroma_names import REBUILD_SUFFIX, physical_name
from modules.storage.vectors.chroma_rows import RowSpace
from modules.storage.vectors.errors import VectorCollectionError
from modules.storage.vectors.models import DistanceMetric
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import decode_json, encode_json

__all__ = ["INDEX_OPTIONS", "Space", "check_options", "spec_metadata", "spec_of"]

#: Index option: (Chroma's name, smallest, largest, our default).
INDEX_OPTIONS: Dict[str, Tuple[str, int, int, int]] = {
    "m": ("max_neighbors", 2, 100, 16),
    "ef_construction": ("ef_construction", 4, 2000, 100),
    "ef_search": ("ef_search", 1, 10_000, 200),
    "sync_threshold": ("sync_threshold", 2, 1_000_000, 1000),
}
_SPACES = {
    DistanceMetric.COSINE: "cosine",
    DistanceMetric.EUCLIDEAN: "l2",
    DistanceMetric.DOT_PRODUCT: "ip",
    DistanceMetric.INNER_PRODUCT: "ip",
}
_PAGE = 100


def check_options(spec: CollectionSpec) -> None:
    """Refuse an index option that is not a whole number in its range.

    Raises:
        InvalidValueError: names it.
    """
    for name, value in spec.options.items():
        _, least, most, _ = INDEX_OPTIONS[name]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InvalidValueError(f"the index option {name!r} is a whole number of {least} to {most}")


def spec_metadata(tenant_id: str, spec: CollectionSpec) -> Dict[str, Any]:
    """Return the metadata of Chroma's collection, from which `spec_of` reads the spec again."""
    return {
        "atlas_format": 1,
        "atlas_tenant": tenant_id,
        "atlas_name": spec.name,
        "atlas_spec": str(
            encode_json(
                {
                    "dimension": spec.dimension,
                    "metric": spec.metric.value,
                    "metadata": dict(spec.metadata),
                    "options": dict(spec.options),
                },
                "the collection's metadata",
            )
        ),
    }


def spec_of(collection: Any) -> Optional[Tuple[str, CollectionSpec]]:
    """Return tenant and spec of Chroma's collection; None when it is not one of ours."""
    own = collection.metadata or {}
    if own.get("atlas_format") is None:
        return None
    try:
        given = decode_json(own["atlas_spec"])
        metric = DistanceMetric(given["metric"])
        spec = CollectionSpec(
            own["atlas_name"], given["dimension"], metric, "hnsw", given["metadata"], given["options"]
        )
        return own["atlas_tenant"], spec
    except (KeyError, TypeError, ValueError) as exc:
        raise VectorCollectionError(
            "the description of a Chroma collection of ours is damaged; delete it with Chroma's own client and "
            "store its documents again"
        ) from exc


def _configuration(spec: CollectionSpec) -> Dict[str, Any]:
    hnsw: Dict[str, Any] = {"space": _SPACES[spec.metric]}
    for name, (theirs, _, _, default) in INDEX_OPTIONS.items():
        hnsw[theirs] = spec.options.get(name, default)
    return {"hnsw": hnsw}


class Space(RowSpace):
    """Chroma's collections by our names.

    Args:
        link: The way to Chroma.
    """

    def __init__(self, link: ChromaLink) -> None:
        super().__init__(link)
        self._handles: Dict[Tuple[str, str], Any] = {}

    async def create(self, tenant_id: str, spec: CollectionSpec, *, suffix: str = "") -> Any:
        """Make a collection and return Chroma's handle."""
        name = physical_name(tenant_id, spec.name) + suffix
        client = self.link.client
        handle = await self.link.run(
            "create a collection",
            lambda: client.create_collection(
                name,
                configuration=_configuration(spec),
                metadata=spec_metadata(tenant_id, spec),
                embedding_function=None,
            ),
        )
        if not suffix:
            self._handles[tenant_id, spec.name] = handle
        return handle

    async def delete(self, tenant_id: str, name: str) -> bool:
        """Delete a collection; whether it was there."""
        self._handles.pop((tenant_id, name), None)
        physical = physical_name(tenant_id, name)
        await self.drop(physical + REBUILD_SUFFIX)
        self.link.damaged.pop(physical, None)
        return await self.drop(physical)

    async def drop(self, physical: str) -> bool:
        """Delete by Chroma's name; whether it was there."""
        client, copies = self.link.client, self.link.copies

        def delete() -> Any:
            if copies is None:
                return client.delete_collection(physical)
            handle = client.get_collection(physical, embedding_function=None)
            client.delete_collection(physical)
            return copies.drop(handle.id)

        try:
            await self.link.run("delete a collection", delete)
        except ChromaNotFoundError:
            return False
        return True

    async def find(self, tenant_id: str, name: str) -> Optional[CollectionSpec]:
        """Read a collection's spec, and keep its handle; None when there is none."""
        physical = physical_name(tenant_id, name)
        handle = await self._open(physical)
        if handle is None:
            handle = await self._finish_rebuild(physical)
        found = None if handle is None else spec_of(handle)
        if handle is None or found is None or (found[0], found[1].name) != (tenant_id, name):
            self._handles.pop((tenant_id, name), None)
            return None
        self._handles[tenant_id, name] = handle
        return found[1]

    async def _open(self, physical: str) -> Any:
        client = self.link.client
        try:
            return await self.link.run(
                "read a collection", lambda: client.get_collection(physical, embedding_function=None)
            )
        except ChromaNotFoundError:
            return None

    async def _finish_rebuild(self, physical: str) -> Any:
        """A rebuild deletes the old collection when the copy is whole; if it died then, only the name is missing."""
        copy = await self._open(physical + REBUILD_SUFFIX)
        if copy is None:
            return None
        await self.link.run("rename a collection", lambda: copy.modify(name=physical))
        return copy

    async def all(self, tenant_id: str) -> List[CollectionSpec]:
        """Return the specs of a tenant's collections, their handles kept."""
        found: Dict[str, CollectionSpec] = {}
        async for handle in self._every():
            own = spec_of(handle)
            if own is None or own[0] != tenant_id:
                continue
            spec = own[1]
            if handle.name != physical_name(tenant_id, spec.name):
                # the copy of a rebuild counts only where the original is gone already
                if spec.name not in found and await self.find(tenant_id, spec.name) is not None:
                    found[spec.name] = spec
                continue
            self._handles[tenant_id, spec.name] = handle
            found[spec.name] = spec
        return list(found.values())

    async def tenants(self) -> List[str]:
        """Return the tenants that have collections."""
        return sorted(
            {own[0] async for handle in self._every() for own in [spec_of(handle)] if own is not None}
        )

    async def _every(self) -> AsyncIterator[Any]:
        client = self.link.client
        offset = 0
        while True:
            page = await self.link.run(
                "list the collections",
                partial(client.list_collections, limit=_PAGE, offset=offset),
            )
            for handle in page:
                yield handle
            if len(page) < _PAGE:
                return
            offset += len(page)

    async def handle(self, tenant_id: str, spec: CollectionSpec) -> Any:
        """Return Chroma's handle of a collection.

        Raises:
            ChromaNotFoundError: it is gone.
        """
        handle = self._handles.get((tenant_id, spec.name))
        if handle is None and await self.find(tenant_id, spec.name) is not None:
            handle = self._handles.get((tenant_id, spec.name))
        if handle is None:
            raise ChromaNotFoundError("the collection is gone")
        return handle

    async def described(self, physical: str) -> Tuple[str, Optional[CollectionSpec]]:
        """Return tenant and spec of a collection by Chroma's name; no spec when it is not one of ours."""
        handle = await self._open(physical)
        found = None if handle is None else spec_of(handle)
        return ("", None) if found is None else found

    def forget(self, tenant_id: Optional[str] = None, name: Optional[str] = None) -> None:
        """Forget one handle, or all."""
        if tenant_id is None or name is None:
            self._handles.clear()
        else:
            self._handles.pop((tenant_id, name), None)
