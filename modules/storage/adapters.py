"""The stores for synchronous code: the same operations under the same names, run on an event loop in a thread.

Nothing is written twice: a repository here is the async store behind a bridge. Coroutine methods block until they are
done, async iterators become iterators, async context managers become context managers. The tenant and the deadline of
the calling context hold.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import inspect
import threading
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, Iterator, Optional, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager

__all__ = [
    "DomainStoreFactory",
    "SyncBridge",
    "SyncRepository",
    "bridge",
    "create_conversation_repository",
    "create_job_repository",
    "create_kv_store",
    "create_task_repository",
]

T = TypeVar("T")


class SyncBridge:
    """An event loop in a thread of its own, started at the first call, on which synchronous code runs coroutines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._portal: Optional[BlockingPortal] = None

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run `await function(*args)` on the bridge's loop and return its result.

        Raises:
            StorageError: called on an event loop, which it would block.
        """
        portal = self.portal()
        return portal.call(function, *args)

    def portal(self) -> BlockingPortal:
        """Return the portal to the bridge's loop, started if need be."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise StorageError(
                "a synchronous repository was used on an event loop, which it would block; await the async store"
            )
        with self._lock:
            if self._portal is None:
                self._portal = self._stack.enter_context(start_blocking_portal(name="atlas-storage-sync"))
            return self._portal

    def close(self) -> None:
        """End the loop and its thread. Harmless when it never ran."""
        with self._lock:
            stack, self._stack = self._stack, ExitStack()
            self._portal = None
        stack.close()


_bridge = SyncBridge()
atexit.register(_bridge.close)


def bridge() -> SyncBridge:
    """Return the process's bridge."""
    return _bridge


class SyncRepository:
    """A store for synchronous code: every public method of `store` under its own name, blocking.

    Args:
        store: An async store.
        over: The bridge; None: the process's.
    """

    def __init__(self, store: Any, over: Optional[SyncBridge] = None) -> None:
        self._store = store
        self._bridge = over if over is not None else _bridge

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _blocking(getattr(self._store, name), self._bridge)

    def __dir__(self) -> Any:
        return sorted(name for name in dir(self._store) if not name.startswith("_"))

    def __repr__(self) -> str:
        return f"SyncRepository({type(self._store).__name__})"


def _blocking(member: Any, over: SyncBridge) -> Any:
    """Return `member` of an async object for synchronous callers; what is not callable as it is."""
    if not callable(member):
        return member

    @functools.wraps(member)
    def call(*args: Any, **kwargs: Any) -> Any:
        if inspect.iscoroutinefunction(member):
            return over.call(functools.partial(member, *args, **kwargs))
        result = member(*args, **kwargs)
        if inspect.isasyncgen(result) or hasattr(result, "__anext__"):
            return _iterate(result, over)
        if isinstance(result, AbstractAsyncContextManager) or hasattr(result, "__aenter__"):
            return _manage(result, over)
        if inspect.isawaitable(result):
            return over.call(functools.partial(_await, result))
        return result

    return call


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _iterate(items: AsyncIterator[T], over: SyncBridge) -> Iterator[T]:
    try:
        while True:
            try:
                item = over.call(items.__anext__)
            except StopAsyncIteration:
                return
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            over.call(close)


@contextmanager
def _manage(manager: AbstractAsyncContextManager[Any], over: SyncBridge) -> Iterator[Any]:
    # the portal enters and leaves in one task, as context variables and task-bound locks inside need
    with over.portal().wrap_async_context_manager(manager) as entered:
        yield SyncRepository(entered, over)


class DomainStoreFactory:
    """Makes synchronous repositories over one manager's stores.

    Args:
        manager: Open, on any event loop; SQLite and PostgreSQL serve several loops.
    """

    def __init__(self, manager: StorageManager) -> None:
        self._manager = manager

    def conversation_repository(self) -> SyncRepository:
        """Return the conversation store for synchronous code."""
        return SyncRepository(self._manager.conversations)

    def kv_store(self) -> SyncRepository:
        """Return the key-value store for synchronous code."""
        return SyncRepository(self._manager.kv)

    def task_repository(self) -> SyncRepository:
        """Return the task store for synchronous code."""
        return SyncRepository(self._manager.tasks)

    def job_repository(self) -> SyncRepository:
        """Return the job store for synchronous code."""
        return SyncRepository(self._manager.jobs)


def create_conversation_repository(manager: StorageManager) -> SyncRepository:
    """Return `manager.conversations` for synchronous code."""
    return DomainStoreFactory(manager).conversation_repository()


def create_task_repository(manager: StorageManager) -> SyncRepository:
    """Return `manager.tasks` for synchronous code."""
    return DomainStoreFactory(manager).task_repository()


def create_job_repository(manager: StorageManager) -> SyncRepository:
    """Return `manager.jobs` for synchronous code."""
    return DomainStoreFactory(manager).job_repository()


def create_kv_store(manager: StorageManager) -> SyncRepository:
    """Return `manager.kv` for synchronous code."""
    return DomainStoreFactory(manager).kv_store()
