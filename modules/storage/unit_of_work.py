"""The unit of work: writes to several stores that are kept together or not at all.

    async with storage.unit_of_work() as uow:
        await uow.conversations.add_message(conversation_id, role="user", content="hello")
        await uow.kv.set("settings", "seen", True)

The stores of the unit share one SQL transaction. It commits when the block ends, and rolls back when the block raises or
its task is cancelled. After an operation in it has failed, only a rollback is possible. What belongs to other stores is
staged: written to the outbox in the same transaction, and applied by a relay after COMMIT (`await uow.applied(timeout)`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import asynccontextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Callable,
    Dict,
    List,
    Optional,
    Tuple,
    Type,
    TypeVar,
)

from typing_extensions import ParamSpec

from modules.storage.unit_contracts import (
    Compensation,
    OpenTransaction,
    OutcomeUnknownError,
    RollbackError,
    SQLFunction,
    StoreMaker,
    TransactionalExecutor,
    UnitOfWorkError,
    UnitOfWorkState,
    UnitOutcome,
)
from modules.storage.unit_keys import UnitKey, enter_key, keep_result
from modules.storage.unit_staging import OutboxLink, Staging
from modules.storage.unit_stores import UnitStores
from modules.storage.unit_tasks import compensate, to_the_end
from modules.store_common import failpoints
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import (
    BusyError,
    DeadlineExceededError,
    InvalidValueError,
    StorageError,
    UnavailableError,
)
from modules.store_common.tenancy import TenantPolicy

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from modules.storage.operations import Operation

__all__ = [
    "OutcomeUnknownError",
    "RollbackError",
    "UnitOfWork",
    "UnitOfWorkError",
    "UnitOfWorkState",
    "UnitOutcome",
]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_DEFAULT_TIMEOUT_S = 30.0


_active: ContextVar[Optional[UnitOfWork]] = ContextVar("atlas_storage_unit_of_work", default=None)


class UnitOfWork(UnitStores):
    """One transaction over the stores; made by `StorageManager.unit_of_work()`.

    Args:
        executor: The SQL database.
        make_store: Makes a store bound to this unit.
        timeout_s: After this many seconds the unit is rolled back wherever it is.
        key: Makes the unit idempotent; see `make_key`.
        tenancy: How the tenant of a staged key is found.
        outbox: Whom to tell after COMMIT that something was staged.
    """

    def __init__(
        self,
        executor: TransactionalExecutor,
        make_store: StoreMaker,
        *,
        timeout_s: float = _DEFAULT_TIMEOUT_S,
        key: Optional[UnitKey] = None,
        tenancy: Optional[TenantPolicy] = None,
        outbox: Optional[OutboxLink] = None,
    ) -> None:
        if not timeout_s > 0:
            raise InvalidValueError("timeout must be a number of seconds greater than 0")
        self._database = executor
        self._make_store = make_store
        self._timeout_s = timeout_s
        self._key = key
        self._tenancy = TenantPolicy() if tenancy is None else tenancy
        self._staging = Staging(executor, outbox)
        self._result: Any = None
        self._result_json: Optional[str] = None
        self._replayed = False
        self._state = UnitOfWorkState.PENDING
        self._transaction: Optional[OpenTransaction] = None
        self._stores: Dict[str, Any] = {}
        self._sql_functions: List[SQLFunction] = []
        self._compensations: List[Compensation] = []
        self._after_commit: List[Callable[[], None]] = []
        self._failed: Optional[BaseException] = None
        self._deadline = 0.0
        self._task: Optional[asyncio.Task[Any]] = None
        self._outer: Any = None

    @property
    def state(self) -> UnitOfWorkState:
        """PENDING before the block, ACTIVE inside, then how it ended."""
        return self._state

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Lend an async ORM session inside the unit's transaction, for users' own tables.

        At the end of the block it is flushed; when the block raises, what the session did is undone. Neither its
        `commit()` nor its `rollback()` ends the unit.
        """
        transaction = self._open()
        try:
            async with transaction.session() as session:
                yield session
        except StorageError as exc:
            self._failed = exc
            raise

    def add_sql_operation(self, function: SQLFunction) -> None:
        """Have `function(session)` run inside the transaction, just before COMMIT; several run in the order added.

        Args:
            function: `async def f(session: AsyncSession)`, or a plain function of a synchronous `Session`. An exception
                rolls the unit back.
        """
        self._require_open()
        self._sql_functions.append(function)

    def add_compensating_action(self, action: Compensation) -> None:
        """Have `action()` run if the unit does not commit: on an error and on cancellation, newest first.

        For effects outside of the database that cannot be undone by a rollback, such as a call to another service. A
        plain function runs on the event loop, so it must not block.
        """
        self._require_open()
        self._compensations.append(action)

    async def commit(self) -> None:
        """Commit now. Further use is refused.

        Raises:
            UnitOfWorkError: the unit has ended, or an operation in it failed.
            OutcomeUnknownError: the connection was lost during COMMIT.
            StorageError: the database refused; everything was rolled back.
        """
        self._require_open()
        if self._failed is not None:
            failed = self._failed
            await self._undo(failed)
            raise UnitOfWorkError(
                f"an operation in this unit of work failed ({type(failed).__name__}), so it was rolled back and not committed"
            ) from failed
        try:
            await self._run_sql_functions()
            await self._write_staged()
        except BaseException as exc:
            await self._undo(exc)
            raise
        await to_the_end(self._commit())

    async def rollback(self) -> None:
        """Roll back now and run the compensating actions. Harmless when the unit has been rolled back.

        Raises:
            RollbackError: a compensating action failed.
        """
        if self._state in (UnitOfWorkState.PENDING, UnitOfWorkState.ACTIVE):
            await self._undo(None)
        elif self._state is not UnitOfWorkState.ROLLED_BACK:
            raise UnitOfWorkError(f"the unit of work is {self._state.value} and cannot be rolled back")

    async def __aenter__(self) -> UnitOfWork:
        if self._state is not UnitOfWorkState.PENDING:
            raise UnitOfWorkError(f"this unit of work is {self._state.value}; make a new one for each block")
        outer = _active.get()
        task = asyncio.current_task()
        if outer is not None and outer._task is task and outer._state is UnitOfWorkState.ACTIVE:
            raise UnitOfWorkError("units of work do not nest: use the one that is open, or end it first")
        self._task = task
        self._outer = _active.set(self)
        self._deadline = deadline_after(self._timeout_s)
        self._state = UnitOfWorkState.ACTIVE
        try:
            if failpoints.armed:
                await failpoints.meet("unit.before_begin")
            if self._key is not None:
                await self._enter_key(self._key)
        except BaseException as exc:
            _active.reset(self._outer)
            await self._undo(exc)
            raise
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> Optional[bool]:
        try:
            if self._replayed:
                return isinstance(error, _ReplayedSignal)
            if self._state is not UnitOfWorkState.ACTIVE:
                return None
            if error is None:
                await self.commit()
            else:
                await self._undo(error)
            return None
        finally:
            _active.reset(self._outer)

    async def _enter_key(self, key: UnitKey) -> None:
        first = await self._open().run(enter_key, (key,), {})
        if first is None:
            return
        await self._open().rollback()
        self._replayed = True
        self._result = first.result
        self._state = UnitOfWorkState.COMMITTED

    async def _write_staged(self) -> None:
        if failpoints.armed:
            await failpoints.meet("unit.rows_written")
        if self._key is not None and self._result_json is not None:
            await self._open().run(keep_result, (self._key, self._result_json), {})
        await self._staging.write(self._open)
        if failpoints.armed:
            await failpoints.meet("unit.outbox_written")

    async def _run(
        self, operation: Operation[Any, Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> Any:
        transaction = self._open()
        try:
            return await transaction.run(operation, args, kwargs)
        except BaseException as exc:
            if operation.writes or not isinstance(exc, Exception):
                self._failed = exc
            raise

    def _store(self, name: str) -> Any:
        self._require_open()
        if name not in self._stores:
            executor = _UnitExecutor(self, self._database.dialect, self._staging)
            self._stores[name] = self._make_store(name, executor)
        return self._stores[name]

    def _require_open(self) -> None:
        if self._replayed:
            raise _ReplayedSignal
        if self._state is not UnitOfWorkState.ACTIVE:
            raise UnitOfWorkError(
                f"the unit of work is {self._state.value}; use it inside its `async with` block, before it ends"
            )

    def _open(self) -> OpenTransaction:
        self._require_open()
        if self._failed is not None:
            raise UnitOfWorkError(
                f"an operation in this unit of work failed ({type(self._failed).__name__}); it can only be rolled back"
            ) from self._failed
        if self._transaction is None:
            self._transaction = self._database.unit(self._deadline, self._task)
        return self._transaction

    async def _run_sql_functions(self) -> None:
        for function in self._sql_functions:
            async with self._open().session() as session:
                if inspect.iscoroutinefunction(function):
                    await function(session)
                else:
                    await session.run_sync(function)

    async def _commit(self) -> None:
        try:
            if failpoints.armed:
                await failpoints.meet("unit.before_commit")
            if self._transaction is not None:
                await self._transaction.commit()
        except (UnavailableError, DeadlineExceededError) as exc:
            if isinstance(exc, BusyError) or self._transaction is None or not self._transaction.in_doubt:
                # the database refused, or COMMIT was never sent
                await self._undo(exc)
                raise
            self._state = UnitOfWorkState.OUTCOME_UNKNOWN
            raise OutcomeUnknownError(
                "the answer to COMMIT was lost: this unit of work is wholly applied or wholly absent; ask "
                "`await storage.resolve(key)` where it has a key, else read back what it wrote, before trying again"
            ) from exc
        except BaseException as exc:
            await self._undo(exc)
            raise
        self._state = UnitOfWorkState.COMMITTED
        self._staging.committed()
        for action in self._after_commit:
            action()
        if failpoints.armed:
            await failpoints.meet("unit.committed")

    async def _undo(self, original: Optional[BaseException]) -> None:
        """Roll back and compensate, to the end even when the task is cancelled once more."""
        failures = await to_the_end(self._roll_back_and_compensate())
        if not failures:
            return
        if original is not None and not isinstance(original, Exception):
            # cancellation always passes; what failed is in the log
            return
        raise RollbackError(
            f"the unit of work was rolled back, but {len(failures)} of its compensating actions failed: "
            + ", ".join(type(failure).__name__ for failure in failures),
            failures,
            original,
        ) from original

    async def _roll_back_and_compensate(self) -> List[BaseException]:
        self._state = UnitOfWorkState.ROLLED_BACK
        if self._transaction is not None:
            try:
                await self._transaction.rollback()
            except StorageError:
                # its connection is gone, and the transaction with it
                logger.warning(
                    "storage.unit_of_work.rollback_failed",
                    extra={"backend": self._database.dialect},
                    exc_info=True,
                )
        return await compensate(self._compensations, self._timeout_s, self._database.dialect)


class _ReplayedSignal(BaseException):
    """Ends the block of a unit whose key was used before; no error, so nothing but the unit itself may catch it."""


class _UnitExecutor:
    """`modules.storage.operations.Executor` that runs everything in one unit of work."""

    def __init__(self, unit: UnitOfWork, dialect: str, staging: Staging) -> None:
        self._unit = unit
        self.dialect = dialect
        self.staging = staging

    def after_commit(self, action: Callable[[], None]) -> None:
        self._unit._after_commit.append(action)

    async def run(self, operation: Operation[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = await self._unit._run(operation, args, kwargs)
        return result
