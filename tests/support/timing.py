"""Time limits of promises ("ends by its deadline"), on a machine that may be busy with other things."""

from __future__ import annotations

import subprocess
import sys
import time

__all__ = ["assert_in_time", "sluggishness"]


def sluggishness() -> float:
    """Return by how many seconds this machine, busy with other things, is late just now: what to add to a time limit."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import asyncio, json, sqlite3"], check=True, timeout=60)
    return max(0.0, 8 * (time.monotonic() - started - 0.2))


def assert_in_time(started: float, limit_s: float, what: object = "") -> None:
    """Fail when more than `limit_s` seconds, and what the machine is late by, have passed since `started` (monotonic)."""
    took = time.monotonic() - started
    if took > limit_s:
        allowed = limit_s + sluggishness()
        assert took <= allowed, f"{what} took {took:.2f} s of {limit_s:g} s ({allowed:.2f} s on this machine)"
