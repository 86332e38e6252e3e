"""One index of the Pinecone emulator: namespaces of records, exact search in NumPy, writes that become visible later."""

from __future__ import annotations

import base64
import json
import math
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

__all__ = ["EmulatedIndex", "RefusedError", "passes"]

_METADATA_BYTES = 40 * 1024
_RESULT_BYTES = 4 * 1024 * 1024
_NAMESPACE_LIMIT = 512


class RefusedError(Exception):
    """The service would answer with this status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class EmulatedIndex:
    """The data of one index."""

    def __init__(self, dimension: int, metric: str) -> None:
        self.dimension = dimension
        self.metric = metric
        self.visible_after_reads = 0
        self.visible_after_s = 0.0
        self.searchable_after_queries = 0
        self._spaces: Dict[str, Dict[str, Dict[str, Any]]] = {}
        self._unsearchable: Dict[Tuple[str, str], int] = {}
        self._pending: List[Tuple[List[float], Callable[[], None]]] = []

    # --- consistency --------------------------------------------------------------------------------------------

    def _write(self, change: Callable[[], None]) -> None:
        self._pending.append(
            ([float(self.visible_after_reads), time.monotonic() + self.visible_after_s], change)
        )

    def _read(self) -> None:
        while self._pending and self._pending[0][0][0] <= 0 and self._pending[0][0][1] <= time.monotonic():
            self._pending.pop(0)[1]()
        if self._pending:
            self._pending[0][0][0] -= 1

    def show(self) -> None:
        """Make every write visible now."""
        while self._pending:
            self._pending.pop(0)[1]()

    # --- operations ---------------------------------------------------------------------------------------------

    def upsert(self, body: Mapping[str, Any]) -> Dict[str, Any]:
        name = _namespace(body)
        vectors = body["vectors"]
        for vector in vectors:
            self._check_vector(vector)
        made = {vector["id"]: _stored(vector) for vector in vectors}

        def change() -> None:
            self._spaces.setdefault(name, {}).update(made)
            if self.searchable_after_queries:
                self._unsearchable.update({(name, item): self.searchable_after_queries for item in made})

        self._write(change)
        return {"upsertedCount": len(vectors)}

    def _check_vector(self, vector: Mapping[str, Any]) -> None:
        _check_id(vector["id"])
        values = vector["values"]
        if len(values) != self.dimension:
            raise RefusedError(f"Vector dimension {len(values)} does not match the dimension of the index")
        if not np.asarray(values, dtype=np.float32).any():
            raise RefusedError("Dense vectors must contain at least one non-zero value")
        _check_metadata(vector.get("metadata", {}))

    def fetch(self, ids: Sequence[str], namespace: str) -> Dict[str, Any]:
        self._read()
        for item in ids:
            _check_id(item)
        space = self._spaces.get(namespace, {})
        return {
            "vectors": {item: space[item] for item in ids if item in space},
            "namespace": namespace,
            "usage": {"readUnits": 1},
        }

    def list(self, namespace: str, prefix: str, limit: int, token: Optional[str]) -> Dict[str, Any]:
        self._read()
        if not 1 <= limit <= 100:
            raise RefusedError("limit must be between 1 and 100")
        names = sorted(item for item in self._spaces.get(namespace, {}) if item.startswith(prefix))
        page, following = _page(names, limit, token)
        answer: Dict[str, Any] = {
            "vectors": [{"id": item} for item in page],
            "namespace": namespace,
            "usage": {"readUnits": 1},
        }
        if following is not None:
            answer["pagination"] = {"next": following}
        return answer

    def fetch_by_metadata(self, body: Mapping[str, Any]) -> Dict[str, Any]:
        self._read()
        space = self._spaces.get(_namespace(body), {})
        _check_filter(body["filter"])
        names = sorted(item for item, row in space.items() if passes(body["filter"], row.get("metadata", {})))
        page, following = _page(names, body.get("limit", 100), body.get("paginationToken"))
        answer: Dict[str, Any] = {
            "vectors": {item: space[item] for item in page},
            "namespace": _namespace(body),
            "usage": {"readUnits": 1},
        }
        if following is not None:
            answer["pagination"] = {"next": following}
        return answer

    def query(self, body: Mapping[str, Any]) -> Dict[str, Any]:
        self._read()
        namespace = _namespace(body)
        if len(body["vector"]) != self.dimension:
            raise RefusedError("Vector dimension does not match the dimension of the index")
        if "filter" in body:
            _check_filter(body["filter"])
        rows = [
            row
            for row in self._spaces.get(namespace, {}).values()
            if (namespace, row["id"]) not in self._unsearchable
            and ("filter" not in body or passes(body["filter"], row.get("metadata", {})))
        ]
        self._unsearchable = {key: left - 1 for key, left in self._unsearchable.items() if left > 1}
        matches = [
            self._match(row, score, body) for row, score in self._nearest(body["vector"], rows, body["topK"])
        ]
        answer = {"matches": matches, "namespace": namespace, "usage": {"readUnits": 1}}
        if len(json.dumps(answer)) > _RESULT_BYTES:
            raise RefusedError("Query result size exceeds the limit of 4MB")
        return answer

    def _nearest(
        self, vector: Sequence[float], rows: List[Dict[str, Any]], top_k: int
    ) -> List[Tuple[Dict[str, Any], float]]:
        if not rows:
            return []
        query = np.asarray(vector, dtype=np.float64)
        if not query.any():
            raise RefusedError("Dense vectors must contain at least one non-zero value")
        matrix = np.asarray([row["values"] for row in rows], dtype=np.float64)
        if self.metric == "euclidean":
            scores = ((matrix - query) ** 2).sum(axis=1)
            worse = scores
        else:
            scores = (matrix * query).sum(axis=1)
            if self.metric == "cosine":
                scores = scores / (np.sqrt((matrix**2).sum(axis=1)) * np.sqrt((query**2).sum()))
            worse = -scores
        # the service's scores are float32; so that ties are ties they are rounded before they are ordered
        order = sorted(
            range(len(rows)), key=lambda place: (float(np.float32(worse[place])), rows[place]["id"])
        )
        return [(rows[place], float(np.float32(scores[place]))) for place in order[:top_k]]

    @staticmethod
    def _match(row: Mapping[str, Any], score: float, body: Mapping[str, Any]) -> Dict[str, Any]:
        found: Dict[str, Any] = {"id": row["id"], "score": score}
        if body.get("includeValues"):
            found["values"] = row["values"]
        if body.get("includeMetadata") and "metadata" in row:
            found["metadata"] = row["metadata"]
        return found

    def update(self, body: Mapping[str, Any]) -> Dict[str, Any]:
        namespace = _namespace(body)
        _check_metadata(body.get("setMetadata", {}))

        def change() -> None:
            row = self._spaces.get(namespace, {}).get(body["id"])
            if row is not None:
                row["values"] = body.get("values", row["values"])
                row["metadata"] = {**row.get("metadata", {}), **body.get("setMetadata", {})}

        self._write(change)
        return {}

    def delete(self, body: Mapping[str, Any]) -> Dict[str, Any]:
        namespace = _namespace(body)
        self._read()
        if not self._pending and namespace not in self._spaces:
            raise RefusedError("Namespace not found", 404)
        chosen = [key for key in ("ids", "deleteAll", "filter") if body.get(key)]
        if len(chosen) != 1:
            raise RefusedError("Exactly one of ids, deleteAll and filter is needed")

        def change() -> None:
            space = self._spaces.get(namespace, {})
            gone = body.get("ids") or [
                item
                for item, row in space.items()
                if body.get("deleteAll") or passes(body["filter"], row.get("metadata", {}))
            ]
            for item in gone:
                space.pop(item, None)

        self._write(change)
        return {}

    def stats(self) -> Dict[str, Any]:
        self._read()
        return {
            "namespaces": {name: {"vectorCount": len(space)} for name, space in self._spaces.items()},
            "dimension": self.dimension,
            "indexFullness": 0.0,
            "totalVectorCount": sum(len(space) for space in self._spaces.values()),
            "metric": self.metric,
            "vectorType": "dense",
        }

    def list_namespaces(self, prefix: str, limit: int, token: Optional[str]) -> Dict[str, Any]:
        self._read()
        names = sorted(name for name in self._spaces if name.startswith(prefix))
        page, following = _page(names, limit, token)
        answer: Dict[str, Any] = {
            "namespaces": [self._described(name) for name in page],
            "total_count": len(names),
        }
        if following is not None:
            answer["pagination"] = {"next": following}
        return answer

    def describe_namespace(self, name: str) -> Dict[str, Any]:
        self._read()
        if name not in self._spaces:
            raise RefusedError("Namespace not found", 404)
        return self._described(name)

    def _described(self, name: str) -> Dict[str, Any]:
        return {"name": name, "record_count": len(self._spaces[name])}

    def delete_namespace(self, name: str) -> Dict[str, Any]:
        self._read()
        if not self._pending and name not in self._spaces:
            raise RefusedError("Namespace not found", 404)

        def change() -> None:
            self._spaces.pop(name, None)

        self._write(change)
        return {}


def _stored(vector: Mapping[str, Any]) -> Dict[str, Any]:
    row = {
        "id": vector["id"],
        "values": np.asarray(vector["values"], dtype=np.float32).astype(float).tolist(),
    }
    if vector.get("metadata"):
        row["metadata"] = vector["metadata"]
    return row


def _namespace(body: Mapping[str, Any]) -> str:
    name: str = body.get("namespace", "")
    if len(name) > _NAMESPACE_LIMIT or not name.isascii() or "\x00" in name:
        raise RefusedError("the namespace is not ASCII of at most 512 characters")
    return name


def _check_id(item: str) -> None:
    if not 1 <= len(item) <= 512 or not item.isascii() or "\x00" in item:
        raise RefusedError("Vector ID must be ASCII of 1 to 512 characters")


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
        number = isinstance(value, (int, float)) and math.isfinite(value)
        if not key or key.startswith("$") or not (texts or number or isinstance(value, str)):
            raise RefusedError(
                "Metadata value must be a string, number, boolean or list of strings, under a key without $"
            )
    if len(json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode()) > _METADATA_BYTES:
        raise RefusedError("metadata size exceeds the limit of 40960 bytes per vector")


def _page(names: List[str], limit: int, token: Optional[str]) -> Tuple[List[str], Optional[str]]:
    if token:
        after = base64.urlsafe_b64decode(token.encode()).decode()
        names = [name for name in names if name > after]
    page = names[:limit]
    more = len(names) > limit
    return page, base64.urlsafe_b64encode(page[-1].encode()).decode() if more else None


def _check_filter(given: Any) -> None:
    if not isinstance(given, dict) or not given:
        raise RefusedError("a filter is an object with at least one condition")
    for key, value in given.items():
        if key in ("$and", "$or"):
            if not isinstance(value, list) or not value:
                raise RefusedError(f"{key} takes a list of filters")
            for part in value:
                _check_filter(part)
        elif key.startswith("$"):
            raise RefusedError(f"{key} is not an operator here")
        else:
            _check_condition(value)


def _check_condition(given: Any) -> None:
    for operator, operand in given.items() if isinstance(given, dict) else [("$eq", given)]:
        plain = isinstance(operand, (str, int, float)) and not (
            isinstance(operand, float) and not math.isfinite(operand)
        )
        number = plain and not isinstance(operand, (str, bool))
        listed = (
            isinstance(operand, list)
            and 1 <= len(operand) <= 10_000
            and all(isinstance(item, (str, int, float)) and not isinstance(item, bool) for item in operand)
        )
        fine = {
            "$eq": plain, "$ne": plain, "$gt": number, "$gte": number, "$lt": number, "$lte": number,
            "$in": listed, "$nin": listed, "$exists": isinstance(operand, bool),
        }.get(operator, False)  # fmt: skip
        if not fine:
            raise RefusedError(f"{operator} does not take this operand")


def passes(given: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    for key, value in given.items():
        if key == "$and":
            holds = all(passes(part, metadata) for part in value)
        elif key == "$or":
            holds = any(passes(part, metadata) for part in value)
        else:
            conditions = value if isinstance(value, dict) else {"$eq": value}
            holds = all(
                _holds(operator, operand, metadata.get(key)) for operator, operand in conditions.items()
            )
        if not holds:
            return False
    return True


def _holds(operator: str, operand: Any, found: Any) -> bool:
    elements = found if isinstance(found, list) else [] if found is None else [found]
    wanted = operand if isinstance(operand, list) else [operand]
    if operator == "$exists":
        return (found is not None) is operand
    if operator in ("$eq", "$in"):
        return any(_same(element, item) for element in elements for item in wanted)
    if operator in ("$ne", "$nin"):
        return not any(_same(element, item) for element in elements for item in wanted)
    numbers = [item for item in elements if isinstance(item, (int, float)) and not isinstance(item, bool)]
    compare = _ORDER[operator]
    return any(compare(item, operand) for item in numbers)


_ORDER: Dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda a, b: a > b,
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
}


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool) is isinstance(b, bool) and isinstance(a, str) is isinstance(b, str) and a == b
