"""Time limits of promises ("ends by its deadline"), on a machine that may be busy with other things, or stand still."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import deque
from typing import Deque, Tuple

__all__ = ["allowance", "assert_in_time", "late_since", "sluggishness"]

_STEP_S = 0.02
# What a thread of Python waits for its turn when others compute is not the machine's.
_NOTED_S = 0.01
# When the machine stood, and for how many seconds more than asked for; monotonic.
_stood: Deque[Tuple[float, float]] = deque(maxlen=10_000)


def _watch() -> None:
    while True:
        due = time.monotonic() + _STEP_S
        time.sleep(_STEP_S)
        now = time.monotonic()
        if now - due > _NOTED_S:
            _stood.append((now, now - due))


# From the import on, so that it is there before a test looks at what threads there are.
threading.Thread(target=_watch, name="timing-watch", daemon=True).start()


def late_since(started: float) -> float:
    """Return for how many seconds since `started` (monotonic) this process was given no processor when its time was up."""
    return sum(late for at, late in list(_stood) if at >= started)


def sluggishness() -> float:
    """Return by how many seconds this machine, busy with other things, is late just now: what to add to a time limit."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import asyncio, json, sqlite3"], check=True, timeout=60)
    return max(0.0, 8 * (time.monotonic() - started - 0.2))


def allowance(started: float) -> float:
    """Return what to add to a time limit: twice what the machine was late by since `started`, and what it is late by now.

    Twice, since what is waited for is the work of other threads and processes, which were late as well.
    """
    return 2 * late_since(started) + sluggishness()


def assert_in_time(started: float, limit_s: float, what: object = "") -> None:
    """Fail when more than `limit_s` seconds, and what the machine is late by, have passed since `started` (monotonic)."""
    took = time.monotonic() - started
    if took > limit_s:
        allowed = limit_s + allowance(started)
        assert took <= allowed, f"{what} took {took:.2f} s of {limit_s:g} s ({allowed:.2f} s on this machine)"
