"""Which index of meaning this is: its name in the backlog, whether its vectors are still there, and what came before it."""

from __future__ import annotations

import hashlib
import logging
from typing import Any, Dict, List, Mapping, Optional, Sequence

from modules.conversation_store import backlog
from modules.conversation_store.backlog import Progress
from modules.conversation_store.maintenance import ConversationMaintenance
from modules.storage.embedders import close_embedder
from modules.storage.embedders_base import Embedder, Matrix, checked_matrix
from modules.storage.operations import Executor
from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.errors import VectorCollectionError
from modules.storage.vectors.retention import FOLLOWS
from modules.store_common.errors import InvalidValueError

__all__ = ["IndexRegistration", "forget_indexes", "former_indexes", "place_of"]

logger = logging.getLogger(__name__)

# How many tenants are looked at to see whether the vector store still has what it was given.
_TENANTS_LOOKED_AT = 20


class IndexRegistration:
    """An embedder in a vector store, as the backlog of messages knows it; its arguments are those of `SemanticIndex`."""

    def __init__(
        self,
        executor: Executor,
        provider: VectorProvider,
        embedder: Embedder,
        *,
        batch_size: int = 128,
        collection_options: Optional[Mapping[str, Any]] = None,
    ) -> None:
        if not 1 <= batch_size <= 1_000:
            raise InvalidValueError("the batch size of the semantic index must be 1 to 1,000")
        self._executor = executor
        self._provider = provider
        self._embedder = embedder
        self._batch_size = batch_size
        self._options = collection_options
        self._collection = ""
        self._place = place_of(provider)
        self._tenants: Dict[str, bool] = {}
        self._is_filled = False
        self._is_registered = False

    @property
    def embedder(self) -> Embedder:
        """What makes the vectors."""
        return self._embedder

    async def collection(self) -> str:
        """Return the name of the collection, the same in every tenant: made of the embedder's name and dimension."""
        if not self._embedder.dimension:
            await self._embed(["dimension"])
        return self._name()

    def _name(self) -> str:
        if not self._collection:
            dimension = self._embedder.dimension
            digest = hashlib.sha256(f"{self._embedder.name}\n{dimension}".encode()).hexdigest()[:12]
            label = "".join(c if c.isalnum() and c.isascii() else "-" for c in self._embedder.name.lower())
            self._collection = f"messages-{label[:40]}-{dimension}-{digest}"
        return self._collection

    async def registration(self) -> str:
        """Return by which name the backlog knows this embedder in this vector store."""
        return f"{await self.collection()}@{self._place}"

    def known_registration(self) -> Optional[str]:
        """Return the same without asking the embedder; None while its dimension is not known."""
        return f"{self._name()}@{self._place}" if self._embedder.dimension else None

    async def register(self) -> None:
        """Begin to note every change of a message, in the transaction of the change. Harmless when done already.

        Messages that are there already follow: the backlog is filled with them step by step by `embed_pending`, and
        again where the vector store has lost its collections. On PostgreSQL the first call needs the owner of the tables
        (it makes triggers).
        """
        known = await self.registration()
        is_new = await self._executor.run(backlog.register, known)
        if (
            is_new
            or not (self._is_registered or self._provider.capabilities.persistent)
            or await self._is_lost()
        ):
            await self._executor.run(backlog.refill, known)
        self._is_filled = False
        self._is_registered = True

    async def _is_lost(self) -> bool:
        """Whether the vector store lacks a collection that it was given."""
        self._tenants.clear()
        known, collection = await self.registration(), await self.collection()
        for tenant_id in await self._executor.run(backlog.tenants, _TENANTS_LOOKED_AT):
            if await self._executor.run(backlog.was_given, known, tenant_id):
                if await self._provider.get_collection(collection, tenant_id=tenant_id) is None:
                    self._tell_loss(tenant_id)
                    return True
        return False

    def _tell_loss(self, tenant_id: str) -> None:
        logger.warning("storage.embedding.lost", extra={"store": self._provider.name, "tenant_id": tenant_id})

    async def former(self) -> List[str]:
        """Return what is still kept in step for a former embedder, or for another vector store, by registration."""
        return await former_indexes(self._executor, await self.registration())

    async def forget_former(self) -> List[str]:
        """Stop noting changes for former embedders and stores; see `forget_indexes`."""
        return await forget_indexes(self._executor, self._provider, await self.former())

    async def unregister(self) -> bool:
        """Stop noting changes for this embedder and forget its backlog; the vectors stay. Whether it was registered."""
        self._is_registered = False
        return await self._executor.run(backlog.unregister, await self.registration())

    async def reindex(self) -> None:
        """Let every message be embedded anew, as after the loss of the vector store; the work is `embed_pending`'s."""
        if not self._is_registered:
            await self.register()
        await self._refill()

    async def _refill(self) -> None:
        await self._executor.run(backlog.refill, await self.registration())
        self._tenants.clear()
        self._is_filled = False

    async def progress(self) -> Progress:
        """Return how many messages wait, how many of them failed, and whether the old ones were all counted in."""
        return await self._executor.run(backlog.progress, await self.registration())

    async def close(self) -> None:
        """Close the embedder, where it has something to close. The provider stays open."""
        await close_embedder(self._embedder)

    async def _embed(self, texts: Sequence[str]) -> Matrix:
        given = await self._embedder.embed(texts)
        return checked_matrix(given, len(texts), self._embedder.dimension, self._embedder.name)

    async def _ensure(self, collection: str, tenant_id: str) -> None:
        if tenant_id in self._tenants:
            return
        if await self._provider.get_collection(collection, tenant_id=tenant_id) is None:
            if await self._executor.run(backlog.was_given, await self.registration(), tenant_id):
                self._tell_loss(tenant_id)
                await self._refill()
            about = {"embedder": self._embedder.name, FOLLOWS: "messages"}
            try:
                await self._provider.create_collection(
                    collection,
                    self._embedder.dimension,
                    metadata=about,
                    index=self._options,
                    tenant_id=tenant_id,
                )
            except VectorCollectionError:
                # another process was faster
                if await self._provider.get_collection(collection, tenant_id=tenant_id) is None:
                    raise
        self._tenants[tenant_id] = True


def place_of(provider: VectorProvider) -> str:
    """Return by which name the backlog knows a vector store: no two stores have the same, and no secret is in it."""
    return f"{provider.name[:40]}-{hashlib.sha256(provider.place.encode()).hexdigest()[:8]}"


async def former_indexes(executor: Executor, known: Optional[str]) -> List[str]:
    """Return the registrations that are not `known`; None: no embedder is configured, all of them."""
    return [state.collection for state in await executor.run(backlog.indexes) if state.collection != known]


async def forget_indexes(
    executor: Executor, provider: VectorProvider, registrations: Sequence[str]
) -> List[str]:
    """Stop noting changes for indexes, and delete their vectors where they are in `provider`; return their names.

    Vectors in another store stay there. A tenant without any conversation may keep an empty collection.
    """
    for registration in registrations:
        await executor.run(backlog.unregister, registration)
        collection, _, place = registration.rpartition("@")
        if place == place_of(provider):
            async for tenant_id in ConversationMaintenance(executor).list_tenants():
                await provider.delete_collection(collection, tenant_id=tenant_id)
    return list(registrations)
