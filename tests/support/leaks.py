"""What a test may not leave behind: threads, asyncio tasks, server connections, open database files."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any, Callable, List, Optional, Set, Tuple

__all__ = ["LeakWatch", "open_files", "wait_until"]


async def wait_until(condition: Callable[[], Any], seconds: float, what: str = "") -> Any:
    """Return the first true value of `condition`, polled; fail the test after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        await asyncio.sleep(0.005)


def open_files(prefix: str) -> List[str]:
    """Return the paths that this process has open and that begin with `prefix` (Linux; elsewhere nothing)."""
    found = []
    for entry in Path("/proc/self/fd").glob("*") if Path("/proc/self/fd").exists() else []:
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith(prefix):
            found.append(target)
    return found


def _named(threads: Set[threading.Thread]) -> List[str]:
    # `asyncio_N` belong to the loop's default executor: the test's own to_thread calls
    return sorted(t.name for t in threads if t.is_alive() and not t.name.startswith("asyncio_"))


class LeakWatch:
    """Remembers what was open, and says what was not closed since."""

    def __init__(self, config: Any = None) -> None:
        self._threads = set(threading.enumerate())
        self._tasks = asyncio.all_tasks()
        self._databases: List[Tuple[str, Any]] = []

    def database(self, url: str, server: Optional[Any] = None) -> None:
        """Also look at the database at `url`; `server` is the `postgres` fixture's when it is on PostgreSQL."""
        self._databases.append((url, server))

    def left(self) -> List[str]:
        """Return what is open now and was not before."""
        found = [f"thread {name}" for name in _named(set(threading.enumerate()) - self._threads)]
        mine = {asyncio.current_task(), *self._tasks}
        found += [f"task {task!r}" for task in asyncio.all_tasks() if task not in mine and not task.done()]
        for url, server in self._databases:
            if server is not None:
                name = url.partition("?")[0].rpartition("/")[2]
                found += [f"connection {pid} {what}" for pid, what in server.connections(name).items()]
            elif ":memory:" not in url:
                found += [f"file {path}" for path in open_files(url.partition(":///")[2])]
        return found

    async def check(self, seconds: float = 15.0) -> None:
        """Fail if something is left; a server notices a closed connection a moment later, so wait a little."""
        end = time.monotonic() + seconds
        while True:
            left = self.left()
            if not left or time.monotonic() > end:
                break
            await asyncio.sleep(0.01)
        assert not left, "left open after shutdown: " + "; ".join(left)
