"""The target `mongo` of units of work: documents staged by `uow.documents`, brought to MongoDB by the relay.

All of them stand in `atlas_documents`: `_id` of tenant, collection and id, the body as JSON text (so that any key and any
number comes back as it was written), the version that was staged. A document is replaced only by a later version, in one
conditional change, and one that was deleted stays as a tombstone: so late and repeated deliveries do no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

from modules.storage.documents import SEPARATOR, DocumentForms, key_of
from modules.storage.outbox_targets import DocumentTarget, FoundDocument, Outcome, Target
from modules.storage.staged_documents import StagedDocument, digest_of
from modules.store_common.errors import AlreadyExistsError, StorageError
from modules.store_common.values import decode_json

if TYPE_CHECKING:
    from modules.storage.backends.mongodb_executor import PooledDocuments
    from modules.storage.operations import Executor

__all__ = ["DOCUMENTS", "DOCUMENT_FORMS", "MONGO_TARGET", "MongoWriter", "mongo_target"]

MONGO_TARGET = "mongo"
DOCUMENTS = "atlas_documents"
#: No operations: only the collection.
DOCUMENT_FORMS = DocumentForms("documents", 1, [DOCUMENTS], [])


class MongoWriter:
    """`outbox_targets.DocumentWriter` over MongoDB.

    Args:
        documents: The collections.
    """

    def __init__(self, documents: PooledDocuments) -> None:
        self._documents = documents

    async def put(self, documents: Sequence[StagedDocument]) -> Sequence[Outcome]:
        """Store documents and tombstones, each by itself."""
        outcomes: List[Outcome] = []
        for document in documents:
            try:
                await self._put(document)
                outcomes.append(None)
            except StorageError as exc:
                outcomes.append(exc)
        return outcomes

    async def _put(self, staged: StagedDocument) -> None:
        tenant_id, _, collection, namespace, id_ = staged.key
        if not namespace:
            # a collection by itself: it comes into being with its first document
            return
        place = key_of(tenant_id, collection, id_)
        new = {
            "t": tenant_id,
            "collection": collection,
            "id": id_,
            "v": staged.version,
            "body": None if staged.deleted else staged.body,
        }
        try:
            await self._documents.update(
                DOCUMENTS, {"_id": place, "v": {"$lt": staged.version}}, {"$set": new}, upsert=True
            )
        except AlreadyExistsError:
            # this version is there, or a later one
            return

    async def scan(
        self, tenant_id: str, collection: str, namespace: str, after_id: str, limit: int
    ) -> List[FoundDocument]:
        """Return the next documents by id."""
        places = {
            "$gt": key_of(tenant_id, collection, after_id),
            "$lt": key_of(tenant_id, collection) + chr(ord(SEPARATOR) + 1),
        }
        where = {"_id": places, "body": {"$ne": None}}
        found = await self._documents.find(DOCUMENTS, where, sort=[("_id", 1)], limit=limit)
        return [FoundDocument(item["id"], digest_of(decode_json(item["body"]))) for item in found]

    async def get(self, tenant_id: str, collection: str, id_: str) -> Optional[Dict[str, Any]]:
        """Return a document as it stands in MongoDB, None when there is none."""
        found = await self._documents.find_one(DOCUMENTS, {"_id": key_of(tenant_id, collection, id_)})
        if found is None or found["body"] is None:
            return None
        contents: Dict[str, Any] = decode_json(found["body"])
        return contents


def mongo_target(executor: Executor, writer: MongoWriter) -> Target:
    """Return the target for the outbox.

    Args:
        executor: Of the SQL database, where staged documents have their home.
        writer: Over MongoDB.
    """
    target = DocumentTarget(executor, writer)
    return Target(MONGO_TARGET, target.apply, target.apply_many, writer=lambda: writer)
