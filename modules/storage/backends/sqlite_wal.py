"""Watches the size of the write-ahead log.

SQLite moves the log into the database every 16 MiB, but only up to what the oldest reader still sees. A reader that keeps a
snapshot open (in another process, or an ORM session that was forgotten) makes the log grow with every write; nothing fails
until the disk is full, so it is told early.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Optional

__all__ = ["WalWatch"]

logger = logging.getLogger(__name__)


class WalWatch:
    """Logs when the log of a database has grown over a limit, and when it is small again.

    Args:
        path: The database file; None: in memory, there is no log.
        limit_bytes: What no log reaches whose readers end.
    """

    def __init__(self, path: Optional[Path], limit_bytes: int) -> None:
        self._file = None if path is None else f"{path}-wal"
        self._limit = limit_bytes
        self._told = False

    def look(self) -> None:
        """Look at the file's size: 1 us."""
        if self._file is None:
            return
        try:
            size = os.stat(self._file).st_size
        except OSError:
            return
        if size > self._limit and not self._told:
            self._told = True
            logger.warning("storage.sqlite.wal_large", extra={"backend": "sqlite", "detail": f"{size} bytes"})
        elif size <= self._limit // 2 and self._told:
            self._told = False
            logger.info("storage.sqlite.wal_small", extra={"backend": "sqlite", "detail": f"{size} bytes"})
