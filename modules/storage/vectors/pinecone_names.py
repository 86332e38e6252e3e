"""Pinecone: how our names become its index names, namespaces and record ids. One-to-one, within its limits, no I/O.

Limits: https://docs.pinecone.io/reference/api/database-limits/identifier-limits (index names 45 characters of a-z, 0-9
and "-"; namespaces and record ids 512 characters of ASCII without NUL).
"""

from __future__ import annotations

import base64
import hashlib
import re

from modules.storage.vectors.models import DistanceMetric
from modules.store_common.errors import InvalidValueError

__all__ = [
    "METRICS",
    "check_index_name",
    "check_prefix",
    "collection_prefix",
    "digest",
    "from_record_id",
    "index_name_for",
    "namespace_name",
    "registry_id",
    "registry_namespace",
    "registry_prefix",
    "to_record_id",
]

#: Pinecone's name of each metric; https://docs.pinecone.io/reference/api/2025-10/control-plane/create_index
METRICS = {
    DistanceMetric.COSINE: "cosine",
    DistanceMetric.EUCLIDEAN: "euclidean",
    DistanceMetric.DOT_PRODUCT: "dotproduct",
    DistanceMetric.INNER_PRODUCT: "dotproduct",
}
_MAX_INDEX_NAME = 45
_INDEX_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ESCAPE = "~"
_STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_ORDERED = b"0123456789ABCDEFGHIJKLMNOPQRSTUV"
_TO_ORDERED = bytes.maketrans(_STANDARD, _ORDERED)
_TO_STANDARD = bytes.maketrans(_ORDERED, _STANDARD)


def digest(*parts: str, size: int = 16) -> str:
    """Return `2 * size` hexadecimal digits for texts; different texts, different digits."""
    state = hashlib.blake2b(digest_size=size)
    for part in parts:
        data = part.encode()
        state.update(len(data).to_bytes(4, "big"))
        state.update(data)
    return state.hexdigest()


def check_index_name(name: str) -> str:
    """Return `name` if Pinecone takes it for an index."""
    if not isinstance(name, str) or len(name) > _MAX_INDEX_NAME or not _INDEX_NAME.fullmatch(name):
        raise InvalidValueError(
            f"a Pinecone index name is 1 to {_MAX_INDEX_NAME} characters of a-z, 0-9 and '-', with no '-' at its ends"
        )
    return name


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it can begin the namespaces."""
    if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
        raise InvalidValueError(
            "the Pinecone namespace (the beginning of ours) is 1 to 64 letters, digits, '.', '_', '-'"
        )
    return prefix


def index_name_for(base: str, dimension: int, metric: str) -> str:
    """Return the name of the index that holds the collections of this dimension and metric beside the index `base`."""
    suffix = f"-{dimension}-{metric}"
    if len(base) + len(suffix) > _MAX_INDEX_NAME:
        base = f"{base[: _MAX_INDEX_NAME - len(suffix) - 9].rstrip('-')}-{digest(base, size=4)}"
    return base + suffix


def registry_namespace(prefix: str) -> str:
    """Return the namespace of the collections' records, in the base index."""
    return f"{prefix}-registry"


def registry_prefix(tenant_id: str) -> str:
    """Return how the ids of a tenant's collection records begin."""
    return f"{digest(tenant_id)}-"


def registry_id(tenant_id: str, name: str) -> str:
    """Return the id of a collection's record."""
    return registry_prefix(tenant_id) + digest(name)


def collection_prefix(prefix: str, tenant_id: str, generation: str) -> str:
    """Return how the namespaces of one collection begin; `generation` is never used twice."""
    return f"{prefix}-{digest(tenant_id, size=8)}-{generation}-"


def namespace_name(prefix: str, tenant_id: str, generation: str, namespace: str) -> str:
    """Return Pinecone's namespace for one of ours."""
    return collection_prefix(prefix, tenant_id, generation) + digest(namespace)


def to_record_id(item: str) -> str:
    """Return the record id of a document's id.

    ASCII stays readable; from the first other character (or "~") on it is "~" and base32 with an alphabet in the order
    of its values. Byte order of record ids is therefore code-point order of ids, and 255 bytes become at most 409.
    """
    data = item.encode()
    end = next((place for place, byte in enumerate(data) if byte >= 0x7E or byte < 0x20), len(data))
    if end == len(data):
        return item
    rest = base64.b32encode(data[end:]).rstrip(b"=").translate(_TO_ORDERED)
    return data[:end].decode() + _ESCAPE + rest.decode()


def from_record_id(record_id: str) -> str:
    """Return the document's id of a record id."""
    plain, escape, rest = record_id.partition(_ESCAPE)
    if not escape:
        return plain
    data = rest.encode().translate(_TO_STANDARD)
    return plain + base64.b32decode(data + b"=" * (-len(data) % 8)).decode()
