"""`MongoDBBackend`: looking at and administering a MongoDB database. The stores do not need it."""

from __future__ import annotations

import asyncio
import re
import time
from typing import (
    TYPE_CHECKING,
    Any,
    Coroutine,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
)

from pymongo.errors import CollectionInvalid, OperationFailure

from modules.storage.backends.mongodb_abilities import MongoAbilities
from modules.storage.backends.mongodb_errors import DRIVER_ERRORS, translate
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import DeadlineExceededError, InvalidValueError

if TYPE_CHECKING:
    from modules.storage.mongo_pool import MongoPool

__all__ = [
    "MongoDBBackend",
]

T = TypeVar("T")
# What MongoDB takes, less what only its own collections use. Source: MongoDB manual, "Limits", Naming Restrictions.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,119}\Z")
_NAMESPACE_EXISTS = 48
_MAX_ROWS = 100_000


def _checked(name: str) -> str:
    if not isinstance(name, str) or not _NAME.match(name) or name.startswith("system."):
        raise InvalidValueError(
            "the name of a collection is 1 to 120 letters, digits, _, - and ., and begins with a letter or _"
        )
    return name


class MongoDBBackend:
    """What an operator does with a MongoDB database. All methods talk to an initialised pool."""

    def __init__(self, pool: MongoPool) -> None:
        self._pool = pool

    @property
    def abilities(self) -> MongoAbilities:
        """What the server can do."""
        return self._pool.abilities

    async def list_collections(self) -> List[str]:
        """Return the names of all collections, sorted; MongoDB's own are left out."""
        names = await self._call(self._pool.database.list_collection_names())
        return sorted(name for name in names if not name.startswith("system."))

    async def ensure_collection(self, name: str) -> bool:
        """Make the collection unless it exists; return whether it was made."""
        try:
            await self._call_raw(self._pool.database.create_collection(_checked(name)))
        except CollectionInvalid:
            return False
        except OperationFailure as exc:
            if exc.code == _NAMESPACE_EXISTS:
                return False
            raise translate(exc) from exc
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        return True

    async def verify_collections(self, required: Iterable[str]) -> Dict[str, bool]:
        """Return for each of the `required` collections whether it exists."""
        present = set(await self.list_collections())
        return {name: name in present for name in required}

    async def create_index(
        self,
        collection: str,
        keys: Sequence[Tuple[str, int]],
        *,
        name: Optional[str] = None,
        unique: bool = False,
        sparse: bool = False,
    ) -> str:
        """Make an index and return its name; one that exists already is left as it is.

        Args:
            collection: Which.
            keys: Fields and 1 (ascending) or -1.
            name: Its name; None: MongoDB's own.
            unique: No two documents may share the key.
            sparse: Leave out documents without the field.
        """
        if not keys or any(
            not isinstance(field, str) or not field or field.startswith("$") or order not in (1, -1)
            for field, order in keys
        ):
            raise InvalidValueError("an index needs fields with 1 or -1; their names do not begin with $")
        options: Dict[str, Any] = {"unique": unique}
        if name is not None:
            options["name"] = name
        if sparse:
            options["sparse"] = True
        return str(await self._call(self._collection(collection).create_index(list(keys), **options)))

    async def get_index_info(self, collection: str) -> Dict[str, Dict[str, Any]]:
        """Return the indexes by name: their `keys` as (field, direction) pairs, and `unique`."""

        async def look() -> Any:
            return await (await self._collection(collection).list_indexes()).to_list()

        return {
            index["name"]: {
                "keys": [(field, int(order)) for field, order in index["key"].items()],
                "unique": bool(index.get("unique", index["name"] == "_id_")),
            }
            for index in await self._call(look())
        }

    async def get_collection_stats(self, collection: str) -> Dict[str, int]:
        """Return `documents`, `size_bytes`, `storage_bytes`, `index_bytes` and `indexes` of a collection."""
        found = await self._call(self._pool.database.command("collStats", _checked(collection)))
        return {
            "documents": int(found.get("count", 0)),
            "size_bytes": int(found.get("size", 0)),
            "storage_bytes": int(found.get("storageSize", 0)),
            "index_bytes": int(found.get("totalIndexSize", 0)),
            "indexes": int(found.get("nindexes", 0)),
        }

    async def get_database_stats(self) -> Dict[str, int]:
        """Return `collections`, `documents`, `size_bytes`, `storage_bytes` and `index_bytes` of the database."""
        found = await self._call(self._pool.database.command("dbStats"))
        return {
            "collections": int(found.get("collections", 0)),
            "documents": int(found.get("objects", 0)),
            "size_bytes": int(found.get("dataSize", 0)),
            "storage_bytes": int(found.get("storageSize", 0)),
            "index_bytes": int(found.get("indexSize", 0)),
        }

    async def get_database_size(self) -> int:
        """Return the size of the database on disk in bytes, indexes included."""
        found = await self.get_database_stats()
        return found["storage_bytes"] + found["index_bytes"]

    async def drop_collection(self, name: str) -> bool:
        """Remove the collection with everything in it; return whether it was there."""
        if name not in await self.list_collections():
            return False
        await self._call(self._pool.database.drop_collection(_checked(name)))
        return True

    async def aggregate(
        self, collection: str, pipeline: Sequence[Mapping[str, Any]], *, limit: int = 1000
    ) -> List[Dict[str, Any]]:
        """Run an aggregation of your own and return its documents.

        Args:
            collection: Which.
            pipeline: Its stages; a stage that the server does not have is a `StatementError`.
            limit: The most to return, 1 to 100,000.
        """
        if type(limit) is not int or not 1 <= limit <= _MAX_ROWS:
            raise InvalidValueError(f"limit must be an int from 1 to {_MAX_ROWS}")

        async def run() -> Any:
            return await (await self._collection(collection).aggregate(list(pipeline))).to_list(limit)

        found: List[Dict[str, Any]] = await self._call(run())
        return found

    def _collection(self, name: str) -> Any:
        return self._pool.collection(_checked(name))

    async def _call(self, awaitable: Coroutine[Any, Any, T]) -> T:
        try:
            return await self._call_raw(awaitable)
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc

    async def _call_raw(self, awaitable: Coroutine[Any, Any, T]) -> T:
        seconds = max(deadline_after(self._pool.settings.command_timeout_s) - time.monotonic(), 0.001)
        try:
            return await self._pool.finish(awaitable, seconds)
        except asyncio.TimeoutError as exc:
            raise DeadlineExceededError("the MongoDB call did not end within its deadline") from exc
