"""Every public coroutine of a store, called with arguments that are found by parameter name.

New methods are picked up by themselves; one with a required parameter that is not in the table fails the tests that use
this, so that somebody adds it.
"""

from __future__ import annotations

import inspect
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Tuple

__all__ = ["Calls", "Fresh", "public_calls"]

#: A call ready to be made: its name and a function without parameters that returns an awaitable.
Calls = List[Tuple[str, Callable[[], Awaitable[Any]]]]


class Fresh:
    """An argument that is made anew for each call, such as an iterator."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


async def _drain(iterator: Any) -> Any:
    async for _ in iterator:
        break
    await iterator.aclose()


async def _enter(manager: Any) -> Any:
    async with manager as value:
        return value


def public_calls(store: Any, arguments: Mapping[str, Any]) -> Calls:
    """Return the public asynchronous methods of `store`, each bound to arguments out of the table `arguments`.

    The table is keyed by "method.parameter" or "parameter".
    """
    found: Calls = []
    missing: List[str] = []
    for name in sorted(dir(type(store))):
        if name.startswith("_"):
            continue
        method = getattr(store, name)
        kind = _kind(method)
        if kind is None:
            continue
        given: Dict[str, Any] = {}
        for parameter in inspect.signature(method).parameters.values():
            specific = f"{name}.{parameter.name}"
            if specific in arguments:
                given[parameter.name] = arguments[specific]
            elif parameter.default is parameter.empty:
                if parameter.name in arguments:
                    given[parameter.name] = arguments[parameter.name]
                else:
                    missing.append(specific)
        found.append((name, _bind(method, kind, given)))
    assert not missing, (
        f"tests/support/calls.py: no argument known for {missing}; add it to the tables of the callers"
    )
    return found


def _kind(method: Any) -> Any:
    if not callable(method):
        return None
    if inspect.iscoroutinefunction(method):
        return "coroutine"
    if inspect.isasyncgenfunction(method):
        return "stream"
    wrapped = getattr(method, "__wrapped__", None)
    if wrapped is not None and inspect.isasyncgenfunction(wrapped):
        return "manager"
    returns = str(getattr(method, "__annotations__", {}).get("return", ""))
    if "AsyncIterator" in returns or "AsyncGenerator" in returns:
        return "stream"
    if "Turn" in returns or "AsyncContextManager" in returns:
        return "manager"
    return "coroutine" if "Awaitable" in returns or "Coroutine" in returns else None


def _bind(method: Any, kind: str, given: Mapping[str, Any]) -> Callable[[], Awaitable[Any]]:
    async def call() -> Any:
        made = {name: value.make() if isinstance(value, Fresh) else value for name, value in given.items()}
        if kind == "coroutine":
            return await method(**made)
        if kind == "stream":
            return await _drain(method(**made))
        return await _enter(method(**made))

    return call
