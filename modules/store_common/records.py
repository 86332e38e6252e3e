"""What every store's results have in common: frozen records with `to_dict()`, and pages of lists."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Dict, Generic, Iterator, List, Optional, Tuple, TypeVar

__all__ = ["Page", "Record", "page_of"]

T = TypeVar("T")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


class Record:
    """Parent of the results: `to_dict()` gives plain JSON values, times as ISO 8601 text in UTC."""

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Page(Record, Generic[T]):
    """Part of a list; give `next_cursor` to the same call for the next part. None: there is no more."""

    items: Tuple[T, ...]
    next_cursor: Optional[str]

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> T:
        return self.items[index]


def page_of(items: List[T], next_cursor: Optional[str]) -> Page[T]:
    """Return a page of `items`."""
    return Page(tuple(items), next_cursor)
