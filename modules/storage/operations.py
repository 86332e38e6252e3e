"""What stores are written against: `Transaction`, `Operation`, `Executor`. No thread, loop or driver is known here.

An operation is an ordinary coroutine function whose first argument is a `Transaction`:

    @write
    async def rename(tx: Transaction, tenant_id: str, conversation_id: str, title: str) -> bool:
        return await tx.run(RENAME, tenant_id=tenant_id, id=conversation_id, title=title) == 1

and is run by an executor: `await executor.run(rename, tenant_id, conversation_id, title)`. On PostgreSQL it is awaited
on an asyncpg connection. On SQLite the whole coroutine is driven inside the database thread, where `tx` never suspends:
so an operation awaits nothing but `tx` and other operations (call them directly: `await rename(tx, ...)`).

Operations may be run again from the start (a batch that failed as a whole is run one by one), so they keep their effects
in `tx` and do not change their arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Awaitable,
    Callable,
    Coroutine,
    Generic,
    Hashable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
    overload,
)

from typing_extensions import Concatenate, ParamSpec, Protocol

from modules.store_common.tenancy import TenantPolicy

if TYPE_CHECKING:
    from modules.storage.statements import Row, Statement

__all__ = ["BatchFunction", "Executor", "Operation", "Store", "Transaction", "after_commit", "read", "write"]

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Transaction(Protocol):
    """An open transaction, or a connection that commits each statement when the operation is not atomic."""

    @property
    def dialect(self) -> str:
        """Either "sqlite" or "postgresql"."""
        ...

    async def all(self, statement: Statement, **params: Any) -> List[Row]:
        """Return every row."""
        ...

    async def first(self, statement: Statement, **params: Any) -> Optional[Row]:
        """Return the first row, or None."""
        ...

    async def one(self, statement: Statement, **params: Any) -> Row:
        """Return the first row; without one, `StatementError` (for statements that always give a row)."""
        ...

    async def run(self, statement: Statement, **params: Any) -> int:
        """Run a statement without rows and return how many rows it changed."""
        ...

    async def run_many(self, statement: Statement, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run a statement without rows once for each mapping of parameters, in one call of the driver."""
        ...


#: Runs many waiting calls of one operation as one statement. Gets the argument tuples of the calls (without `tx`) and
#: returns as many outcomes, in order; an outcome that is an exception is raised to that caller alone.
BatchFunction = Callable[
    [Transaction, Sequence[Tuple[Any, ...]]], Awaitable[Sequence[Union[Any, BaseException]]]
]


@dataclass(frozen=True)
class Operation(Generic[P, R_co]):
    """A coroutine function over a transaction, and what an executor has to know of it.

    Attributes:
        function: `async def f(tx, ...)`.
        writes: False lets it run on a reader, outside a transaction, and again after a broken connection.
        atomic: True puts BEGIN and COMMIT around it; False is for a single statement, which is atomic by itself.
        batch: Optional form for many calls at once.
        conflict_key: Of the arguments of a call; calls with the same key never share a batch.
        order_key: Of the arguments of a call; calls with the same key are carried out in the order in which they began.
        urgent: A read that must not wait behind long ones: a health check.
    """

    function: Callable[..., Coroutine[Any, Any, R_co]]
    writes: bool
    atomic: bool
    batch: Optional[BatchFunction] = None
    conflict_key: Optional[Callable[..., Hashable]] = None
    order_key: Optional[Callable[..., Hashable]] = None
    urgent: bool = False

    @property
    def name(self) -> str:
        """The function's name, for logs."""
        return self.function.__name__

    def __call__(self, tx: Transaction, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Run it inside another operation, in that one's transaction."""
        return self.function(tx, *args, **kwargs)

    def __hash__(self) -> int:
        return id(self)


_Function = Callable[Concatenate[Transaction, P], Coroutine[Any, Any, R]]


@overload
def read(function: _Function[P, R], /) -> Operation[P, R]: ...
@overload
def read(
    *, snapshot: bool = ..., batch: Optional[BatchFunction] = ..., urgent: bool = ...
) -> Callable[[_Function[P, R]], Operation[P, R]]: ...
def read(
    function: Any = None,
    /,
    *,
    snapshot: bool = False,
    batch: Optional[BatchFunction] = None,
    urgent: bool = False,
) -> Any:
    """Make a coroutine function an operation that changes nothing.

    Args:
        function: `async def f(tx, ...)`.
        snapshot: Let all its statements see one state of the database (a transaction around them).
        batch: Form for many calls at once.
        urgent: It must not wait behind long reads: a health check.
    """

    def decorate(decorated: Callable[..., Coroutine[Any, Any, Any]]) -> Operation[Any, Any]:
        return Operation(decorated, writes=False, atomic=snapshot, batch=batch, urgent=urgent)

    return decorate if function is None else decorate(function)


@overload
def write(function: _Function[P, R], /) -> Operation[P, R]: ...
@overload
def write(
    *,
    atomic: bool = ...,
    batch: Optional[BatchFunction] = ...,
    conflict_key: Optional[Callable[..., Hashable]] = ...,
    order_key: Optional[Callable[..., Hashable]] = ...,
) -> Callable[[_Function[P, R]], Operation[P, R]]: ...
def write(
    function: Any = None,
    /,
    *,
    atomic: bool = True,
    batch: Optional[BatchFunction] = None,
    conflict_key: Optional[Callable[..., Hashable]] = None,
    order_key: Optional[Callable[..., Hashable]] = None,
) -> Any:
    """Make a coroutine function an operation that is applied wholly or not at all.

    Args:
        function: `async def f(tx, ...)`.
        atomic: False for a single statement: no BEGIN and COMMIT around it (they cost as much as the statement).
        batch: Form for many calls at once; must be atomic by itself (one statement).
        conflict_key: Of the arguments of a call; calls with the same key never share a batch.
        order_key: Of the arguments of a call with a batch form; calls with the same key are carried out in the order in
            which they began. By default the conflict key.
    """

    def decorate(decorated: Callable[..., Coroutine[Any, Any, Any]]) -> Operation[Any, Any]:
        return Operation(
            decorated,
            writes=True,
            atomic=atomic,
            batch=batch,
            conflict_key=conflict_key,
            order_key=order_key or conflict_key,
        )

    return decorate if function is None else decorate(function)


class Executor(Protocol):
    """Runs operations: a pool, each in a transaction of its own, or a unit of work, all in its one transaction."""

    @property
    def dialect(self) -> str:
        """Either "sqlite" or "postgresql"."""
        ...

    async def run(self, operation: Operation[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `operation` and return its result once it is durable (in a unit of work: once it is done)."""
        ...


def after_commit(executor: Executor, action: Callable[[], None]) -> None:
    """Have `action()` called once what `executor` has run is committed: now, or when its unit of work commits.

    Args:
        executor: Of a store.
        action: Returns at once. If the process dies before, it is not called: what must not be lost is a row.
    """
    register: Optional[Callable[[Callable[[], None]], None]] = getattr(executor, "after_commit", None)
    if register is None:
        action()
    else:
        register(action)


class Store:
    """Parent of the domain stores: an executor to run operations on, and the rule that finds the tenant of a call."""

    def __init__(self, executor: Executor, tenancy: TenantPolicy) -> None:
        self._executor = executor
        self._tenancy = tenancy

    def _tenant(self, explicit: Optional[str]) -> str:
        return self._tenancy.resolve(explicit)
