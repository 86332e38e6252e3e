"""The root of all our exceptions, and those that more than one package raises.

    StorageError                     root; `retryable` says whether the same call may succeed later
      NotInitializedError            also RuntimeError: used before `initialize()` or after `shutdown()`
      NotConfiguredError             the store is not part of this configuration
      MissingDependencyError         also ImportError: names the extra to install
      InvalidValueError              also ValueError: the value contract refused an argument, nothing was touched
        InvalidCursorError           a cursor that is damaged, of another tenant or of another query
      NotFoundError                  also LookupError: the parent of every store's own not-found error
      AlreadyExistsError             an id or a unique name is taken
      ConcurrencyError               an expected version or sequence did not match
      IdempotencyConflictError       the same idempotency key came with another body
      QuotaExceededError             a configured limit would be passed
      TenantContextError             a tenant is required and none was given
      DeadlineExceededError          also TimeoutError: the call's deadline passed; retryable
      UnavailableError               the server or file cannot be reached, or the connection broke; retryable
        BusyError                    another process held the database's lock for too long; retryable
        OverloadedError              a bounded queue of ours is full; retryable
      StorageFullError               no space is left for the database; retryable once there is
      StorageIOError                 the disk reported an error
      CorruptionError                the database file is damaged
      ConstraintError                a rule of the schema was broken (foreign key, check, not null)
      PermissionDeniedError          the database refused these credentials or this action
      StatementError                 the database refused a statement: an error in ours, or a schema that is behind
      WrongProcessError              also RuntimeError: used in a forked child

Messages say what was tried, on what, and what to do. They never hold a secret or a stored value.
"""

from __future__ import annotations

from typing import Optional

__all__ = [
    "AlreadyExistsError",
    "BusyError",
    "ConcurrencyError",
    "ConstraintError",
    "CorruptionError",
    "DeadlineExceededError",
    "IdempotencyConflictError",
    "InvalidCursorError",
    "InvalidValueError",
    "MissingDependencyError",
    "NotConfiguredError",
    "NotFoundError",
    "NotInitializedError",
    "OverloadedError",
    "PermissionDeniedError",
    "QuotaExceededError",
    "StatementError",
    "StorageError",
    "StorageFullError",
    "StorageIOError",
    "TenantContextError",
    "UnavailableError",
    "WrongProcessError",
]


class StorageError(Exception):
    """Root of every error that ATLAS storage raises on purpose."""

    retryable: bool = False
    #: The constraint that refused a row, where the database named one.
    constraint: Optional[str] = None


class NotInitializedError(StorageError, RuntimeError):
    """Something was used before it was opened, or after it was closed."""

    def __init__(self, what: str, hint: str = "call `await initialize()` first") -> None:
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} is not initialized: {self.hint}"


class NotConfiguredError(StorageError):
    """This configuration has no such store."""


class MissingDependencyError(StorageError, ImportError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, extra)
        self.package = package
        self.extra = extra

    def __str__(self) -> str:
        return f'the package {self.package} is not installed; run: pip install "atlas-storage[{self.extra}]"'


class InvalidValueError(StorageError, ValueError):
    """An argument breaks the value contract. Raised before any store is touched."""


class InvalidCursorError(InvalidValueError):
    """A cursor is damaged, or belongs to another tenant or another query."""


class NotFoundError(StorageError, LookupError):
    """The thing named does not exist for this tenant."""


class AlreadyExistsError(StorageError):
    """The id or unique name is taken."""


class ConcurrencyError(StorageError):
    """What the caller expected is no longer so; read again and decide.

    Attributes:
        expected: The version or sequence that the caller expected.
        actual: The one found, None when the row is gone.
    """

    def __init__(self, message: str, expected: Optional[int] = None, actual: Optional[int] = None) -> None:
        super().__init__(message, expected, actual)
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return str(self.args[0])


class IdempotencyConflictError(StorageError):
    """The idempotency key was used before with a different body."""


class QuotaExceededError(StorageError):
    """A configured limit would be passed; nothing was written."""


class TenantContextError(StorageError):
    """A tenant is required here and none was given."""


class DeadlineExceededError(StorageError, TimeoutError):
    """The call did not end within its deadline. A write may or may not have been applied."""

    retryable = True


class UnavailableError(StorageError):
    """The database cannot be reached, or the connection to it broke."""

    retryable = True


class BusyError(UnavailableError):
    """Another process holds the lock that this call needs, longer than the busy timeout."""


class OverloadedError(UnavailableError):
    """Too many calls are waiting already; this one was not queued."""


class StorageFullError(StorageError):
    """There is no space left for the database; nothing of the call was kept."""

    retryable = True


class StorageIOError(StorageError):
    """The operating system reported an error on the database's files; nothing of the call was kept."""


class CorruptionError(StorageError):
    """The database file is damaged, or is not a database."""


class ConstraintError(StorageError):
    """A rule of the schema refused the row."""


class PermissionDeniedError(StorageError):
    """The database refused the credentials or the action."""


class StatementError(StorageError):
    """The database refused a statement."""


class WrongProcessError(StorageError, RuntimeError):
    """A store was opened in one process and used in a forked child."""
