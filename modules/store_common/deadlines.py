"""How long a call may take: the configured default, or what a surrounding `with deadline(seconds):` says.

Durations come from the monotonic clock. A deadline inside another one can only shorten it.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Awaitable, Callable, Iterator, Optional, TypeVar

from modules.store_common.errors import InvalidValueError

__all__ = ["deadline", "deadline_after", "within"]

T = TypeVar("T")

_current: ContextVar[Optional[float]] = ContextVar("atlas_storage_deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let every storage call inside the block end within `seconds` of now, by `DeadlineExceededError` if need be.

    Args:
        seconds: Greater than 0.
    """
    if not math.isfinite(seconds) or seconds <= 0:
        raise InvalidValueError("a deadline is a finite number of seconds greater than 0")
    token = _current.set(deadline_after(seconds))
    try:
        yield
    finally:
        _current.reset(token)


def deadline_after(default_seconds: float) -> float:
    """Return the monotonic time (seconds) at which a call starting now has to end."""
    own = time.monotonic() + default_seconds
    outer = _current.get()
    return own if outer is None or own < outer else outer


async def within(
    awaitable: Awaitable[T], seconds: float, *, discard: Optional[Callable[[T], Any]] = None
) -> T:
    """Await something for at most `seconds`; what takes longer is cancelled.

    `asyncio.wait_for` swallows a cancellation that arrives together with the result (before Python 3.12): the caller
    goes on as if nobody had asked it to stop. Here cancellation always passes.

    Args:
        awaitable: A coroutine or future.
        seconds: Its patience.
        discard: Called with a result that nobody will get, because the caller was cancelled at that moment.

    Raises:
        asyncio.TimeoutError: it took longer.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await _give_up(task, discard)
        raise
    if task.done():
        return task.result()
    await _give_up(task, discard)
    raise asyncio.TimeoutError


async def _give_up(task: asyncio.Future[T], discard: Optional[Callable[[T], Any]]) -> None:
    task.cancel()
    try:
        await asyncio.wait({task})
    finally:
        if task.done() and not task.cancelled() and task.exception() is None and discard is not None:
            discard(task.result())
