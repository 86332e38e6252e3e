"""Pinecone: documents as its records and back, and the limits of what may be sent, checked before anything is.

Limits: https://docs.pinecone.io/reference/api/database-limits/operation-limits (1,000 records and 2 MB an upsert, 40 KB
of metadata a record, results of 4 MB). The SDK checks none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence
from urllib.parse import quote

import numpy as np
import orjson
from numpy.typing import NDArray

from modules.storage.vectors.checks import PreparedDocument
from modules.storage.vectors.models import VectorDocument
from modules.storage.vectors.pinecone_filters import UNINDEXED, filter_fields
from modules.storage.vectors.pinecone_names import from_record_id, to_record_id
from modules.store_common.clock import from_microseconds, to_microseconds
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import decode_json, decode_text, encode_text

__all__ = [
    "CREATED",
    "MAX_METADATA_BYTES",
    "METADATA",
    "STAMP",
    "Record",
    "batches",
    "fetch_groups",
    "is_older",
    "metadata_bytes",
    "rows_per_result",
    "sendable",
    "to_document",
    "to_record",
]

MAX_METADATA_BYTES = 40 * 1024
_MAX_RECORDS = 1000
_MAX_REQUEST_BYTES = 2 * 1024 * 1024
_ENVELOPE_BYTES = 1024
_MAX_RESULT_BYTES = 4 * 1024 * 1024
# a float32 written as a double takes at most 25 bytes with its comma
_NUMBER_BYTES = 25
# ids travel in the URL of a fetch
_MAX_URL_CHARACTERS = 6000
_FETCH_IDS = 100
# Pinecone refuses vectors of length zero whatever the metric; this keeps their place and comes back as zeros
_ALMOST_ZERO = 1e-30

METADATA = "atlas_metadata"
_CONTENT = "atlas_content"
CREATED = "atlas_created"
#: Which write made the record: a UUIDv7, so that a later write has a greater one.
STAMP = "atlas_write"
_ZERO = "atlas_zero"


@dataclass(frozen=True, eq=False)
class Record:
    """What is sent for one document.

    Attributes:
        id: Pinecone's.
        values: The vector, never of length zero.
        fields: The metadata.
        size_bytes: Of all this as JSON.
    """

    id: str
    values: List[float]
    fields: Dict[str, Any]
    size_bytes: int


def to_record(document: PreparedDocument, created_at: datetime, stamp: str, where: str) -> Record:
    """Return the record of a document.

    Raises:
        InvalidValueError: its metadata and content are more than Pinecone takes.
    """
    fields: Dict[str, Any] = {
        METADATA: str(document.metadata_json),
        # as text: Pinecone's numbers are doubles
        CREATED: str(to_microseconds(created_at)),
        STAMP: stamp,
    }
    if document.content is not None:
        fields[_CONTENT] = encode_text(document.content)
    values = sendable(document.vector)
    if values is not document.vector:
        fields[_ZERO] = True
    indexed = {**fields, **filter_fields(document.metadata)}
    size = metadata_bytes(indexed)
    if size > MAX_METADATA_BYTES:
        indexed = {**fields, UNINDEXED: True}
        size = metadata_bytes(indexed)
        if size > MAX_METADATA_BYTES:
            raise InvalidValueError(
                f"the metadata and content of {where} are {size} bytes as Pinecone stores them; "
                f"it takes {MAX_METADATA_BYTES}: store less, or the text elsewhere"
            )
    record_id = to_record_id(document.id)
    wide = values.astype(np.float64)
    numbers = len(orjson.dumps(wide, option=orjson.OPT_SERIALIZE_NUMPY))
    return Record(record_id, wide.tolist(), indexed, size + numbers + len(record_id) + 64)


def sendable(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `vector`, or of length zero the nearest one that Pinecone takes."""
    if vector.any():
        return vector
    almost: NDArray[np.float32] = vector.copy()
    almost[0] = _ALMOST_ZERO
    return almost


def metadata_bytes(fields: Mapping[str, Any]) -> int:
    """Return how long the metadata is as JSON."""
    return len(orjson.dumps(fields))


def to_document(
    record_id: str,
    values: Optional[Sequence[float]],
    fields: Mapping[str, Any],
    namespace: str,
    *,
    metadata: bool = True,
) -> VectorDocument:
    """Return the document of a record; `values` None or empty leaves the vector out."""
    vector: NDArray[np.float32] = np.asarray(values if values is not None else (), dtype=np.float32)
    if fields.get(_ZERO):
        vector = np.zeros_like(vector)
    return VectorDocument(
        id=from_record_id(record_id),
        vector=vector,
        content=decode_text(fields.get(_CONTENT)) if metadata else None,
        metadata=decode_json(fields[METADATA]) if metadata else {},
        namespace=namespace,
        created_at=from_microseconds(int(fields[CREATED])) if CREATED in fields else None,
    )


def is_older(fields: Mapping[str, Any], before: datetime) -> bool:
    """Whether a record of ours was created before `before`."""
    return CREATED in fields and int(fields[CREATED]) < to_microseconds(before)


def batches(records: Sequence[Record]) -> Iterator[List[Record]]:
    """Split what is sent by number and by bytes."""
    batch: List[Record] = []
    size = _ENVELOPE_BYTES
    for record in records:
        if batch and (len(batch) == _MAX_RECORDS or size + record.size_bytes > _MAX_REQUEST_BYTES):
            yield batch
            batch, size = [], _ENVELOPE_BYTES
        batch.append(record)
        size += record.size_bytes
    if batch:
        yield batch


def fetch_groups(record_ids: Sequence[str]) -> Iterator[List[str]]:
    """Split the ids of a fetch by number and by the length of its URL."""
    group: List[str] = []
    length = 0
    for record_id in record_ids:
        own = len(quote(record_id, safe="")) + 5
        if group and (len(group) == _FETCH_IDS or length + own > _MAX_URL_CHARACTERS):
            yield group
            group, length = [], 0
        group.append(record_id)
        length += own
    if group:
        yield group


def rows_per_result(dimension: int, with_metadata: bool, with_values: bool) -> int:
    """Return how many matches surely fit a query's answer."""
    row = (
        640 + (MAX_METADATA_BYTES if with_metadata else 0) + (_NUMBER_BYTES * dimension if with_values else 0)
    )
    return max(1, _MAX_RESULT_BYTES // row)
