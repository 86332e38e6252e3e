"""Every kind of sqlite3 error becomes one of ours, by its code where there is one and by SQLite's fixed texts before 3.11."""

from __future__ import annotations

import sqlite3
from typing import Any, Type

import pytest

from modules.storage.backends.sqlite_errors import translate
from modules.store_common import errors

CASES = [
    (5, "database is locked", errors.BusyError),
    (5 | (2 << 8), "database is locked", errors.BusyError),
    (6, "database table is locked", errors.BusyError),
    (8, "attempt to write a readonly database", errors.PermissionDeniedError),
    (9, "interrupted", errors.DeadlineExceededError),
    (10 | (4 << 8), "disk I/O error", errors.StorageIOError),
    (11, "database disk image is malformed", errors.CorruptionError),
    (13, "database or disk is full", errors.StorageFullError),
    (14, "unable to open database file", errors.UnavailableError),
    (18, "string or blob too big", errors.InvalidValueError),
    (26, "file is not a database", errors.CorruptionError),
]


def _error(message: str, code: Any, kind: Any = sqlite3.OperationalError) -> sqlite3.Error:
    error: sqlite3.Error = kind(message)
    if code is not None:
        error.sqlite_errorcode = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(("code", "message", "expected"), CASES)
def test_by_code(code: int, message: str, expected: Type[errors.StorageError]) -> None:
    assert type(translate(_error("whatever", code))) is expected


@pytest.mark.parametrize(("code", "message", "expected"), CASES)
def test_by_message(code: int, message: str, expected: Type[errors.StorageError]) -> None:
    assert type(translate(_error(message, None))) is expected


@pytest.mark.parametrize("with_code", [True, False])
@pytest.mark.parametrize(
    ("statement", "expected", "constraint"),
    [
        ("INSERT INTO t VALUES (1, 'a', 1, NULL)", errors.AlreadyExistsError, "t.id"),
        ("INSERT INTO t VALUES (2, 'x', 1, NULL)", errors.AlreadyExistsError, "t.name"),
        ("INSERT INTO t VALUES (3, NULL, 1, NULL)", errors.ConstraintError, "t.name"),
        ("INSERT INTO t VALUES (4, 'd', 1, 77)", errors.ConstraintError, None),
        ("INSERT INTO t VALUES (5, 'e', -1, NULL)", errors.ConstraintError, "positive"),
        ("INSERT INTO w VALUES ('k')", errors.AlreadyExistsError, "w.k"),
    ],
)
def test_constraints_of_a_real_database(
    statement: str, expected: Any, constraint: Any, with_code: bool
) -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(
        "PRAGMA foreign_keys = ON;"
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,"
        " n INTEGER CONSTRAINT positive CHECK (n > 0), parent INTEGER REFERENCES t (id));"
        "CREATE TABLE w (k TEXT PRIMARY KEY) WITHOUT ROWID;"
        "INSERT INTO t VALUES (1, 'x', 1, NULL); INSERT INTO w VALUES ('k');"
    )
    with pytest.raises(sqlite3.IntegrityError) as caught:
        connection.execute(statement)
    connection.close()
    error = caught.value if with_code else sqlite3.IntegrityError(str(caught.value))
    translated = translate(error)
    assert type(translated) is expected
    assert translated.constraint == constraint


def test_a_schema_that_is_behind_says_what_to_do() -> None:
    for message in ("no such table: atlas_x", "no such column: y"):
        translated = translate(_error(message, 1))
        assert isinstance(translated, errors.StatementError)
        assert "migrate" in str(translated)


def test_the_rest() -> None:
    assert type(translate(_error("near SELEKT: syntax error", 1))) is errors.StatementError
    assert type(translate(OverflowError("Python int too large"))) is errors.StatementError


def test_values_are_never_repeated() -> None:
    assert "hunter2" not in str(translate(ValueError("embedded null in 'hunter2'")))
