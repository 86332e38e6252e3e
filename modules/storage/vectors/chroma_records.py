"""A document as a row of Chroma and back.

Chroma's metadata holds flat scalars only, an upsert merges it with what was there, and a cosine collection gives vectors
back that differ in the last bit. So what must come back identical is kept as text: `atlas` holds metadata and time as
JSON. The vector is kept by `chroma_copies`, under the digest that `atlas` names; on a server, and in rows of directories of
former versions, `vec` holds the float32 numbers in base64. The rest are fields for `where`.
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

__all__ = ["Row", "row_digest", "row_fields", "row_text", "row_time", "vector_bytes"]

_VECTOR = "vec"


def row_fields(
    document: PreparedDocument,
    created_at: datetime,
    before: Optional[Mapping[str, Any]],
    digest: Optional[str],
) -> Dict[str, Any]:
    """Return Chroma's metadata of a document.

    Args:
        document: What is stored.
        created_at: Its time.
        before: The metadata that is there; its fields that are gone are None, which removes them.
        digest: Of the vector's copy; None: nobody keeps one, so the vector goes into the metadata.
    """
    fields: Dict[str, Any] = dict.fromkeys(before or ())
    fields.update(flat_fields(document.metadata))
    fields["ns"] = document.namespace
    fields["atlas"] = orjson.dumps(
        {
            "m": orjson.Fragment(str(document.metadata_json)),
            "t": created_at.isoformat(),
            "c": document.content is not None,
            **({} if digest is None else {"v": digest}),
        }
    ).decode()
    if digest is None:
        fields[_VECTOR] = base64.b64encode(vector_bytes(document.vector)).decode("ascii")
    return fields


def vector_bytes(vector: NDArray[np.float32]) -> bytes:
    """Return the float32 numbers, little-endian."""
    return vector.astype("<f4", copy=False).tobytes()


def row_text(document: PreparedDocument) -> str:
    """Return Chroma's document; it cannot say None, `Row` knows from `atlas`."""
    return "" if document.content is None else str(encode_text(document.content))


def row_digest(fields: Mapping[str, Any]) -> Optional[str]:
    """Return what names the copy of a stored row's vector; None when the row names none."""
    try:
        return str(orjson.loads(fields["atlas"])["v"])
    except (KeyError, TypeError, ValueError):
        return None


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

    __slots__ = ("_fields", "_text", "_vector", "id", "key", "metadata", "namespace", "record")

    def __init__(self, item: str, fields: Optional[Mapping[str, Any]], text: Optional[str]) -> None:
        self.key = item
        self.namespace, self.id = split_id(item)
        self._text = text
        self._vector: Optional[NDArray[np.float32]] = None
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
    def text(self) -> str:
        """Chroma's document, as `row_text` gave it."""
        return self._text or ""

    @property
    def digest(self) -> Optional[str]:
        """What names the copy of its vector; None when its metadata hold the vector, or nobody does."""
        return self.record.get("v")

    @property
    def needs_vector(self) -> bool:
        """Whether the vector is neither in the metadata nor given yet."""
        return self._vector is None and self._fields.get(_VECTOR) is None

    def give_vector(self, vector: Any) -> None:
        """Set the vector: a copy's bytes, or the numbers that Chroma gave."""
        if isinstance(vector, bytes):
            vector = np.frombuffer(vector, dtype="<f4")
        # a copy: the caller may write into it
        self._vector = np.array(vector, dtype=np.float32)

    @property
    def vector(self) -> NDArray[np.float32]:
        """The vector as it was given, float32."""
        if self._vector is not None:
            return self._vector
        try:
            data = base64.b64decode(self._fields[_VECTOR])
            made: NDArray[np.float32] = np.frombuffer(data, dtype="<f4").astype(np.float32)
        except (KeyError, TypeError, ValueError) as exc:
            raise VectorCollectionError(
                "the vector of a row in this Chroma collection is damaged or lost; write its document again"
            ) from exc
        self._vector = made
        return made

    def moved(self, digest: Optional[str]) -> Dict[str, Any]:
        """Return its metadata for another collection.

        Args:
            digest: Of the vector's copy there; None: nobody keeps one.
        """
        record = {key: value for key, value in self.record.items() if key != "v"}
        fields = {key: value for key, value in self._fields.items() if key != _VECTOR}
        if digest is None:
            fields[_VECTOR] = base64.b64encode(vector_bytes(self.vector)).decode("ascii")
        else:
            record["v"] = digest
        fields["atlas"] = orjson.dumps(record).decode()
        return fields

    def again(self) -> Row:
        """Return the same row with metadata and a vector that nobody else has."""
        row = Row(self.key, {"atlas": self._fields["atlas"]}, self._text)
        row.give_vector(self.vector)
        return row

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes after `again`."""
        return 1000 + len(self.text) + 4 * len(self._fields["atlas"]) + self.vector.nbytes

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
