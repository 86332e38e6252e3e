"""`uow.documents`: JSON documents whose place is MongoDB (or another store of documents), staged in a unit of work.

    async with storage.unit_of_work() as uow:
        await uow.conversations.add_message("c", "user", "bought")
        await uow.documents.put("orders", "7", {"item": "tea"})
        await uow.documents.delete("drafts", "7")
    await uow.applied()

The document becomes a row of `staged_documents` and its key is dirty in the outbox, both in the unit's transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional

from modules.storage.operations import Executor, Store
from modules.storage.staged_documents import (
    DocumentKey,
    digest_of,
    outbox_key,
    put,
    read_many,
    row_of,
    tombstone,
)
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier, encode_json

if TYPE_CHECKING:
    from modules.storage.unit_staging import Staging
    from modules.store_common.tenancy import TenantPolicy

__all__ = ["DOCUMENTS", "UnitDocuments"]

#: The namespace of documents, which have none of their own.
DOCUMENTS = "documents"


class UnitDocuments(Store):
    """Documents of one target, inside a unit of work.

    Args:
        executor: The unit's.
        staging: The unit's.
        tenancy: How the tenant of a call is found.
        target: Name of the target.
    """

    def __init__(self, executor: Executor, staging: Staging, tenancy: TenantPolicy, target: str) -> None:
        super().__init__(executor, tenancy)
        self._staging = staging
        self._target = target

    def _key(self, tenant_id: Optional[str], collection: str, id: str) -> DocumentKey:
        return (
            self._tenant(tenant_id),
            self._target,
            check_identifier(collection, "the collection"),
            DOCUMENTS,
            check_identifier(id, "the id"),
        )

    async def put(
        self, collection: str, id: str, document: Mapping[str, Any], *, tenant_id: Optional[str] = None
    ) -> None:
        """Stage a document: a JSON object, which replaces the one of this id."""
        key = self._key(tenant_id, collection, id)
        if not isinstance(document, Mapping):
            raise InvalidValueError("a document is a JSON object")
        contents = dict(document)
        body = encode_json(contents, "the document")
        await self._executor.run(put, [row_of(key, body, digest_of(contents))])
        self._staging.add(outbox_key(key))

    async def delete(self, collection: str, id: str, *, tenant_id: Optional[str] = None) -> None:
        """Stage that a document is gone, whether it was there or not."""
        key = self._key(tenant_id, collection, id)
        await self._executor.run(put, [tombstone(key)])
        self._staging.add(outbox_key(key))

    async def get(
        self, collection: str, id: str, *, tenant_id: Optional[str] = None
    ) -> Optional[Dict[str, Any]]:
        """Return a document as it was last staged, by this unit or one before; None for none, or a deleted one."""
        (found,) = await self._executor.run(read_many, [self._key(tenant_id, collection, id)])
        if found is None or found.deleted:
            return None
        contents: Dict[str, Any] = found.contents
        return contents
