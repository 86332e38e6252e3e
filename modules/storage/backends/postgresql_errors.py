"""Translate asyncpg's exceptions, once, at the edge, by SQLSTATE.

Source of the codes: PostgreSQL documentation, appendix A, "PostgreSQL Error Codes". The server's own texts are not
repeated, since some quote values; the cause is kept with `raise ... from`.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Callable, Dict, Optional, Tuple

import asyncpg

from modules.store_common import errors

__all__ = ["DRIVER_ERRORS", "translate", "translate_connecting"]

#: What asyncpg lets out: its own errors, the socket's, and its time-outs.
# `InternalClientError` is what a connection says that broke while nobody looked (seen when the server is stopped).
DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    asyncio.TimeoutError,
)

_Make = Callable[[], errors.StorageError]

_UNREACHABLE: _Make = lambda: errors.UnavailableError(  # noqa: E731
    "the connection to PostgreSQL failed or broke; check that the server runs and can be reached. "
    "A write under way may or may not have been applied"
)
# Nothing was sent yet.
_NOT_REACHED: _Make = lambda: errors.UnavailableError(  # noqa: E731
    "PostgreSQL cannot be reached; check that the server runs, and sql.url (sql.host, sql.port)"
)
_DEADLINE: _Make = lambda: errors.DeadlineExceededError(  # noqa: E731
    "the PostgreSQL call did not end within its deadline; a write may or may not have been applied"
)

_BY_STATE: Dict[str, _Make] = {
    "08P01": lambda: errors.UnavailableError(
        "PostgreSQL, or a pooler in front of it, refused the connection's parameters; behind a pooler set sql.pooler to "
        "transaction or session, and if it wants TLS set sql.tls_mode to require or verify-full"
    ),
    "23505": lambda: errors.AlreadyExistsError("a row with this key exists"),
    "25P02": lambda: errors.StatementError(
        "an earlier statement of this transaction failed, so PostgreSQL can only roll it back"
    ),
    "25P03": _DEADLINE,
    "26000": lambda: errors.StatementError(
        "PostgreSQL lost a prepared statement: a pooler in transaction mode is in front; set sql.pooler to transaction"
    ),
    "28000": lambda: errors.PermissionDeniedError(
        "PostgreSQL refused the user or password, or lets nobody in this way; check sql.username, the server's "
        "pg_hba.conf, and sql.tls_mode if the server wants TLS"
    ),
    "3D000": lambda: errors.UnavailableError(
        "the PostgreSQL database does not exist; create it, or check sql.database"
    ),
    "40001": lambda: errors.BusyError("PostgreSQL could not serialise concurrent transactions; try again"),
    "40P01": lambda: errors.BusyError("PostgreSQL ended a deadlock by refusing this call; try again"),
    "42501": lambda: errors.PermissionDeniedError(
        "the PostgreSQL role may not do this; grant it the privilege"
    ),
    "53100": lambda: errors.StorageFullError("the disk under PostgreSQL is full; free space and try again"),
    "53300": lambda: errors.OverloadedError(
        "PostgreSQL has no connection left; lower sql.pool.size + sql.pool.max_overflow or raise max_connections"
    ),
    "55P03": lambda: errors.BusyError("PostgreSQL could not get a lock in time; try again"),
    "57014": _DEADLINE,
    "58030": lambda: errors.StorageIOError("PostgreSQL reported a disk error; check its log"),
}

_BY_CLASS: Dict[str, _Make] = {
    "08": _UNREACHABLE,
    "22": lambda: errors.InvalidValueError("PostgreSQL cannot hold a value of this call"),
    "23": lambda: errors.ConstraintError("a rule of the schema refused the row"),
    "28": lambda: errors.PermissionDeniedError(
        "PostgreSQL refused the user or password; check sql.username and sql.password"
    ),
    "53": lambda: errors.UnavailableError("PostgreSQL is out of a resource; check its log"),
    "54": lambda: errors.InvalidValueError("a value of this call passes a limit of PostgreSQL"),
    "57": lambda: errors.UnavailableError("PostgreSQL is shutting down or starting up; try again"),
    "XX": lambda: errors.CorruptionError("PostgreSQL reported an internal error; check its log"),
}

_SCHEMA_BEHIND: Tuple[str, ...] = ("42P01", "42703", "42883", "3F000")


def translate_connecting(exc: BaseException) -> errors.StorageError:
    """Return our exception for what was raised while a connection was made."""
    return translate(exc, _NOT_REACHED)


def translate(exc: BaseException, otherwise: _Make = _UNREACHABLE) -> errors.StorageError:
    """Return our exception for `exc`, to be raised `from` it; `otherwise` makes that of a connection that is gone."""
    if isinstance(exc, asyncio.TimeoutError):
        return _DEADLINE()
    if isinstance(exc, ssl.SSLError):
        return errors.UnavailableError(
            "the TLS connection to PostgreSQL failed; check sql.tls_mode, sql.tls_ca_file and the server's certificate"
        )
    if isinstance(exc, asyncpg.PostgresError):
        return _translate_state(exc)
    if isinstance(exc, asyncpg.DataError) or (
        isinstance(exc, asyncpg.InterfaceError) and isinstance(exc, ValueError)
    ):
        return errors.InvalidValueError("a parameter of this call does not fit its PostgreSQL type")
    return otherwise()


def _translate_state(exc: asyncpg.PostgresError) -> errors.StorageError:
    state: str = exc.sqlstate or ""
    if state in _SCHEMA_BEHIND:
        return errors.StatementError(
            f"the database's schema is behind (SQLSTATE {state}); run `atlas-storage migrate`"
        )
    make = _BY_STATE.get(state) or _BY_CLASS.get(state[:2])
    if make is None:
        return errors.StatementError(f"PostgreSQL refused a statement (SQLSTATE {state})")
    error = make()
    constraint: Optional[str] = getattr(exc, "constraint_name", None)
    if constraint:
        error.constraint = constraint
    return error
