"""How a unit of work ends: its compensating actions, and what must be done to the end even when its task is cancelled."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any, Coroutine, List, Optional, Sequence, TypeVar

from modules.storage.unit_contracts import Compensation
from modules.store_common import failpoints

__all__ = ["compensate", "to_the_end"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


async def compensate(actions: Sequence[Compensation], timeout_s: float, dialect: str) -> List[BaseException]:
    """Run compensating actions, newest first, each at most `timeout_s` seconds; returns what they raised."""
    failures: List[BaseException] = []
    for action in reversed(actions):
        try:
            await asyncio.wait_for(_call(action), timeout_s)
        except (Exception, asyncio.CancelledError) as exc:
            # a cancelled action is a failed one: the others run all the same
            logger.exception(
                "storage.unit_of_work.compensation_failed",
                extra={"backend": dialect, "error_type": type(exc).__name__},
            )
            failures.append(exc)
    return failures


async def _call(action: Compensation) -> None:
    if failpoints.armed:
        await failpoints.meet("unit.compensating")
    result = action()
    if inspect.isawaitable(result):
        await result


async def to_the_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await `coroutine` to its end even if the calling task is cancelled meanwhile; then let the cancellation pass."""
    task = asyncio.ensure_future(coroutine)
    cancelled: Optional[asyncio.CancelledError] = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            if task.cancelled():
                raise
            cancelled = exc
        except Exception:  # noqa: BLE001 - the task's own error: raised below
            break
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()
