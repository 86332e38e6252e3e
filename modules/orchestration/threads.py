"""The threads in which plain (not async) handlers run: bounded, the worker's own, and no obstacle to the end of the process.

Python's executor joins its threads at exit, so one handler that never returns would hold the process for ever. These are
daemons. A call that is given up (its job timed out) keeps its thread until it returns; another thread takes its place, up
to a bound.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Any, Callable, Deque, Optional, Set

__all__ = ["HandlerThreads", "ThreadCall"]


class ThreadCall:
    """A call in a thread, or waiting for one.

    Attributes:
        future: Done when the call has ended; belongs to the loop that submitted it.
    """

    __slots__ = ("_call", "_loop", "abandoned", "future", "started")

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> None:
        self._loop = loop
        self._call = call
        self.future: asyncio.Future[Any] = loop.create_future()
        self.abandoned = False
        self.started = False

    def run(self) -> None:
        """Run it, in a thread."""
        try:
            value, error = self._call(), None
        except BaseException as exc:  # noqa: BLE001 - handed to whoever waits
            value, error = None, exc
        try:
            self._loop.call_soon_threadsafe(self._finish, value, error)
        except RuntimeError:
            # the loop is closed: nobody waits any more
            return

    def _finish(self, value: Any, error: Optional[BaseException]) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(value)
        elif isinstance(error, (StopIteration, KeyboardInterrupt, SystemExit)):
            # a future does not take the first, and the others would end the loop
            self.future.set_exception(RuntimeError(f"the handler raised {type(error).__name__}"))
        else:
            self.future.set_exception(error)


class HandlerThreads:
    """A pool of daemon threads.

    Args:
        size: Calls at the same time, those that were given up not counted.
        name: Prefix of the threads' names.
        spare: Threads that may be held by calls that were given up, beyond `size`.
    """

    def __init__(self, size: int, name: str, spare: Optional[int] = None) -> None:
        self._size = size
        self._name = name
        self._spare = size if spare is None else spare
        self._waiting: Deque[ThreadCall] = deque()
        self._changed = threading.Condition()
        self._threads: Set[threading.Thread] = set()
        self._idle = 0
        self._abandoned = 0
        self._made = 0
        self._closed = False

    @property
    def abandoned(self) -> int:
        """Calls that were given up and have not returned yet."""
        with self._changed:
            return self._abandoned

    @property
    def exhausted(self) -> bool:
        """Whether calls that were given up hold so many threads that no other may start."""
        with self._changed:
            return self._abandoned >= self._size + self._spare

    def submit(self, call: Callable[[], Any]) -> ThreadCall:
        """Run `call` in a thread as soon as one is free. On the event loop only."""
        made = ThreadCall(asyncio.get_running_loop(), call)
        with self._changed:
            self._waiting.append(made)
            if self._idle >= len(self._waiting):
                self._changed.notify()
            else:
                self._grow()
        return made

    def abandon(self, call: ThreadCall) -> bool:
        """Wait for `call` no longer. Returns whether it was under way, and so still holds its thread."""
        call.future.cancel()
        with self._changed:
            if not call.started:
                if call in self._waiting:
                    self._waiting.remove(call)
                return False
            if not call.abandoned:
                call.abandoned = True
                self._abandoned += 1
                self._grow()
            return True

    def close(self) -> int:
        """Let threads end when their call has; returns how many calls are under way still."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
            return len(self._threads) - self._idle

    def join(self, seconds: float) -> None:
        """Wait for idle threads to have ended, after `close`. Those with a call under way are not waited for."""
        with self._changed:
            idle = self._idle
            if idle:
                self._changed.wait_for(lambda: self._idle == 0, seconds)

    def _grow(self) -> None:
        allowed = self._size + min(self._abandoned, self._spare)
        if self._closed or not self._waiting or len(self._threads) >= allowed:
            return
        self._made += 1
        thread = threading.Thread(target=self._work, name=f"{self._name}-{self._made}", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                self._idle += 1
                while not self._waiting and not self._closed:
                    self._changed.wait()
                self._idle -= 1
                if not self._waiting:
                    self._threads.discard(me)
                    self._changed.notify_all()
                    return
                call = self._waiting.popleft()
                call.started = True
            call.run()
            with self._changed:
                if call.abandoned:
                    # its place was taken meanwhile
                    self._abandoned -= 1
                    self._threads.discard(me)
                    self._grow()
                    return
