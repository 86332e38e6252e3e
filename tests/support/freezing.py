"""SIGSTOP that has happened when the call returns.

The kernel stops a process when one of its threads has taken the signal; until that thread gets a processor the others go on
and may answer another request.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Iterable, List

__all__ = ["freeze", "has_ended"]

_STOPPED_OR_GONE = frozenset("TtZX")


def freeze(pids: Iterable[int], seconds: float = 30.0) -> None:
    """Stop the processes, in the order given, and return when none of their threads runs any more.

    Raises:
        AssertionError: one still runs after `seconds`.
    """
    end = time.monotonic() + seconds
    for pid in pids:
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            continue
        while not _stopped(pid):
            assert time.monotonic() < end, f"process {pid} does not stop"
            time.sleep(0.001)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for nothing but that its parent takes notice."""
    return all(state in "ZX" for state in _states(pid))


def _stopped(pid: int) -> bool:
    return all(state in _STOPPED_OR_GONE for state in _states(pid))


def _states(pid: int) -> List[str]:
    """Return the state of each thread, as proc(5) has it: the field after the name, which may hold parentheses itself."""
    states = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            states.append(stat.read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return states
