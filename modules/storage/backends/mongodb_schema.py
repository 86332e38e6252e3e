"""Collections and indexes of the stores, made by `ensure_schemas()`, with a version for each store.

`atlas_schema` holds one document per store: the version of its indexes. It is raised only after all of them exist, so a
process that dies between makes the rest at its next start; making what exists already does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict

from pymongo.errors import CollectionInvalid, OperationFailure

from modules.storage.backends.mongodb_errors import DRIVER_ERRORS, translate
from modules.storage.documents import DocumentForms
from modules.store_common.errors import StatementError

if TYPE_CHECKING:
    from modules.storage.mongo_pool import MongoPool

__all__ = [
    "VERSIONS",
    "ensure_store",
    "store_version",
]

VERSIONS = "atlas_schema"
_INDEX_NOT_FOUND = 27
_NAMESPACE_NOT_FOUND = 26
_NAMESPACE_EXISTS = 48


async def store_version(pool: MongoPool, store: str) -> int:
    """Return the version of a store's indexes in this database, 0 when they were never made."""
    try:
        found = await pool.collection(VERSIONS).find_one({"_id": store})
    except DRIVER_ERRORS as exc:
        raise translate(exc) from exc
    return 0 if found is None else int(found["version"])


async def ensure_store(pool: MongoPool, forms: DocumentForms) -> None:
    """Make the store's collections and indexes, drop those that a later version left behind, and note its version.

    Raises:
        StatementError: the database is from a newer release; nothing was changed.
    """
    version = await store_version(pool, forms.store)
    if version == forms.version:
        return
    if version > forms.version:
        raise StatementError(
            f"the {forms.store} store's indexes in MongoDB are of version {version}, from a newer release than this one "
            f"(version {forms.version}); upgrade atlas-storage"
        )
    try:
        await _make(pool, forms)
        # the larger of two versions stays, whoever comes last
        await pool.collection(VERSIONS).update_one(
            {"_id": forms.store}, {"$max": {"version": forms.version}}, upsert=True
        )
    except DRIVER_ERRORS as exc:
        raise translate(exc) from exc


async def _make(pool: MongoPool, forms: DocumentForms) -> None:
    for name in forms.collections:
        try:
            await pool.database.create_collection(name)
        except CollectionInvalid:
            continue
        except OperationFailure as exc:
            if exc.code != _NAMESPACE_EXISTS:
                raise
    for index in forms.indexes:
        options: Dict[str, Any] = {"name": index.name, "unique": index.unique}
        if index.sparse:
            options["sparse"] = True
        await pool.collection(index.collection).create_index(index.keys, **options)
    for collection, name in forms.dropped:
        try:
            await pool.collection(collection).drop_index(name)
        except OperationFailure as exc:
            if exc.code not in (_INDEX_NOT_FOUND, _NAMESPACE_NOT_FOUND):
                raise
