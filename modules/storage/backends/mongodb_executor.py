"""Runs operations in their forms over documents (see `modules.storage.documents`), on a `MongoPool`.

Calls of one turn that wait together are run one after the other, or together where the form has a batch. That is courtesy
among the calls of this process and no protection: other processes take no part in it, so every form is right without it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import (
    TYPE_CHECKING,
    Any,
    Awaitable,
    Dict,
    Hashable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
)

from modules.storage.backends.mongodb_errors import DRIVER_ERRORS, cut_off, translate
from modules.storage.documents import Document, DocumentForms, Form, Sort
from modules.storage.operations import Operation
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import DeadlineExceededError, NotConfiguredError

if TYPE_CHECKING:
    from modules.storage.mongo_pool import MongoPool

__all__ = [
    "MongoExecutor",
    "PooledDocuments",
    "form_or_refuse",
]

T = TypeVar("T")

_DUPLICATE_KEY = 11000
_HINTS = 4096
# Calls of one turn that are run together at most.
_TOGETHER = 64
# FerretDB 1 keeps a connection to its database for each statement of one command, and stands still for ever when it
# has no more: it has 100. Source: its internal/handler/msg_update.go, a `defer` in a loop.
_STATEMENTS_OF_FERRETDB = 50


class MongoExecutor:
    """Runs the operations of one store.

    Args:
        pool: An initialised pool.
        forms: Of the store's operations.
    """

    dialect = "mongodb"

    def __init__(self, pool: MongoPool, forms: DocumentForms) -> None:
        self._pool = pool
        self._forms = forms
        self._documents = PooledDocuments(pool, forms)
        self._turns: Dict[Tuple[asyncio.AbstractEventLoop, Hashable], _Turn] = {}

    @property
    def pool(self) -> MongoPool:
        """The pool that it runs on."""
        return self._pool

    @property
    def forms(self) -> DocumentForms:
        """The forms that it runs."""
        return self._forms

    @property
    def documents(self) -> PooledDocuments:
        """The collections, for administration and tests."""
        return self._documents

    async def run(self, operation: Operation[Any, Any], *args: Any, **kwargs: Any) -> Any:
        """Run `operation` and return its result once a majority of the servers has it.

        Raises:
            NotConfiguredError: the operation has no form over documents.
            DeadlineExceededError: it took longer than `mongo.command_timeout_s`, or than a surrounding `deadline`.
        """
        form = form_or_refuse(self._forms, operation)
        seconds = deadline_after(self._pool.settings.command_timeout_s) - time.monotonic()
        if seconds <= 0:
            raise _too_late()
        try:
            if form.turn is None:
                return await self._pool.finish(form.function(self._documents, *args, **kwargs), seconds)
            return await self._in_turn(form, args, seconds)
        except asyncio.TimeoutError as exc:
            raise _too_late() from exc

    async def _in_turn(self, form: Form, args: Tuple[Any, ...], seconds: float) -> Any:
        loop = asyncio.get_running_loop()
        key = (loop, form.turn(*args) if form.turn is not None else None)
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = _Turn()
        call = _Call(form, args, loop.create_future())
        turn.waiting.append(call)
        if turn.task is None:
            turn.task = loop.create_task(self._serve(key, turn), name="atlas-storage-mongo-turn")
            self._pool.track(turn.task)
        timer = loop.call_later(seconds, call.give_up)
        try:
            return await call.outcome
        finally:
            timer.cancel()

    async def _serve(self, key: Any, turn: _Turn) -> None:
        """Serve the calls of one turn until none waits; never raises."""
        try:
            while turn.waiting:
                calls = [call for call in turn.take() if not call.outcome.done()]
                if calls:
                    await self._serve_calls(calls)
        except asyncio.CancelledError:
            for call in turn.waiting:
                call.settle(cut_off())
            raise
        finally:
            self._turns.pop(key, None)
            for call in turn.waiting:
                # only when the loop is being closed under us
                call.outcome.cancel()

    async def _serve_calls(self, calls: List[_Call]) -> None:
        form = calls[0].form
        seconds = self._pool.settings.command_timeout_s
        try:
            if form.batch is not None and len(calls) > 1:
                outcomes = await _for(form.batch(self._documents, [call.args for call in calls]), seconds)
            else:
                outcomes = [await _for(form.function(self._documents, *calls[0].args), seconds)]
        except asyncio.TimeoutError:
            outcomes = [_too_late() for _ in calls]
        except asyncio.CancelledError:
            for call in calls:
                call.settle(cut_off())
            raise
        except Exception as exc:  # noqa: BLE001 - raised to the callers who wait
            outcomes = [exc for _ in calls]
        for call, outcome in zip(calls, outcomes):
            call.settle(outcome)


async def _for(work: Awaitable[T], seconds: float) -> T:
    """Await `work` for at most `seconds`, as `within` does but in the task that is running, which must be one of ours.

    A task more for each call costs as much as anything else that we do for it.

    Raises:
        asyncio.TimeoutError: it took longer, and was cancelled.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - coroutines run in tasks
    late = False

    def end() -> None:
        nonlocal late
        late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        return await work
    except asyncio.CancelledError:
        if late:
            raise asyncio.TimeoutError from None
        raise
    finally:
        timer.cancel()


class _Call:
    __slots__ = ("args", "form", "outcome")

    def __init__(self, form: Form, args: Tuple[Any, ...], outcome: asyncio.Future[Any]) -> None:
        self.form = form
        self.args = args
        self.outcome = outcome

    def give_up(self) -> None:
        self.settle(asyncio.TimeoutError())

    def settle(self, outcome: Any) -> None:
        if self.outcome.done():
            return
        if isinstance(outcome, BaseException):
            self.outcome.set_exception(outcome)
        else:
            self.outcome.set_result(outcome)


class _Turn:
    """The calls that wait for one turn, in order."""

    def __init__(self) -> None:
        self.waiting: List[_Call] = []
        self.task: Optional[asyncio.Task[None]] = None

    def take(self) -> List[_Call]:
        """Return the next calls of one form: many where it has a batch."""
        form = self.waiting[0].form
        count = 1
        if form.batch is not None:
            while count < min(len(self.waiting), _TOGETHER) and self.waiting[count].form is form:
                count += 1
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError(
        "the MongoDB call did not end within its deadline; a write may or may not have been applied"
    )


def form_or_refuse(forms: DocumentForms, operation: Operation[Any, Any]) -> Form:
    """Return the form of `operation`.

    Raises:
        NotConfiguredError: there is none.
    """
    form = forms.get(operation)
    if form is None:
        raise NotConfiguredError(
            f"{operation.name} is not available where the {forms.store} store is in MongoDB; keep it in SQL for that"
        )
    return form


class PooledDocuments:
    """`Documents` on the pool's client of the running loop; the driver's errors are translated here."""

    def __init__(self, pool: MongoPool, forms: DocumentForms) -> None:
        self._pool = pool
        self._forms = forms
        self._hints: OrderedDict[Hashable, Any] = OrderedDict()

    async def now(self) -> int:
        return await self._pool.server_time()

    async def find_one(
        self,
        collection: str,
        where: Mapping[str, Any],
        *,
        sort: Optional[Sort] = None,
        fields: Optional[Sequence[str]] = None,
    ) -> Optional[Document]:
        try:
            found: Optional[Document] = await self._pool.collection(collection).find_one(
                where, fields, sort=sort
            )
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        return found

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
        cursor = self._pool.collection(collection).find(where, fields, sort=sort, limit=limit, skip=skip)
        try:
            found: List[Document] = await cursor.to_list()
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        return found

    async def insert(self, collection: str, documents: Sequence[Document]) -> None:
        try:
            if len(documents) == 1:
                await self._pool.collection(collection).insert_one(documents[0])
            else:
                await self._pool.collection(collection).insert_many(documents)
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc

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
        try:
            found: Optional[Document] = await self._pool.collection(collection).find_one_and_update(
                where,
                change,
                fields if self._pool.abilities.projected_changes else None,
                sort=sort,
                upsert=upsert,
                return_document=True,
            )
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        return found

    async def update(
        self,
        collection: str,
        where: Mapping[str, Any],
        change: Mapping[str, Any],
        *,
        upsert: bool = False,
        many: bool = False,
    ) -> int:
        target = self._pool.collection(collection)
        try:
            if many:
                result = await target.update_many(where, change)
            else:
                result = await target.update_one(where, change, upsert=upsert)
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        return int(result.matched_count) + (0 if result.upserted_id is None else 1)

    async def upsert_each(
        self, collection: str, changes: Sequence[Tuple[Mapping[str, Any], Mapping[str, Any]]]
    ) -> None:
        from pymongo import UpdateOne
        from pymongo.errors import BulkWriteError

        steps = [UpdateOne(where, change, upsert=True) for where, change in changes]
        for part in self._parts(steps):
            try:
                await self._pool.collection(collection).bulk_write(part, ordered=False)
            except BulkWriteError as exc:
                details = exc.details
                others = [error for error in details["writeErrors"] if error.get("code") != _DUPLICATE_KEY]
                # it may be the majority that was not there in time
                if others or details.get("writeConcernErrors"):
                    raise translate(BulkWriteError({**details, "writeErrors": others})) from exc
            except DRIVER_ERRORS as exc:
                raise translate(exc) from exc

    async def update_each(
        self, collection: str, changes: Sequence[Tuple[Mapping[str, Any], Mapping[str, Any]]]
    ) -> int:
        from pymongo import UpdateOne

        matched = 0
        for part in self._parts([UpdateOne(where, change) for where, change in changes]):
            try:
                result = await self._pool.collection(collection).bulk_write(part, ordered=False)
            except DRIVER_ERRORS as exc:
                raise translate(exc) from exc
            matched += int(result.matched_count)
        return matched

    def _parts(self, steps: List[Any]) -> List[List[Any]]:
        """Return the statements of a bulk write as the server can take them in one command."""
        if self._pool.abilities.atomic_changes or len(steps) <= _STATEMENTS_OF_FERRETDB:
            return [steps]
        starts = range(0, len(steps), _STATEMENTS_OF_FERRETDB)
        return [steps[start : start + _STATEMENTS_OF_FERRETDB] for start in starts]

    async def delete(self, collection: str, where: Mapping[str, Any], *, many: bool = False) -> int:
        target = self._pool.collection(collection)
        try:
            result = await (target.delete_many(where) if many else target.delete_one(where))
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        return int(result.deleted_count)

    async def total(self, collection: str, where: Mapping[str, Any], field: str) -> int:
        steps = [{"$match": where}, {"$group": {"_id": None, "total": {"$sum": f"${field}"}}}]
        try:
            cursor = await self._pool.collection(collection).aggregate(steps)
            found = await cursor.to_list()
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        return int(found[0]["total"]) if found else 0

    async def count(self, collection: str, where: Mapping[str, Any], *, limit: int = 0) -> int:
        bound = {"limit": limit} if limit else {}
        try:
            return int(await self._pool.collection(collection).count_documents(where, **bound))
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc

    async def run(self, operation: Operation[Any, Any], *args: Any) -> Any:
        return await form_or_refuse(self._forms, operation).function(self, *args)

    def remembered(self, key: Hashable) -> Any:
        return self._hints.get(key)

    def remember(self, key: Hashable, value: Any) -> None:
        self._hints.pop(key, None)
        if value is not None:
            self._hints[key] = value
            if len(self._hints) > _HINTS:
                self._hints.popitem(last=False)
