"""Which function runs which job.

    from modules.orchestration import handler

    @handler("mail.send")
    async def send(job: JobContext) -> dict:
        ...

A coroutine function runs on the worker's event loop, a plain one in a thread of the worker's own pool. What it returns is
kept as the result of the run, a JSON value.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Optional, TypeVar

from modules.orchestration.errors import (
    HandlerNameTakenError,
    HandlerNotFoundError,
    HandlersNotLoadedError,
)
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier

if TYPE_CHECKING:
    from modules.orchestration.context import JobContext

__all__ = ["Handler", "HandlerRegistry", "default_handlers", "handler", "load_handlers"]

F = TypeVar("F", bound="Callable[[JobContext], Any]")


@dataclass(frozen=True)
class Handler:
    """A registered function.

    Attributes:
        name: What jobs call it.
        function: Takes a `JobContext`.
        is_async: It runs on the event loop.
    """

    name: str
    function: Callable[[Any], Any]
    is_async: bool


class HandlerRegistry:
    """Handlers by name."""

    def __init__(self) -> None:
        self._handlers: Dict[str, Handler] = {}

    def handler(self, name: str) -> Callable[[F], F]:
        """Register the decorated function under `name`.

        Raises:
            HandlerNameTakenError: another function has it.
            InvalidValueError: `name` is no identifier.
        """

        def decorate(function: F) -> F:
            self.add(name, function)
            return function

        return decorate

    def add(self, name: str, function: Callable[[Any], Any]) -> None:
        """Register `function` under `name`."""
        check_identifier(name, "name of a handler")
        if not callable(function):
            raise InvalidValueError(f"handler {name!r} must be a function, not {type(function).__name__}")
        known = self._handlers.get(name)
        if known is not None and known.function is not function:
            raise HandlerNameTakenError(
                f"handler {name!r} is registered already, by {_where(known.function)}; names are unique"
            )
        self._handlers[name] = Handler(name, function, _is_async(function))

    def get(self, name: str) -> Optional[Handler]:
        """Return the handler of that name, None without one."""
        return self._handlers.get(name)

    def require(self, name: str) -> Handler:
        """Return the handler of that name.

        Raises:
            HandlerNotFoundError: there is none.
        """
        found = self._handlers.get(name)
        if found is None:
            raise HandlerNotFoundError(name)
        return found

    @property
    def names(self) -> List[str]:
        """The names, sorted."""
        return sorted(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)


#: Where `@handler` registers, and what a worker uses that is given no registry.
default_handlers = HandlerRegistry()


def handler(name: str) -> Callable[[F], F]:
    """Register the decorated function as the handler of jobs of that name, for every worker of this process."""
    return default_handlers.handler(name)


def load_handlers(modules: Iterable[str], directory: Optional[str] = None) -> None:
    """Import modules that register handlers.

    Args:
        modules: Dotted names.
        directory: Looked into first, as `python -m` does with the working directory.

    Raises:
        HandlersNotLoadedError: one cannot be imported; the message says which and why.
    """
    if directory is not None and directory not in sys.path:
        sys.path.insert(0, directory)
    for name in modules:
        if not name or not all(part.isidentifier() for part in name.split(".")):
            raise HandlersNotLoadedError(f"{name!r} is no name of a module; give one such as mypkg.handlers")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as exc:
            if exc.name is not None and (name == exc.name or name.startswith(exc.name + ".")):
                raise HandlersNotLoadedError(
                    f"there is no module {name!r} here; give a dotted name that Python can import"
                ) from exc
            raise HandlersNotLoadedError(
                f"module {name!r} needs {exc.name!r}, which is not installed"
            ) from exc
        except Exception as exc:
            # its text may hold anything
            raise HandlersNotLoadedError(
                f"module {name!r} raised {type(exc).__name__} when it was imported; run with --debug to see where"
            ) from exc


def _is_async(function: Callable[[Any], Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object whose __call__ is a coroutine function
    )


def _where(function: Any) -> str:
    return (
        f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"
    )
