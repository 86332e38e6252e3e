"""What a unit of work needs of its surroundings, and what it raises. Users import from `modules.storage.unit_of_work`."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, Optional, Sequence, Tuple, Union

from typing_extensions import Protocol

from modules.storage.operations import Executor
from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy.ext.asyncio import AsyncSession

    from modules.storage.operations import Operation

__all__ = [
    "Compensation",
    "OpenTransaction",
    "OutcomeUnknownError",
    "RollbackError",
    "SQLFunction",
    "StoreMaker",
    "TransactionalExecutor",
    "UnitOfWorkError",
    "UnitOfWorkState",
    "UnitOutcome",
]

#: A function of an ORM session inside the unit's transaction: async with an `AsyncSession`, or sync with a `Session`.
SQLFunction = Callable[[Any], Any]
#: Undoes an effect outside of the database; sync or async, without arguments.
Compensation = Callable[[], Union[Awaitable[Any], None]]


class UnitOfWorkError(StorageError):
    """A unit of work was used in a way that cannot work, or could not be finished."""


class RollbackError(UnitOfWorkError):
    """The unit was rolled back, and some of its compensating actions failed; its cause is the original error.

    Attributes:
        failures: What the compensating actions raised, in the order in which they ran.
        original: Why the unit was rolled back; None when `rollback()` was called.
    """

    def __init__(
        self, message: str, failures: Sequence[BaseException] = (), original: Optional[BaseException] = None
    ) -> None:
        super().__init__(message, failures, original)
        self.failures: Tuple[BaseException, ...] = tuple(failures)
        self.original = original

    def __str__(self) -> str:
        return str(self.args[0])


class OutcomeUnknownError(UnitOfWorkError):
    """The connection was lost during COMMIT: the unit is wholly applied or wholly absent, and it is not known which."""


@dataclass(frozen=True)
class UnitOutcome:
    """What became of the unit of work with a key; see `StorageManager.resolve`.

    Attributes:
        key: The unit's.
        applied: True: it was committed. False: it was not, and will not be.
        result: What `set_result` was given.
    """

    key: str
    applied: bool
    result: Any = None


class UnitOfWorkState(enum.Enum):
    """Where a unit of work is."""

    PENDING = "pending"
    ACTIVE = "active"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    OUTCOME_UNKNOWN = "outcome_unknown"


class OpenTransaction(Protocol):
    """What a backend gives a unit of work: one transaction for many operations, begun when it is first needed.

    Attributes:
        in_doubt: True from the moment COMMIT is sent until its answer is there.
    """

    in_doubt: bool

    async def run(self, operation: Operation[Any, Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """Run an operation in the transaction."""
        ...

    async def commit(self) -> None:
        """Commit; when it raises and the transaction is not `in_doubt`, nothing was kept."""
        ...

    async def rollback(self) -> None:
        """Roll back; harmless when the transaction has ended."""
        ...

    def session(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Lend an ORM session inside the transaction."""
        ...


class TransactionalExecutor(Executor, Protocol):
    """An executor that can open a transaction for a unit of work."""

    def unit(self, deadline: float, owner: Any = None) -> OpenTransaction:
        """Return a new transaction, not yet begun.

        Args:
            deadline: Monotonic time in seconds.
            owner: The task that the unit belongs to, whichever task uses it first.
        """
        ...


#: Makes the store of a name ("conversations", "kv", ...) on an executor.
StoreMaker = Callable[[str, Executor], Any]
