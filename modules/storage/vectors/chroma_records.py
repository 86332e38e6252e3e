"""A document as a row of Chroma and back.

Chroma's metadata holds flat scalars only, an upsert merges it with what was there, and a cosine collection gives vectors
back that differ in the last bit. So what must come back identical is kept as text: `atlas` holds metadata and time as
JSON, `vec` the float32 numbers in base64 (from them the index can be made anew). The rest are fields for `where`.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any, Dict, Mapping, Optional, Tuple

import numpy as np
import orjson
from numpy.typing import NDArray

from modules.storage.vectors.checks import PreparedDocument
from modules.storage.vectors.chroma_filters import flat_fields
from modules.storage.vectors.chroma_names import split_id
from modules.storage.vectors.errors import VectorCollectionError
from modules.storage.vectors.models import VectorDocument
from modules.store_common.values import decode_json, decode_text, encode_text

__all__ = ["Row", "row_fields", "row_text", "row_time"]


def row_fields(
    document: PreparedDocument, created_at: datetime, before: Optional[Mapping[str, Any]]
) -> Dict[str, Any]:
    """Return Chroma's metadata of a document; fields of `before` that are gone are None, which removes them."""
    fields: Dict[str, Any] = dict.fromkeys(before or ())
    fields.update(flat_fields(document.metadata))
    fields["ns"] = document.namespace
    fields["atlas"] = orjson.dumps(
        {
            "m": orjson.Fragment(str(document.metadata_json)),
            "t": created_at.isoformat(),
            "c": document.content is not None,
        }
    ).decode()
    fields["vec"] = base64.b64encode(document.vector.astype("<f4", copy=False).tobytes()).decode("ascii")
    return fields


def row_text(document: PreparedDocument) -> str:
    """Return Chroma's document; it cannot say None, `Row` knows from `atlas`."""
    return "" if document.content is None else str(encode_text(document.content))


def row_time(fields: Mapping[str, Any]) -> Optional[datetime]:
    """Return when a stored row was created; None when the row is not one of ours."""
    try:
        return datetime.fromisoformat(orjson.loads(fields["atlas"])["t"])
    except (KeyError, TypeError, ValueError):
        return None


class Row:
    """A row that was read; its parts are decoded when asked for.

    Args:
        item: Its id inside Chroma.
        fields: Its metadata there.
        text: Its document there; None when it was not asked for.
    """

    __slots__ = ("_fields", "_text", "id", "metadata", "namespace", "record")

    def __init__(self, item: str, fields: Optional[Mapping[str, Any]], text: Optional[str]) -> None:
        self.namespace, self.id = split_id(item)
        self._text = text
        try:
            self._fields = fields or {}
            self.record: Dict[str, Any] = orjson.loads(self._fields["atlas"])
            self.metadata: Dict[str, Any] = self.record["m"]
            if "\ue000" in self._fields["atlas"]:
                self.metadata = decode_json(orjson.dumps(self.metadata))
        except (KeyError, TypeError, ValueError) as exc:
            raise VectorCollectionError(
                "a row of this Chroma collection was not written by ATLAS storage, or is damaged; "
                "write its document again, or delete it with Chroma's own client"
            ) from exc

    @property
    def vector(self) -> NDArray[np.float32]:
        """The vector as it was given, float32."""
        try:
            data = base64.b64decode(self._fields["vec"])
            return np.frombuffer(data, dtype="<f4").astype(np.float32)
        except (KeyError, TypeError, ValueError) as exc:
            raise VectorCollectionError(
                "the vector of a row in this Chroma collection is damaged; write its document again"
            ) from exc

    def to_document(self, *, metadata: bool = True, vector: bool = True) -> VectorDocument:
        """Return it as callers know it."""
        own: Tuple[Optional[str], Dict[str, Any]] = (None, {})
        if metadata:
            own = (decode_text(self._text or "") if self.record["c"] else None, self.metadata)
        return VectorDocument(
            id=self.id,
            vector=self.vector if vector else np.empty(0, dtype=np.float32),
            content=own[0],
            metadata=own[1],
            namespace=self.namespace,
            created_at=datetime.fromisoformat(self.record["t"]),
        )
