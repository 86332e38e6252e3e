"""What tools and vector stores say to each other: records that are stored, matches that are found, and the answers.

Tools import them from `modules.Tools.Base_Tools.vector_store`. They stand here because neither side may import the other.
Vectors are tuples of float, so that nothing here needs NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Tuple

__all__ = ["DeleteResponse", "QueryMatch", "QueryResponse", "UpsertResponse", "VectorRecord"]


@dataclass(frozen=True)
class VectorRecord:
    """What is stored under an id.

    Attributes:
        id: Unique in its namespace; blank: one is made.
        values: The vector; every record of a namespace has as many numbers.
        metadata: JSON object, for filters.
        content: The text that it stands for.
    """

    id: str
    values: Tuple[float, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    content: Optional[str] = None

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {
            "id": self.id,
            "values": [float(number) for number in self.values],
            "metadata": dict(self.metadata),
            "content": self.content,
        }


@dataclass(frozen=True)
class UpsertResponse:
    """What an upsert stored.

    Attributes:
        namespace: Where.
        ids: Of the records stored, each once, in their order; the last of several with one id counts.
        upserted_count: How many.
    """

    namespace: str
    ids: Tuple[str, ...]
    upserted_count: int

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {"namespace": self.namespace, "ids": list(self.ids), "upserted_count": self.upserted_count}


@dataclass(frozen=True)
class QueryMatch:
    """One hit.

    Attributes:
        id: Of the record.
        score: Cosine similarity, -1 to 1; higher is nearer.
        metadata: Of the record.
        content: Of the record.
        values: Its vector, where that was asked for.
    """

    id: str
    score: float
    metadata: Mapping[str, Any] = field(default_factory=dict)
    content: Optional[str] = None
    values: Optional[Tuple[float, ...]] = None

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {
            "id": self.id,
            "score": self.score,
            "metadata": dict(self.metadata),
            "content": self.content,
            "values": None if self.values is None else list(self.values),
        }


@dataclass(frozen=True)
class QueryResponse:
    """The hits, best first.

    Attributes:
        namespace: Where was looked.
        matches: At most `top_k`.
        top_k: How many were wanted.
        complete: False when matches may be missing.
        reason: Why they may; empty when complete.
    """

    namespace: str
    matches: Tuple[QueryMatch, ...]
    top_k: int
    complete: bool = True
    reason: str = ""

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {
            "namespace": self.namespace,
            "matches": [match.to_dict() for match in self.matches],
            "top_k": self.top_k,
            "complete": self.complete,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class DeleteResponse:
    """What became of a namespace.

    Attributes:
        namespace: Which.
        deleted: Whether it was there.
    """

    namespace: str
    deleted: bool

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {"namespace": self.namespace, "deleted": self.deleted}
