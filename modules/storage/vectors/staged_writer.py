"""What a relay does with documents staged for a vector store, and what reconciliation reads of it."""

from __future__ import annotations

import asyncio
from typing import Awaitable, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from modules.storage.outbox_targets import FoundDocument, Outcome
from modules.storage.staged_documents import StagedDocument, digest_of
from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.errors import VectorCollectionError, VectorNotFoundError
from modules.storage.vectors.models import VectorDocument
from modules.storage.vectors.staged import document_of, spec_of

__all__ = ["VectorWriter"]

_Numbered = List[Tuple[int, StagedDocument]]


class VectorWriter:
    """`outbox_targets.DocumentWriter` over a vector store.

    Args:
        provider: The store.
        collection: Returns the home row of a collection (tenant, name), None where there is none.
    """

    def __init__(
        self,
        provider: VectorProvider,
        collection: Callable[[str, str], Awaitable[object]],
    ) -> None:
        self._provider = provider
        self._collection = collection
        self._opening: Optional[asyncio.Task[None]] = None

    async def put(self, documents: Sequence[StagedDocument]) -> Sequence[Outcome]:
        """Store and remove documents, those of one collection and namespace in one call each."""
        await self._open()
        outcomes: List[Outcome] = [None] * len(documents)
        groups: Dict[Tuple[str, str, str], _Numbered] = {}
        for position, document in enumerate(documents):
            tenant_id, _, collection, namespace, _ = document.key
            groups.setdefault((tenant_id, collection, namespace), []).append((position, document))
        for (tenant_id, collection, namespace), members in sorted(groups.items()):
            try:
                if not namespace:
                    await self._put_collection(tenant_id, members[-1][1])
                else:
                    await self._put_documents(tenant_id, collection, namespace, members, outcomes)
            except Exception as exc:  # noqa: BLE001 - told of each of them; others go on
                for position, _ in members:
                    outcomes[position] = exc
        return outcomes

    async def _open(self) -> None:
        """Open the store, in a task of its own: a delivery that is out of time does not make the next one begin anew."""
        if self._provider.is_initialized:
            return
        if self._opening is None or self._opening.done():
            self._opening = asyncio.ensure_future(self._provider.require_open())
            self._opening.add_done_callback(_look_at)
        await asyncio.shield(self._opening)

    async def _put_collection(self, tenant_id: str, staged: StagedDocument) -> None:
        spec = spec_of(staged)
        if await self._provider.get_collection(spec.name, tenant_id=tenant_id) is not None:
            return
        try:
            await self._provider.create_collection(
                spec.name,
                spec.dimension,
                metric=spec.metric,
                metadata=spec.metadata,
                index=spec.options,
                tenant_id=tenant_id,
            )
        except VectorCollectionError:
            # another relay may have been faster
            if await self._provider.get_collection(spec.name, tenant_id=tenant_id) is None:
                raise

    async def _put_documents(
        self,
        tenant_id: str,
        collection: str,
        namespace: str,
        members: _Numbered,
        outcomes: List[Outcome],
    ) -> None:
        wanted: List[VectorDocument] = []
        for position, staged in members:
            if staged.deleted:
                continue
            try:
                wanted.append(document_of(staged))
            except Exception as exc:  # noqa: BLE001 - one that cannot be read harms no other
                outcomes[position] = exc
        gone = [staged.key[4] for _, staged in members if staged.deleted]
        try:
            await self._write(tenant_id, collection, namespace, wanted, gone)
        except VectorNotFoundError:
            home = await self._collection(tenant_id, collection)
            if not isinstance(home, StagedDocument):
                raise
            await self._put_collection(tenant_id, home)
            await self._write(tenant_id, collection, namespace, wanted, gone)

    async def _write(
        self, tenant_id: str, collection: str, namespace: str, wanted: List[VectorDocument], gone: List[str]
    ) -> None:
        if wanted:
            await self._provider.upsert(collection, wanted, namespace=namespace, tenant_id=tenant_id)
        if gone:
            await self._provider.delete(collection, gone, namespace=namespace, tenant_id=tenant_id)

    async def scan(
        self, tenant_id: str, collection: str, namespace: str, after_id: str, limit: int
    ) -> List[FoundDocument]:
        """Return the next documents by id; nothing where there is no such collection."""
        await self._provider.require_open()
        spec = await self._provider._read_collection(tenant_id, collection)
        if spec is None:
            self._provider._forget(tenant_id, collection)
            return []
        found = await self._provider._scroll(tenant_id, spec, namespace, None, after_id or None, limit)
        return [FoundDocument(document.id, _digest(document)) for document in found]


def _look_at(opening: asyncio.Task[None]) -> None:
    # whoever waits gets the error; when nobody does any more, the next delivery meets it again
    if not opening.cancelled():
        opening.exception()


def _digest(document: VectorDocument) -> str:
    vector = np.asarray(document.vector, dtype="<f4").tobytes()
    return digest_of({"content": document.content, "metadata": dict(document.metadata)}, vector)
