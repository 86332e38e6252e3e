"""Open something once, however many tasks, event loops and threads ask for it at the same time.

No asyncio lock is used: on Python 3.9 one binds to the loop it is made in, and callers may come from several loops.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Awaitable, Callable, Dict, Optional

__all__ = ["OpenOnce", "run_in_thread"]


class OpenOnce:
    """Runs an opener at most once at a time; those who ask meanwhile wait for its outcome and share it.

    A failed attempt fails for all who waited for it and can be repeated. When the task that opens is cancelled, one of
    those who wait takes over.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempt: Optional[_Attempt] = None

    async def run(self, is_open: Callable[[], bool], opener: Callable[[], Awaitable[None]]) -> None:
        """Return when `is_open()`; run `opener()` if nobody else does."""
        while True:
            with self._lock:
                if is_open():
                    return
                attempt = self._attempt
                mine = attempt is None
                if attempt is None:
                    attempt = self._attempt = _Attempt()
            if mine:
                await self._open(attempt, opener)
                return
            error = await attempt.wait()
            if error is not None:
                raise error

    async def _open(self, attempt: _Attempt, opener: Callable[[], Awaitable[None]]) -> None:
        error: Optional[Exception] = None
        try:
            await opener()
        except Exception as exc:
            error = exc
            raise
        finally:
            with self._lock:
                self._attempt = None
            attempt.end(error)


class _Attempt:
    """One attempt to open, for which tasks of any loop may wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self._error: Optional[Exception] = None
        self._waiters: Dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    async def wait(self) -> Optional[Exception]:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._ended:
                return self._error
            self._waiters[waiter] = loop
        await waiter
        return self._error

    def end(self, error: Optional[Exception]) -> None:
        with self._lock:
            self._ended = True
            self._error = error
            waiters, self._waiters = self._waiters, {}
        for waiter, loop in waiters.items():
            try:
                loop.call_soon_threadsafe(_wake, waiter)
            except RuntimeError:
                # that loop was closed while it waited
                continue


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def run_in_thread(function: Callable[[], Any]) -> Any:
    """Run a blocking call of start-up, shutdown or maintenance in a thread of its own and return its result.

    The default executor is not used: it may be full of the application's work, or shut down already.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Optional[BaseException]) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def work() -> None:
        result: Any = None
        error: Optional[BaseException] = None
        try:
            result = function()
        except BaseException as exc:  # noqa: BLE001 - raised to the caller who waits
            error = exc
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            # the loop was closed meanwhile: nobody waits
            return

    threading.Thread(target=work, name="atlas-storage-blocking", daemon=True).start()
    return await future
