"""Translate PyMongo's exceptions, once, at the edge, by class and server error code.

Source of the codes: MongoDB, `src/mongo/base/error_codes.yml`. The server's own texts are not repeated, since they quote
keys and addresses; the cause is kept with `raise ... from`.
"""

from __future__ import annotations

import asyncio
from typing import Callable, Dict

from bson.errors import InvalidDocument
from pymongo import errors as driver

from modules.store_common import errors

__all__ = [
    "DRIVER_ERRORS",
    "cut_off",
    "translate",
]

#: What PyMongo lets out: its own errors, BSON's, the socket's. `RuntimeError` is what a client says on another event loop.
DRIVER_ERRORS = (driver.PyMongoError, InvalidDocument, OSError, asyncio.TimeoutError)

_Make = Callable[[], errors.StorageError]

_UNREACHABLE: _Make = lambda: errors.UnavailableError(  # noqa: E731
    "the connection to MongoDB failed or broke; check that the server runs and can be reached. "
    "A write under way may or may not have been applied"
)
_DEADLINE: _Make = lambda: errors.DeadlineExceededError(  # noqa: E731
    "the MongoDB call did not end within its deadline; a write may or may not have been applied"
)
_DENIED: _Make = lambda: errors.PermissionDeniedError(  # noqa: E731
    "MongoDB refused the credentials or the action; check mongo.username, mongo.password, mongo.auth_source and the roles"
)
_TOO_LARGE: _Make = lambda: errors.InvalidValueError(  # noqa: E731
    "the value makes a document larger than the 16 MiB that MongoDB stores"
)

_BY_CODE: Dict[int, _Make] = {
    11000: lambda: errors.AlreadyExistsError("a document with this key exists"),
    11001: lambda: errors.AlreadyExistsError("a document with this key exists"),
    10334: _TOO_LARGE,
    17280: _TOO_LARGE,
    17419: _TOO_LARGE,
    17420: _TOO_LARGE,
    13: _DENIED,
    18: _DENIED,
    8000: _DENIED,
    50: _DEADLINE,
    262: _DEADLINE,
    # a write concern that was not satisfied in time
    64: _DEADLINE,
    112: lambda: errors.BusyError("MongoDB could not serialise concurrent writes; try again"),
    14031: lambda: errors.StorageFullError("the disk under MongoDB is full; free space and try again"),
    238: lambda: errors.StatementError("this MongoDB server does not have a feature that the call needs"),
    # not primary, shutting down, stepping down, network
    **dict.fromkeys((6, 7, 89, 91, 189, 9001, 10107, 11600, 11602, 13435, 13436), _UNREACHABLE),
}


def translate(error: BaseException) -> errors.StorageError:
    """Return our error for one of `DRIVER_ERRORS`."""
    if isinstance(error, driver.BulkWriteError):
        details = error.details
        found = details.get("writeErrors") or details.get("writeConcernErrors") or [{}]
        return _BY_CODE.get(found[0].get("code"), _refused)()
    if isinstance(error, driver.DuplicateKeyError):
        return _BY_CODE[11000]()
    if isinstance(error, (driver.DocumentTooLarge, InvalidDocument)):
        return _TOO_LARGE()
    if isinstance(error, (driver.NetworkTimeout, driver.ExecutionTimeout, driver.WTimeoutError)):
        return _DEADLINE()
    if isinstance(error, driver.OperationFailure):
        if error.code == 1 and "UNIQUE constraint failed" in str(error):
            # FerretDB 1 on SQLite, of an update that breaks a unique index; MongoDB says 11000
            return _BY_CODE[11000]()
        return _BY_CODE.get(error.code or 0, _refused)()
    if isinstance(error, driver.ConfigurationError):
        return errors.NotConfiguredError(
            "PyMongo refused the MongoDB settings; check mongo.url and its options"
        )
    if isinstance(error, (driver.ConnectionFailure, OSError, asyncio.TimeoutError)):
        return _UNREACHABLE()
    return _refused()


def _refused() -> errors.StorageError:
    return errors.StatementError(
        "MongoDB refused a command: an error in ours, or indexes that are behind (run ensure_schemas())"
    )


def cut_off() -> errors.UnavailableError:
    """Return the error of a call for which `shutdown()` did not wait any longer."""
    return errors.UnavailableError(
        "the MongoDB pool was shut down during the call; a write may or may not have been applied"
    )
