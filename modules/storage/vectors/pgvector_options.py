"""What a pgvector collection is made of: its checked options, and names that PostgreSQL takes.

The table of a collection is named by a digest of all that decides its shape, so that no two collections collide, no
caller's text stands in SQL, and tenants with the same collection share one table (and one index).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Dict, Mapping, Optional, Tuple

import orjson

from modules.storage.vectors.checks import CollectionSpec
from modules.storage.vectors.errors import VectorCollectionError
from modules.storage.vectors.models import DistanceMetric
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier

__all__ = ["OPTION_NAMES", "IndexOptions", "index_options", "physical_name", "quote_identifier"]

_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
# Source: pgvector README, "HNSW": vector up to 2,000 dimensions, halfvec up to 4,000
_MAX_INDEXED = 2_000
_MAX_INDEXED_HALF = 4_000
_MAX_METADATA_INDEXES = 16

_OPERATORS = {
    DistanceMetric.COSINE: "<=>",
    DistanceMetric.EUCLIDEAN: "<->",
    DistanceMetric.DOT_PRODUCT: "<#>",
    DistanceMetric.INNER_PRODUCT: "<#>",
}
_CLASSES = {"<=>": "cosine_ops", "<->": "l2_ops", "<#>": "ip_ops"}


def quote_identifier(name: str) -> str:
    """Return `name` quoted for SQL; the one way by which a name gets into a text of ours.

    Raises:
        InvalidValueError: it is not 1 to 63 lower-case letters, digits and underscores.
    """
    if not isinstance(name, str) or not _IDENTIFIER.match(name):
        raise InvalidValueError(
            "a name in SQL is a letter and up to 62 lower-case letters, digits, underscores"
        )
    return f'"{name}"'


@dataclass(frozen=True)
class IndexOptions:
    """Options of `create_collection(index={...})`.

    Attributes:
        type: "hnsw", "ivfflat" or "none" (every search is exact).
        m: HNSW: links per node, 2 to 100.
        ef_construction: HNSW: candidates during the build, 2 * m to 1,000.
        lists: IVFFlat: number of lists, 1 to 32,768.
        halfvec: Store and index 16-bit floats: half the space; vectors come back rounded (about 3 digits).
        index_metadata: Top-level metadata keys that get a B-tree index.
        target_recall: Share of the true nearest that an unfiltered search must find, 0.5 to 1.
    """

    type: str = "hnsw"
    m: int = 16
    ef_construction: int = 64
    lists: int = 100
    halfvec: bool = False
    index_metadata: Tuple[str, ...] = ()
    target_recall: float = 0.99

    def operator(self, metric: DistanceMetric) -> str:
        """Return pgvector's distance operator of `metric`."""
        return _OPERATORS[metric]

    def column_type(self) -> str:
        """Return the type of the stored vectors."""
        return "halfvec" if self.halfvec else "vector"

    def indexed_type(self, dimension: int) -> str:
        """Return the type that the index holds: halfvec above 2,000 dimensions, which an index of vector cannot."""
        return "halfvec" if self.halfvec or dimension > _MAX_INDEXED else "vector"

    def operator_class(self, metric: DistanceMetric, dimension: int) -> str:
        """Return the operator class of the index."""
        return f"{self.indexed_type(dimension)}_{_CLASSES[_OPERATORS[metric]]}"

    def to_json(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "index_metadata": list(self.index_metadata)}


#: The names of the options.
OPTION_NAMES = tuple(sorted(item.name for item in fields(IndexOptions)))


def index_options(
    given: Mapping[str, Any], dimension: int, defaults: Optional[IndexOptions] = None
) -> IndexOptions:
    """Return the options of a new collection; `given` has names of `OPTION_NAMES` only.

    Raises:
        VectorCollectionError: an option is wrong, or not possible for this dimension.
    """
    base = defaults if defaults is not None else IndexOptions()
    keys = _keys(given.get("index_metadata", base.index_metadata))
    options = replace(base, **{**given, "index_metadata": keys})
    _check(options)
    if dimension > _MAX_INDEXED_HALF and options.type != "none":
        if "type" in given:
            raise VectorCollectionError(
                f"pgvector indexes at most {_MAX_INDEXED_HALF} dimensions; use type 'none' (exact search) above"
            )
        options = replace(options, type="none")
    return options


def _check(options: IndexOptions) -> None:
    if options.type not in ("hnsw", "ivfflat", "none"):
        raise VectorCollectionError("the index option type is one of hnsw, ivfflat, none")
    for name, value, low, high in (
        ("m", options.m, 2, 100),
        ("ef_construction", options.ef_construction, 4, 1000),
        ("lists", options.lists, 1, 32768),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise VectorCollectionError(f"the index option {name} is a whole number of {low} to {high}")
    if options.ef_construction < 2 * options.m:
        raise VectorCollectionError("the index option ef_construction must be at least 2 * m")
    if not isinstance(options.halfvec, bool):
        raise VectorCollectionError("the index option halfvec is true or false")
    recall = options.target_recall
    if isinstance(recall, bool) or not isinstance(recall, (int, float)) or not 0.5 <= recall <= 1.0:
        raise VectorCollectionError("the index option target_recall is a number of 0.5 to 1")


def _keys(given: Any) -> Tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, (list, tuple)):
        raise VectorCollectionError("the index option index_metadata is a list of metadata keys")
    try:
        keys = tuple(sorted({check_identifier(key, "a key of index_metadata") for key in given}))
    except InvalidValueError as exc:
        raise VectorCollectionError(str(exc)) from None
    if len(keys) > _MAX_METADATA_INDEXES:
        raise VectorCollectionError(f"index_metadata takes at most {_MAX_METADATA_INDEXES} keys")
    return keys


def physical_name(spec: CollectionSpec, options: IndexOptions) -> str:
    """Return the name of the table: 51 characters, so that names of its indexes fit into PostgreSQL's 63 bytes."""
    shape = [spec.name, spec.dimension, spec.metric.value, options.to_json()]
    digest = hashlib.sha256(orjson.dumps(shape, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return f"atlas_pgvector_c_{digest[:32]}"
