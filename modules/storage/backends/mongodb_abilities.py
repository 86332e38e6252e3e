"""What a MongoDB-protocol server can do: asked of it once, when the pool is opened."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, Mapping

__all__ = [
    "MongoAbilities",
    "abilities_of",
]


@dataclass(frozen=True)
class MongoAbilities:
    """What the server can do.

    Attributes:
        server: "MongoDB" or the product that speaks its protocol, and its version.
        transactions: Over several documents: a replica set or sharded cluster. Our stores do without.
        change_streams: Same.
        ttl_indexes: Whether it removes expired documents by itself. Our stores sweep by themselves.
        text_indexes: Whether it has text indexes. Our stores search by an index of their own.
        partial_indexes: Whether an index may leave documents out by a condition. Our stores do without.
        projected_changes: Whether a change can return part of the document.
        atomic_changes: Whether a conditional change of one document is atomic under concurrent clients, which the stores
            are built on. FerretDB 1 is known not to do so.
    """

    server: str
    transactions: bool
    change_streams: bool
    ttl_indexes: bool
    text_indexes: bool
    partial_indexes: bool
    projected_changes: bool
    atomic_changes: bool

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def abilities_of(hello: Mapping[str, Any], build: Mapping[str, Any]) -> MongoAbilities:
    """Return what the answers to `hello` and `buildInfo` say.

    FerretDB names itself in `buildInfo`; its release 1 lacks the features that are False for it here, as the probes of
    docs/mongodb.md showed for 1.24.2. MongoDB itself has had all of them since 4.2.
    """
    cluster = "setName" in hello or hello.get("msg") == "isdbgrid"
    other = build.get("ferretdbVersion") or build.get("ferretdb")
    if not other:
        return MongoAbilities(f"MongoDB {build.get('version', '?')}", cluster, cluster, *[True] * 5)
    version = str(other.get("version", "")) if isinstance(other, Mapping) else str(other)
    if version.lstrip("v").startswith("2"):
        return MongoAbilities(f"FerretDB {version}", False, False, True, True, True, True, True)
    return MongoAbilities("FerretDB 1", *[False] * 7)
