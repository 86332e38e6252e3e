"""SIGTERM and SIGINT for a process that does nothing but work: the first one asks to stop, the second one ends at once.

Handlers are set with `signal.signal`, not on the event loop: a handler of somebody's that blocks the loop must not keep the
process from hearing a second signal. For the same reason a thread ends the process when the grace has passed and it is
still there.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Callable, Dict, Optional, Type

__all__ = ["StopSignals"]

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_BASE_CODE = 128  # what shells add to the number of the signal
# How long after the grace an orderly end may take before the process is ended without one.
_OVERTIME_S = 1.8


class StopSignals:
    """Listens while the block runs; in the main thread only, elsewhere it does nothing.

    Args:
        stop: Called at the first signal, in the main thread, between two lines of Python: it must only set something.
        grace_s: After this many seconds, and a little more, the process ends whatever it is doing; None: never.
        end: What ends the process at once; for tests.
    """

    def __init__(
        self, stop: Callable[[], None], grace_s: Optional[float], end: Callable[[int], Any] = os._exit
    ) -> None:
        self._stop = stop
        self._grace_s = grace_s
        self._end = end
        self._before: Dict[int, Any] = {}
        self._timer: Optional[threading.Timer] = None
        #: The first signal that came, None before.
        self.received: Optional[int] = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
        if self._timer is not None:
            self._timer.cancel()

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        if self.received is not None:
            self._end(_BASE_CODE + number)
            return
        self.received = number
        if self._grace_s is not None:
            self._timer = threading.Timer(self._grace_s + _OVERTIME_S, self._end, (1,))
            self._timer.daemon = True
            self._timer.start()
        self._stop()
