"""What stores in MongoDB are written against: `Documents`, and the table of forms that an executor looks operations up in.

A store has one public class, whatever the database: it checks arguments, encodes values and runs operations. An operation
of an SQL store has a second form over documents, made known by `forms.form_of(operation)`:

    FORMS = DocumentForms()

    @FORMS.form_of(op.exists)
    async def exists(db: Documents, tenant_id: str, namespace: str, key: str) -> bool:
        ...

and `MongoExecutor.run(op.exists, ...)` runs that. No driver is known here.

Rules of the forms: an invariant is a unique index or the condition of a change of ONE document, which MongoDB applies
atomically; several changes are ordered so that a process that dies between two of them leaves what the next one repairs.
Instants are whole microseconds since 1970 (MongoDB's own dates keep milliseconds) by the server's clock.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import (
    Any,
    Awaitable,
    Callable,
    Coroutine,
    Dict,
    Hashable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from typing_extensions import Protocol

from modules.storage.operations import Operation
from modules.store_common.backoff import full_jitter
from modules.store_common.clock import from_microseconds, to_microseconds

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "NEVER",
    "SEPARATOR",
    "Document",
    "DocumentForms",
    "Documents",
    "Form",
    "IndexModel",
    "Sort",
    "Tries",
    "instant",
    "key_of",
    "micros",
]

Document = Dict[str, Any]
Sort = Sequence[Tuple[str, int]]

#: Between the parts of a key. No identifier holds a control character, so keys sort as their parts do.
SEPARATOR = "\x1f"
#: The instant of what never happens, later than all others, so that one comparison serves both.
NEVER = 2**63 - 1
#: MongoDB takes documents of 16 MiB; this leaves room for our own fields beside a value.
#: Source: MongoDB manual, "Limits and Thresholds", BSON Document Size.
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024 - 64 * 1024

_MOST_TRIES = 50


def key_of(*parts: Any) -> str:
    """Return the `_id` of what `parts` name; the tenant comes first."""
    return SEPARATOR.join(map(str, parts))


def micros(value: Optional[datetime]) -> Optional[int]:
    """Return an instant as it is stored."""
    return None if value is None else to_microseconds(value)


def instant(value: Optional[int]) -> Any:
    """Return a stored instant as it is given out."""
    return None if value is None else from_microseconds(value)


class Tries:
    """The tries of a change that others may overtake: `async for _ in Tries()`, fifty at most.

    Before each but the first it stands back for a moment of chance: two who try again at once can keep in step, and one of
    them is overtaken each time.
    """

    def __init__(self) -> None:
        self._made = 0

    def __aiter__(self) -> Tries:
        return self

    async def __anext__(self) -> int:
        """Return how many tries there were before."""
        if self._made == _MOST_TRIES:
            raise StopAsyncIteration
        if self._made:
            await asyncio.sleep(full_jitter(min(self._made, 7), base_s=0.002, cap_s=0.1))
        self._made += 1
        return self._made - 1


class Documents(Protocol):
    """The collections of one database. Every call ends by the deadline of the call that it is part of."""

    async def now(self) -> int:
        """Return the server's time in microseconds since 1970."""
        ...

    async def find_one(
        self,
        collection: str,
        where: Mapping[str, Any],
        *,
        sort: Optional[Sort] = None,
        fields: Optional[Sequence[str]] = None,
    ) -> Optional[Document]:
        """Return the first document, or None."""
        ...

    async def find(
        self,
        collection: str,
        where: Mapping[str, Any],
        *,
        sort: Optional[Sort] = None,
        limit: int = 0,
        skip: int = 0,
        fields: Optional[Sequence[str]] = None,
    ) -> List[Document]:
        """Return the documents; `limit` 0 is all."""
        ...

    async def insert(self, collection: str, documents: Sequence[Document]) -> None:
        """Add documents in order, up to the first that breaks a unique index: `AlreadyExistsError`."""
        ...

    async def change(
        self,
        collection: str,
        where: Mapping[str, Any],
        change: Mapping[str, Any],
        *,
        upsert: bool = False,
        sort: Optional[Sort] = None,
        fields: Optional[Sequence[str]] = None,
    ) -> Optional[Document]:
        """Change one document atomically and return it as it is then; None: there is none such.

        With `upsert` one is added instead; `AlreadyExistsError` when its key is taken by one that does not fit `where`.
        """
        ...

    async def update(
        self,
        collection: str,
        where: Mapping[str, Any],
        change: Mapping[str, Any],
        *,
        upsert: bool = False,
        many: bool = False,
    ) -> int:
        """Change one document atomically, or each of many; return how many fitted `where`."""
        ...

    async def upsert_each(
        self, collection: str, changes: Sequence[Tuple[Mapping[str, Any], Mapping[str, Any]]]
    ) -> None:
        """Change, or add, a document for each (where, change), in any order; those whose key is taken are left alone."""
        ...

    async def update_each(
        self, collection: str, changes: Sequence[Tuple[Mapping[str, Any], Mapping[str, Any]]]
    ) -> int:
        """Change the document of each (where, change) that there is, in any order; return how many there were."""
        ...

    async def delete(self, collection: str, where: Mapping[str, Any], *, many: bool = False) -> int:
        """Remove one document, or all that fit; return how many were removed."""
        ...

    async def total(self, collection: str, where: Mapping[str, Any], field: str) -> int:
        """Return the sum of an integer field."""
        ...

    async def count(self, collection: str, where: Mapping[str, Any], *, limit: int = 0) -> int:
        """Return how many documents fit, at most `limit`; 0: all."""
        ...

    async def run(self, operation: Operation[Any, Any], *args: Any) -> Any:
        """Run another operation's form as part of this one."""
        ...

    def remembered(self, key: Hashable) -> Any:
        """Return what `remember` was last told about `key` in this process, None for nothing: a hint, never the truth."""
        ...

    def remember(self, key: Hashable, value: Any) -> None:
        """Keep a hint; None forgets it."""
        ...


_Function = Callable[..., Coroutine[Any, Any, Any]]
#: Runs the calls of one key that wait together: gets their arguments, returns as many outcomes, in order.
_Batch = Callable[[Documents, Sequence[Tuple[Any, ...]]], Awaitable[Sequence[Union[Any, BaseException]]]]


class Form:
    """An operation's form over documents.

    Attributes:
        function: `async def f(db, ...)`.
        turn: Of the arguments of a call; calls of this process with the same turn are run one after the other, so that
            they do not lose time by refusing each other. None: at once.
        batch: Runs many waiting calls of one turn together.
    """

    __slots__ = ("batch", "function", "turn")

    def __init__(
        self,
        function: _Function,
        turn: Optional[Callable[..., Hashable]] = None,
        batch: Optional[_Batch] = None,
    ) -> None:
        self.function = function
        self.turn = turn
        self.batch = batch


class IndexModel:
    """An index of a store.

    Args:
        collection: Its collection.
        name: Its name, fixed for ever: another definition gets another name and a new schema version.
        keys: Fields and 1 or -1.
        unique: Whether no two documents may share the key.
        sparse: Leave documents without the (only) field out.
    """

    __slots__ = ("collection", "keys", "name", "sparse", "unique")

    def __init__(
        self, collection: str, name: str, keys: Sort, *, unique: bool = False, sparse: bool = False
    ) -> None:
        self.collection = collection
        self.name = name
        self.keys = list(keys)
        self.unique = unique
        self.sparse = sparse


class DocumentForms:
    """The forms of a store's operations, and the collections and indexes that they need.

    Args:
        store: Its name, under which the version of its indexes is kept.
        version: Of `indexes`; raised with every change of them.
        collections: Those that must exist.
        indexes: In the order in which they are made.
        dropped: (collection, name) of indexes of earlier versions.
    """

    def __init__(
        self,
        store: str,
        version: int,
        collections: Sequence[str],
        indexes: Sequence[IndexModel],
        dropped: Sequence[Tuple[str, str]] = (),
    ) -> None:
        self.store = store
        self.version = version
        self.collections = tuple(collections)
        self.indexes = tuple(indexes)
        self.dropped = tuple(dropped)
        self._forms: Dict[Operation[Any, Any], Form] = {}

    def form_of(
        self,
        operation: Operation[Any, Any],
        *,
        turn: Optional[Callable[..., Hashable]] = None,
        batch: Optional[_Batch] = None,
    ) -> Callable[[_Function], _Function]:
        """Make a function the form of `operation`; see `Form`."""

        def decorate(function: _Function) -> _Function:
            self._forms[operation] = Form(function, turn, batch)
            return function

        return decorate

    def get(self, operation: Operation[Any, Any]) -> Optional[Form]:
        """Return the form of `operation`, None when it has none."""
        return self._forms.get(operation)

    @property
    def operations(self) -> List[Operation[Any, Any]]:
        """The operations that have a form."""
        return list(self._forms)
