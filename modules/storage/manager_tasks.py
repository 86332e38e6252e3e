"""Ending the background tasks of a manager."""

from __future__ import annotations

import asyncio
from typing import List

__all__ = ["stop_tasks"]

_CANCEL_AGAIN_S = 0.2


async def stop_tasks(tasks: List[asyncio.Task[None]]) -> None:
    """Cancel background tasks and wait until they have ended, on the loop that they run on."""
    here = asyncio.get_running_loop()
    mine = [task for task in tasks if task.get_loop() is here]
    for task in tasks:
        loop = task.get_loop()
        if loop is here:
            task.cancel()
        elif loop.is_running():
            loop.call_soon_threadsafe(task.cancel)
    while mine:
        # Code below may swallow a cancellation that comes with a result (`asyncio.wait_for` before Python 3.12): ask again.
        _, pending = await asyncio.wait(mine, timeout=_CANCEL_AGAIN_S)
        mine = list(pending)
        for task in mine:
            task.cancel()
