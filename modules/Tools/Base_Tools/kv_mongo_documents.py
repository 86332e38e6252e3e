"""The key-value store in MongoDB: how an entry stands in a document, and the collections and indexes.

An entry is one document of `atlas_kv_entries`:

    _id   tenant, namespace and key, which makes the unique index and the order of lists
    t s k the same, one by one
    j b   JSON text (so that values come back identical), or bytes
    v     its version             r   a random number, new at each write: what a compare-and-set compares
    z     size in bytes           c u e  when created, updated; when it expires (`NEVER`)
    o     the batch that wrote it last, where one did
"""

from __future__ import annotations

import random
from typing import Any, Dict, Optional, Tuple

from modules.storage.documents import MAX_DOCUMENT_BYTES, NEVER, Document, DocumentForms, IndexModel
from modules.store_common.values import decode_json
from modules.Tools.Base_Tools.kv_errors import ValueSerializationError
from modules.Tools.Base_Tools.kv_records import EncodedValue

__all__ = [
    "BATCHES",
    "BATCH_PARTS",
    "ENTRIES",
    "FORMS",
    "LOCKS",
    "check_size",
    "entry_fields",
    "expires",
    "value_of",
]

ENTRIES = "atlas_kv_entries"
BATCHES = "atlas_kv_batches"
BATCH_PARTS = "atlas_kv_batch_parts"
LOCKS = "atlas_kv_locks"

FORMS = DocumentForms(
    "kv",
    1,
    [ENTRIES, BATCHES, BATCH_PARTS, LOCKS],
    [
        IndexModel(ENTRIES, "ix_tenant_expires", [("t", 1), ("e", 1)]),
        # holds the size as well, so that quotas are added up from the index alone
        IndexModel(ENTRIES, "ix_tenant_namespace_size", [("t", 1), ("s", 1), ("z", 1)]),
        IndexModel(BATCHES, "ix_created", [("c", 1)]),
        IndexModel(BATCH_PARTS, "ix_batch", [("b", 1), ("n", 1)]),
    ],
)


def value_of(document: Document) -> Tuple[Any, Optional[bytes]]:
    """Return (JSON value, None) or (None, bytes)."""
    data = document.get("b")
    return (None, bytes(data)) if data is not None else (decode_json(document["j"]), None)


def expires(now: int, ttl_us: Optional[int]) -> int:
    """Return when an entry written at `now` expires."""
    return NEVER if ttl_us is None else now + ttl_us


def check_size(size_bytes: int) -> None:
    """Refuse what MongoDB cannot hold in one document.

    Raises:
        ValueSerializationError: the entry is too large.
    """
    if size_bytes > MAX_DOCUMENT_BYTES:
        raise ValueSerializationError(
            f"the value is {size_bytes} bytes long; a document of MongoDB holds at most {MAX_DOCUMENT_BYTES}"
        )


def entry_fields(key: str, value: EncodedValue, now: int, ttl_us: Optional[int]) -> Dict[str, Any]:
    """Return what every write sets."""
    text, data, size = value
    return {
        "j": None if text is None else str(text),
        "b": data,
        "z": size + len(key.encode()),
        "u": now,
        "e": expires(now, ttl_us),
        "r": random.getrandbits(63),
    }
