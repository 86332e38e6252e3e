"""ATLAS storage: one async manager for everything an agent application keeps.

Importing this package imports no driver and no SQLAlchemy: each name is loaded from its room at first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, List

_ROOMS = {
    "StorageSettings": "modules.storage.settings",
}

__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(room), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted(set(globals()) | set(__all__))
