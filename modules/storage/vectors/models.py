"""The vocabulary of the vector stores: documents, results, collections, metrics and their scores."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Union

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Capabilities",
    "CollectionInfo",
    "DistanceMetric",
    "SearchResults",
    "Vector",
    "VectorDocument",
    "VectorPage",
    "VectorSearchResult",
    "named_result",
    "scores",
]

#: A vector as callers may give it: shape (dimension,), finite.
Vector = Union[Sequence[float], NDArray[Any]]

_NO_VECTOR: NDArray[np.float32] = np.empty(0, dtype=np.float32)


class DistanceMetric(str, enum.Enum):
    """How nearness is measured. The score is the same on every provider to 1e-4; higher is nearer.

    | metric | score | range |
    |---|---|---|
    | cosine | a.b / (|a| |b|) | -1 to 1 |
    | euclidean | 1 / (1 + |a - b|) | 0 (far) to 1 (equal) |
    | dot_product, inner_product | a.b | any number |
    """

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"
    DOT_PRODUCT = "dot_product"
    INNER_PRODUCT = "inner_product"


@dataclass(frozen=True, eq=False)
class VectorDocument:
    """What is stored under an id.

    Attributes:
        id: Unique in its namespace; blank: a UUIDv7 is made when it is stored.
        vector: Shape (dimension,), float32 once stored; empty when a search was asked to leave vectors out.
        content: The text it stands for.
        metadata: JSON object, searchable by filters.
        namespace: Where it lies; None: the call's.
        created_at: Aware; None: when it is first stored.
    """

    id: str
    vector: Vector
    content: Optional[str] = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    namespace: Optional[str] = None
    created_at: Optional[datetime] = None

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {
            "id": self.id,
            "vector": [float(number) for number in self.vector],
            "content": self.content,
            "metadata": dict(self.metadata),
            "namespace": self.namespace,
            "created_at": None if self.created_at is None else self.created_at.isoformat(),
        }


@dataclass(frozen=True, eq=False)
class VectorSearchResult:
    """One hit.

    Attributes:
        document: What was found.
        score: Higher is nearer, by the formula of `DistanceMetric`, the same on every provider.
        distance: The provider's own figure, whatever it is.
    """

    document: VectorDocument
    score: float
    distance: float

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {"document": self.document.to_dict(), "score": self.score, "distance": self.distance}


def named_result(item: str, namespace: str, score: float, distance: float) -> VectorSearchResult:
    """Return a hit of which nothing but the id is wanted."""
    return VectorSearchResult(VectorDocument(item, _NO_VECTOR, namespace=namespace), score, distance)


class SearchResults(List[VectorSearchResult]):
    """The hits, best first, ties by id; a list that says whether it is all there is.

    Attributes:
        complete: False when matches may be missing; fewer than min(top_k, matches) are never returned silently.
        reason: Why they may; empty when complete.
    """

    def __init__(
        self, results: Iterable[VectorSearchResult] = (), *, complete: bool = True, reason: str = ""
    ) -> None:
        super().__init__(results)
        self.complete = complete
        self.reason = reason


@dataclass(frozen=True)
class VectorPage:
    """A page of `scroll`; `next_cursor` is None on the last one."""

    items: List[VectorDocument]
    next_cursor: Optional[str]


@dataclass(frozen=True)
class CollectionInfo:
    """One collection.

    Attributes:
        name: As given to `create_collection`.
        dimension: Numbers in a vector.
        count: Documents of this tenant in all its namespaces.
        metric: How nearness is measured.
        index_type: What the provider searches with, for example "exact" or "hnsw".
        metadata: As given to `create_collection`.
    """

    name: str
    dimension: int
    count: int
    metric: DistanceMetric
    index_type: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {
            "name": self.name,
            "dimension": self.dimension,
            "count": self.count,
            "metric": self.metric.value,
            "index_type": self.index_type,
            "metadata": dict(self.metadata),
        }


@dataclass(frozen=True)
class Capabilities:
    """What a provider's engine does by itself; what it does not, we do exactly on top of it.

    Attributes:
        exact_search: Every search is exact (recall 1.0).
        native_filters: Filters are answered inside the engine.
        transactional: Writes can join a unit of work's SQL transaction.
        immediately_consistent: A write is visible to the next read.
        persistent: Data survives the process.
        max_top_k: Largest `top_k`.
        deletes_by_age: `delete_older`, and with it `retention.vector_days`, works.
        metrics: The metrics it can be created with.
        keeps_created_at: A document that is replaced by one without a time keeps its `created_at`; else it gets a new one.
    """

    exact_search: bool
    native_filters: bool
    transactional: bool
    immediately_consistent: bool
    persistent: bool
    max_top_k: int = 10_000
    deletes_by_age: bool = False
    metrics: Sequence[DistanceMetric] = tuple(DistanceMetric)
    keeps_created_at: bool = True


def scores(
    metric: DistanceMetric, query: NDArray[np.float32], matrix: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the score of each row of `matrix`.

    Args:
        metric: The collection's.
        query: Shape (dimension,).
        matrix: Shape (rows, dimension).

    Returns:
        Shape (rows,); see `DistanceMetric` for formula and range.
    """
    if metric is DistanceMetric.EUCLIDEAN:
        distances = np.linalg.norm(matrix - query, axis=1)
        result: NDArray[np.float32] = (1.0 / (1.0 + distances)).astype(np.float32)
        return result
    products: NDArray[np.float32] = matrix @ query
    if metric is DistanceMetric.COSINE:
        norms = np.linalg.norm(matrix, axis=1) * np.linalg.norm(query)
        products = np.clip(products / np.where(norms == 0, 1, norms), -1.0, 1.0).astype(np.float32)
    return products
