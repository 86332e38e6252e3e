"""Translate sqlite3's exceptions, once, at the edge, by SQLite's result code.

Python 3.11 gives the code with the exception. Before that only the message is there; the few messages that matter are
fixed texts of SQLite itself (`sqlite3ErrStr` in its main.c), so those are looked up instead.
"""

from __future__ import annotations

import sqlite3
from typing import Callable, Dict, Optional

from modules.store_common import errors

__all__ = ["interrupted", "translate"]

# Primary result codes, https://www.sqlite.org/rescode.html
_PERM, _BUSY, _LOCKED, _READONLY, _INTERRUPT, _IOERR, _CORRUPT = 3, 5, 6, 8, 9, 10, 11
_FULL, _CANTOPEN, _CONSTRAINT, _TOOBIG, _NOTADB = 13, 14, 19, 18, 26
# Extended codes of a sync that failed: of a file, of its directory
_NOT_SYNCED = {10 | (4 << 8), 10 | (5 << 8)}
# Extended codes of "this key is taken"
_TAKEN = {19 | (6 << 8), 19 | (8 << 8), 19 | (10 << 8)}

_BY_MESSAGE: Dict[str, int] = {
    "database is locked": _BUSY,
    "database table is locked": _LOCKED,
    "attempt to write a readonly database": _READONLY,
    "interrupted": _INTERRUPT,
    "disk I/O error": _IOERR,
    "database disk image is malformed": _CORRUPT,
    "database or disk is full": _FULL,
    "unable to open database file": _CANTOPEN,
    "string or blob too big": _TOOBIG,
    "file is not a database": _NOTADB,
}


def _code(exc: sqlite3.Error) -> int:
    code: Optional[int] = getattr(exc, "sqlite_errorcode", None)
    if code is not None:
        return code
    message = str(exc)
    if message.startswith(("UNIQUE constraint failed", "PRIMARY KEY constraint failed")):
        return 19 | (8 << 8)
    if isinstance(exc, sqlite3.IntegrityError):
        return _CONSTRAINT
    return next((known for text, known in _BY_MESSAGE.items() if text in message), 1)


def _constraint(exc: sqlite3.Error) -> Optional[str]:
    """Return "table.column, table.column" of a broken rule; SQLite's text names columns, never values."""
    _, found, columns = str(exc).partition("constraint failed: ")
    return columns if found else None


def interrupted() -> errors.StorageError:
    """Return the exception of an operation that was stopped."""
    return errors.DeadlineExceededError("the SQLite statement was stopped at the call's deadline")


_SIMPLE: Dict[int, Callable[[], errors.StorageError]] = {
    _BUSY: lambda: errors.BusyError(
        "another process holds the SQLite database's write lock for longer than the busy timeout; try again, or end that process"
    ),
    _LOCKED: lambda: errors.BusyError(
        "another connection of this process holds the SQLite table's lock; try again"
    ),
    _READONLY: lambda: errors.PermissionDeniedError(
        "the SQLite database is read-only here; check the file's permissions"
    ),
    _PERM: lambda: errors.PermissionDeniedError("access to the SQLite database file was refused"),
    _INTERRUPT: interrupted,
    _IOERR: lambda: errors.StorageIOError(
        "the disk reported an error on the SQLite database; check the disk and the logs"
    ),
    _CORRUPT: lambda: errors.CorruptionError("the SQLite database is damaged; restore a backup"),
    _NOTADB: lambda: errors.CorruptionError("the configured file is not a SQLite database; check the path"),
    _FULL: lambda: errors.StorageFullError(
        "the disk (or quota) under the SQLite database is full; free space and try again"
    ),
    _CANTOPEN: lambda: errors.UnavailableError(
        "the SQLite database file cannot be opened; check that its directory exists and may be written"
    ),
    _TOOBIG: lambda: errors.InvalidValueError("a value is larger than SQLite can hold"),
}


def translate(exc: Exception) -> errors.StorageError:
    """Return our exception for `exc`, to be raised `from` it."""
    if not isinstance(exc, sqlite3.Error):
        return errors.StatementError(f"a parameter does not fit SQLite: {type(exc).__name__}")
    code = _code(exc)
    if code & 0xFF == _CONSTRAINT:
        where = _constraint(exc)
        kind = errors.AlreadyExistsError if code in _TAKEN else errors.ConstraintError
        text = "a row with this key exists" if code in _TAKEN else "a rule of the schema refused the row"
        error = kind(f"{text} ({where})" if where else text)
        error.constraint = where
        return error
    if code in _NOT_SYNCED:
        return errors.StorageIOError(
            "the disk could not make a write to the SQLite database durable; whether it was kept shows when the database is "
            "opened again; check the disk and the logs"
        )
    make = _SIMPLE.get(code & 0xFF)
    if make is not None:
        return make()
    if "no such table" in str(exc) or "no such column" in str(exc):
        return errors.StatementError(f"the database's schema is behind ({exc}); run `atlas-storage migrate`")
    return errors.StatementError(f"SQLite refused a statement: {exc}")
