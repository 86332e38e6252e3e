"""Arguments of the vector stores, checked before any store is touched, so that every provider refuses the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple, Union

import numpy as np
from numpy.typing import NDArray

from modules.storage.vectors.errors import VectorDimensionError
from modules.storage.vectors.models import DistanceMetric, Vector, VectorDocument
from modules.store_common.clock import require_utc
from modules.store_common.errors import InvalidValueError
from modules.store_common.ids import new_id
from modules.store_common.values import (
    MAX_TEXT_BYTES,
    JsonText,
    check_identifier,
    check_text,
    encode_json,
)

__all__ = [
    "DEFAULT_NAMESPACE",
    "MAX_DIMENSION",
    "MAX_METADATA_BYTES",
    "CollectionSpec",
    "PreparedDocument",
    "check_dimension",
    "check_ids",
    "check_top_k",
    "namespace_of",
    "namespace_or_none",
    "prepare_documents",
    "prepare_matrix",
    "prepare_vector",
    "replace_spec",
    "require_no_options",
]

DEFAULT_NAMESPACE = "default"
# pgvector's limit for a stored vector, https://github.com/pgvector/pgvector#vector-type
MAX_DIMENSION = 16_000
MAX_METADATA_BYTES = 1024 * 1024
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class CollectionSpec:
    """What a collection is, without its count.

    Attributes:
        name: As the caller gave it.
        dimension: Numbers in a vector.
        metric: How nearness is measured.
        index_type: What the provider searches with.
        metadata: JSON object of the caller.
        options: The provider's own, from `create_collection(index=...)`.
    """

    name: str
    dimension: int
    metric: DistanceMetric
    index_type: str
    metadata: Mapping[str, Any]
    options: Mapping[str, Any]


class PreparedDocument(NamedTuple):
    """A document that passed every check.

    Attributes:
        namespace: Resolved.
        id: Never blank.
        vector: float32, shape (dimension,).
        content: Or None.
        metadata: The object itself.
        metadata_json: The same as the text that is stored (NUL encoded, see `values`).
        created_at: UTC; None: the store sets it, and keeps the one it has.
    """

    namespace: str
    id: str
    vector: NDArray[np.float32]
    content: Optional[str]
    metadata: Mapping[str, Any]
    metadata_json: JsonText
    created_at: Optional[datetime]


def replace_spec(spec: CollectionSpec, *, index_type: str) -> CollectionSpec:
    """Return `spec` as it became when it was created."""
    return replace(spec, index_type=index_type)


def require_no_options(spec: CollectionSpec, provider: str, known: Iterable[str] = ()) -> None:
    """Refuse options of `create_collection(index=...)` that the provider does not know.

    Raises:
        InvalidValueError: names the first one, and those that are known.
    """
    takes = sorted(known)
    for option in spec.options:
        if option not in takes:
            listed = ", ".join(takes) or "none"
            raise InvalidValueError(
                f"{str(option)[:60]!r} is not an index option of the vector store {provider}; known: {listed}"
            )


def check_dimension(dimension: Any) -> int:
    """Return `dimension` if it is an int of 1 to 16,000."""
    if (
        isinstance(dimension, bool)
        or not isinstance(dimension, (int, np.integer))
        or not 1 <= dimension <= MAX_DIMENSION
    ):
        raise VectorDimensionError(f"a collection's dimension is a whole number of 1 to {MAX_DIMENSION}")
    return int(dimension)


def check_top_k(top_k: Any, limit: int, what: str = "top_k") -> int:
    """Return `top_k` if it is an int of 1 to `limit`."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= limit:
        raise InvalidValueError(f"{what} is a whole number of 1 to {limit}")
    return top_k


def namespace_or_none(namespace: Optional[str]) -> Optional[str]:
    """Return the namespace of a call, checked; None for None."""
    return None if namespace is None else check_identifier(namespace, "the namespace")


def namespace_of(namespace: Optional[str]) -> str:
    """Return the namespace of a call, checked; the default one for None."""
    return DEFAULT_NAMESPACE if namespace is None else check_identifier(namespace, "the namespace")


def check_ids(ids: Any) -> List[str]:
    """Return the ids, each once, in the order given."""
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise InvalidValueError("ids is a list of str")
    return list(dict.fromkeys(check_identifier(item, "an id") for item in ids))


def prepare_vector(vector: Vector, spec: CollectionSpec, what: str) -> NDArray[np.float32]:
    """Return `vector` as float32 of shape (dimension,).

    Raises:
        VectorDimensionError: wrong length, NaN or infinity (also when only float32 cannot hold it), or length zero
            under cosine.
    """
    row: NDArray[np.float32] = prepare_matrix([vector], spec, what)[0]
    return row


def prepare_matrix(vectors: Any, spec: CollectionSpec, what: str) -> NDArray[np.float32]:
    """Return `vectors` as float32 of shape (rows, dimension); raises as `prepare_vector`."""
    try:
        given = np.asarray(vectors)
    except (TypeError, ValueError, OverflowError):
        raise VectorDimensionError(f"{what} is not {spec.dimension} numbers for each vector") from None
    if given.dtype.kind not in "fiub" and given.size:
        raise VectorDimensionError(
            f"{what} is not {spec.dimension} numbers for each vector, but {given.dtype.name}"
        )
    with np.errstate(over="ignore"):
        matrix = given.astype(np.float32, copy=False)
    if matrix.ndim != 2 or matrix.shape[1] != spec.dimension:
        shape = "x".join(str(length) for length in matrix.shape[1:]) or "0"
        raise VectorDimensionError(
            f"{what} has dimension {shape}; the collection {spec.name!r} has dimension {spec.dimension}"
        )
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # norm() would make a copy of the matrix first
        squares: List[float] = np.einsum("ij,ij->i", matrix, matrix).tolist()
    # a query is one row, for which two more calls of NumPy are dear
    if not all(map(math.isfinite, squares)):
        # engines square in float32 as well: what overflows here would be infinity or NaN there
        raise VectorDimensionError(
            f"{what} holds NaN or infinity (numbers, and the vector's squared length, must fit float32)"
        )
    if spec.metric is DistanceMetric.COSINE and not all(squares):
        raise VectorDimensionError(f"{what} has length zero, which has no direction; cosine needs one")
    return np.ascontiguousarray(matrix)


def prepare_documents(
    documents: Iterable[VectorDocument], namespace: Optional[str], spec: CollectionSpec
) -> List[PreparedDocument]:
    """Return the documents of an upsert, checked; of several with one id in one namespace the last one is kept.

    Raises:
        InvalidValueError: names the document by its position.
    """
    if isinstance(documents, (str, bytes)) or not isinstance(documents, Iterable):
        raise InvalidValueError("documents is a list of VectorDocument")
    given = list(documents)
    for position, document in enumerate(given):
        if not isinstance(document, VectorDocument):
            raise InvalidValueError(
                f"document {position} is a {type(document).__name__}, not a VectorDocument"
            )
    if not given:
        return []
    matrix = prepare_matrix(_same_length(given, spec), spec, "a document's vector")
    prepared: Dict[Tuple[str, str], PreparedDocument] = {}
    for position, (document, vector) in enumerate(zip(given, matrix)):
        try:
            item = _prepare(document, vector, namespace, "a document")
        except InvalidValueError:
            # again, for the text that says which: made for each of a thousand, such texts cost more than the checks
            item = _prepare(document, vector, namespace, f"document {position}")
        key = (item.namespace, item.id)
        prepared.pop(key, None)
        prepared[key] = item
    return list(prepared.values())


def _is_blank(given: Any) -> bool:
    return given is None or (isinstance(given, str) and not given.strip())


def _same_length(
    given: List[VectorDocument], spec: CollectionSpec
) -> Union[List[Vector], NDArray[np.float32]]:
    vectors: List[Any] = [document.vector for document in given]
    if (
        set(map(type, vectors)) == {np.ndarray}
        and {item.dtype for item in vectors} == {_FLOAT32}
        and {item.shape for item in vectors} == {(spec.dimension,)}
    ):
        # the commonest: no look at each number
        whole: NDArray[np.float32] = np.concatenate(vectors).reshape(len(vectors), spec.dimension)
        return whole
    for position, document in enumerate(given):
        try:
            length = len(document.vector)
        except TypeError:
            raise VectorDimensionError(
                f"document {position} has no vector but a {type(document.vector).__name__}"
            ) from None
        if length != spec.dimension:
            raise VectorDimensionError(
                f"document {position} has dimension {length}; the collection {spec.name!r} has dimension {spec.dimension}"
            )
    return vectors


def _prepare(
    document: VectorDocument, vector: NDArray[np.float32], namespace: Optional[str], what: str
) -> PreparedDocument:
    own = document.namespace
    if own is not None and namespace is not None and own != namespace:
        raise InvalidValueError(f"{what} names another namespace than the call")
    chosen = own if own is not None else namespace
    content = document.content
    if content is not None and not (
        type(content) is str and len(content) <= MAX_TEXT_BYTES and content.isascii()
    ):
        check_text(content, f"the content of {what}")
    # the check against typing's Mapping costs more than all others together
    if type(document.metadata) is not dict and not isinstance(document.metadata, Mapping):
        raise InvalidValueError(
            f"the metadata of {what} is a {type(document.metadata).__name__}, not a mapping"
        )
    metadata = dict(document.metadata)
    at = document.created_at
    return PreparedDocument(
        DEFAULT_NAMESPACE if chosen is None else check_identifier(chosen, "a namespace"),
        new_id() if _is_blank(document.id) else check_identifier(document.id, "the id of " + what),
        vector,
        content,
        metadata,
        encode_json(metadata, "the metadata of " + what, max_bytes=MAX_METADATA_BYTES),
        None if at is None else require_utc(at, f"created_at of {what}"),
    )
