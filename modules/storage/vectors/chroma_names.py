"""What things are called inside Chroma: collections and ids.

Chroma takes collection names of 3 to 512 characters of [a-zA-Z0-9._-]; ours are any text, and belong to a tenant. So the
name there is a readable part, for people who look, and a digest of tenant and name, which makes it unique. A document's
id there begins with its namespace, so that one id may live in several.
"""

from __future__ import annotations

import hashlib
import re
from typing import Tuple

import orjson

__all__ = ["REBUILD_SUFFIX", "document_id", "physical_name", "split_id"]

#: Ends the name of the copy that `rebuild_index` fills.
REBUILD_SUFFIX = "-rebuild"
# no identifier holds a control character, so the first one ends the namespace
_SEPARATOR = "\x1f"


def physical_name(tenant_id: str, name: str) -> str:
    """Return the name of a tenant's collection inside Chroma."""
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower().encode("ascii", "ignore").decode())[:32].strip("-")
    digest = hashlib.sha256(orjson.dumps([tenant_id, name])).hexdigest()[:40]
    return f"atlas-{readable}-{digest}" if readable else f"atlas-{digest}"


def document_id(namespace: str, item: str) -> str:
    """Return the id of a document inside Chroma."""
    return namespace + _SEPARATOR + item


def split_id(given: str) -> Tuple[str, str]:
    """Return namespace and id of what `document_id` made."""
    namespace, _, item = given.partition(_SEPARATOR)
    return namespace, item
