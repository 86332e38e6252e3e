"""One daemon thread with a bounded queue: where the calls of the embedded Chroma run, never on the event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any, Callable, Optional, Tuple

from modules.store_common.errors import OverloadedError

__all__ = ["Worker"]

_Job = Tuple[Callable[[], Any], Optional[asyncio.AbstractEventLoop], Optional["asyncio.Future[Any]"]]


class Worker:
    """Runs blocking calls one after the other.

    Args:
        name: Of the thread.
        limit: Calls that may wait; more are refused.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._jobs: queue.Queue[Optional[_Job]] = queue.Queue(limit)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[], Any]) -> Any:
        """Return what `call` returns in the thread. A call that is cancelled before it began never begins.

        Raises:
            OverloadedError: too many calls wait already.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        try:
            self._jobs.put_nowait((call, loop, future))
        except queue.Full:
            raise OverloadedError(
                f"{self._jobs.maxsize} calls wait for the embedded Chroma already; try again later"
            ) from None
        return await future

    def finish(self, call: Callable[[], Any]) -> None:
        """Run `call` after what waits, then end the thread; returns at once."""

        def put() -> None:
            self._jobs.put((call, None, None))
            self._jobs.put(None)

        if self._jobs.qsize() + 2 <= self._jobs.maxsize:
            put()
        else:
            # putting would block, and this is the event loop's thread
            threading.Thread(target=put, name="atlas-chroma-stop", daemon=True).start()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            call, loop, future = job
            if loop is None or future is None:
                call()
            elif not future.cancelled():
                _answer(call, loop, future)


def _answer(call: Callable[[], Any], loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
    result: Any = None
    error: Optional[BaseException] = None
    try:
        result = call()
    except BaseException as exc:  # noqa: BLE001 - raised to the caller who waits; a panic of Rust is no Exception
        error = exc

    def settle() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:
        # the loop was closed meanwhile: nobody waits
        return
