"""P24: a reader that keeps its snapshot makes the write-ahead log grow: that is told, and it shrinks when the reader ends."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import LargeBinary, bindparam, text

from modules.storage.backends.sqlite_connection import SQLiteOptions
from modules.storage.backends.sqlite_executor import SQLiteExecutor
from modules.storage.operations import Transaction, write
from modules.storage.statements import Statement
from tests.support.leaks import wait_until

LIMIT = 40 * 1024 * 1024
PUT = Statement(
    text("INSERT OR REPLACE INTO blobs VALUES (1, :data)").bindparams(bindparam("data", type_=LargeBinary))
)


@write
async def put(tx: Transaction, data: bytes) -> None:
    await tx.run(PUT, data=data)


async def test_a_stuck_reader_is_told(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "stuck.sqlite3"
    wal = tmp_path / "stuck.sqlite3-wal"
    executor = SQLiteExecutor(SQLiteOptions(path, synchronous="OFF", large_wal_bytes=LIMIT))
    executor.open()
    try:
        await executor.call_bare(
            lambda connection: connection.execute("CREATE TABLE blobs (id INTEGER PRIMARY KEY, data)").close()
        )

        async def write_a_lot() -> None:
            for number in range(50):
                await executor.run(put, bytes([number]) * 1024 * 1024)

        with caplog.at_level(logging.INFO):
            await write_a_lot()
            assert wal.stat().st_size < LIMIT, "without a reader the log is bounded"
            assert "storage.sqlite.wal_large" not in caplog.messages
            with closing(sqlite3.connect(path, isolation_level=None)) as reader:
                reader.execute("BEGIN")
                before = reader.execute("SELECT count(*), max(data) FROM blobs").fetchall()
                await write_a_lot()
                assert wal.stat().st_size > LIMIT
                assert reader.execute("SELECT count(*), max(data) FROM blobs").fetchall() == before
            await wait_until(lambda: "storage.sqlite.wal_large" in caplog.messages, 60)
            assert caplog.messages.count("storage.sqlite.wal_large") == 1, "told once"
            await executor.call_bare(
                lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
            )
            # the writer looks after it has answered
            await wait_until(lambda: "storage.sqlite.wal_small" in caplog.messages, 60)
    finally:
        assert await executor.close()
