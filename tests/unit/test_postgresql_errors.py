"""Every SQLSTATE that matters, and everything else that asyncpg lets out, becomes one of our errors."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

from modules.store_common import errors

asyncpg = pytest.importorskip("asyncpg", reason="no PostgreSQL driver")


def _translate(exc: BaseException) -> errors.StorageError:
    from modules.storage.backends.postgresql_errors import translate

    return translate(exc)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("23505", errors.AlreadyExistsError),
        ("23503", errors.ConstraintError),
        ("23502", errors.ConstraintError),
        ("23514", errors.ConstraintError),
        ("22003", errors.InvalidValueError),
        ("22P05", errors.InvalidValueError),
        ("25P02", errors.StatementError),
        ("25P03", errors.DeadlineExceededError),
        ("26000", errors.StatementError),
        ("28P01", errors.PermissionDeniedError),
        ("28000", errors.PermissionDeniedError),
        ("3D000", errors.UnavailableError),
        ("40001", errors.BusyError),
        ("40P01", errors.BusyError),
        ("42501", errors.PermissionDeniedError),
        ("42601", errors.StatementError),
        ("42P01", errors.StatementError),
        ("53100", errors.StorageFullError),
        ("53200", errors.UnavailableError),
        ("53300", errors.OverloadedError),
        ("54000", errors.InvalidValueError),
        ("55P03", errors.BusyError),
        ("57014", errors.DeadlineExceededError),
        ("57P01", errors.UnavailableError),
        ("57P03", errors.UnavailableError),
        ("58030", errors.StorageIOError),
        ("08006", errors.UnavailableError),
        ("XX001", errors.CorruptionError),
        ("P0001", errors.StatementError),
    ],
)
def test_by_sqlstate(state: str, expected: Any) -> None:
    error = asyncpg.PostgresError.new({"C": state, "M": "value hunter2 of the caller", "n": "the_rule"})
    translated = _translate(error)
    assert type(translated) is expected
    assert "hunter2" not in str(translated), "the server's texts quote values"
    assert translated.constraint in ("the_rule", None)
    if state.startswith("23"):
        assert translated.constraint == "the_rule"


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (asyncio.TimeoutError(), errors.DeadlineExceededError),
        (ConnectionRefusedError(), errors.UnavailableError),
        (OSError("no route"), errors.UnavailableError),
        (ssl.SSLError("bad certificate"), errors.UnavailableError),
        (asyncpg.InterfaceError("connection is closed"), errors.UnavailableError),
        (
            asyncpg.exceptions.DataError("invalid input for query argument $1: 'hunter2'"),
            errors.InvalidValueError,
        ),
    ],
)
def test_what_is_no_answer_of_the_server(exc: BaseException, expected: Any) -> None:
    translated = _translate(exc)
    assert type(translated) is expected
    assert "hunter2" not in str(translated)


def test_tls_and_schema_say_what_to_look_at() -> None:
    assert "tls_mode" in str(_translate(ssl.SSLError("x")))
    assert "migrate" in str(_translate(asyncpg.PostgresError.new({"C": "42P01", "M": "m"})))
    assert "sql.pooler" in str(_translate(asyncpg.PostgresError.new({"C": "26000", "M": "m"})))
