"""Collections of vectors: a map of a collection, and what lies near a document."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence
from urllib.parse import quote, urlencode

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray

from modules.Server.dashboard.charts import Dot
from modules.Server.dashboard.rendering import page
from modules.Server.dashboard.visitors import Visitor
from modules.storage.opening import run_in_thread
from modules.storage.vectors.errors import VectorNotFoundError
from modules.storage.vectors.models import VectorDocument
from modules.store_common.errors import NotConfiguredError, StorageError

__all__ = ["collection", "collections", "router", "two_dimensions"]

router = APIRouter(include_in_schema=False)
_ON_THE_MAP = 500
_NEAR = 12
_LABEL = 80


@page(router, "/vectors", "vectors.html")
async def collections(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load the collections."""
    try:
        found = await visitor.storage.vectors.list_collections(tenant_id=visitor.tenant_id)
    except (NotConfiguredError, ImportError):
        return {"found": [], "configured": False}
    return {"found": found, "configured": True}


@page(router, "/vectors/{name:segment}", "collection.html")
async def collection(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load a collection, its map, and the neighbours of the chosen document."""
    name = request.path_params["name"]
    store, key = visitor.storage.vectors, {"tenant_id": visitor.tenant_id}
    info = await store.get_collection(name, tenant_id=visitor.tenant_id)
    if info is None:
        raise VectorNotFoundError(f"this tenant has no collection {name!r}")
    documents = await _documents(visitor, name)
    chosen_id = request.query_params.get("near", "")
    chosen = next((one for one in documents if one.id == chosen_id), None)
    if chosen is None and chosen_id:
        found = await store.get(name, [chosen_id], **key)
        chosen = found[0] if found else None
    near: Any = []
    problem = ""
    if chosen is not None:
        try:
            near = await store.search(name, chosen.vector, top_k=_NEAR + 1, tenant_id=visitor.tenant_id)
        except StorageError as exc:
            problem = str(exc)
    near_ids = {hit.document.id for hit in near}
    dots = await _dots(name, documents, chosen, near_ids)
    return {
        "info": info,
        "documents": documents,
        "dots": dots,
        "chosen": chosen,
        "near": [hit for hit in near if chosen is None or hit.document.id != chosen.id][:_NEAR],
        "problem": problem,
        "on_the_map": _ON_THE_MAP,
    }


async def _documents(visitor: Visitor, name: str) -> List[VectorDocument]:
    found: List[VectorDocument] = []
    cursor: Optional[str] = None
    while len(found) < _ON_THE_MAP:
        part = await visitor.storage.vectors.scroll(
            name, limit=_ON_THE_MAP - len(found), cursor=cursor, tenant_id=visitor.tenant_id
        )
        found.extend(part.items)
        cursor = part.next_cursor
        if cursor is None:
            break
    return found


async def _dots(
    name: str, documents: Sequence[VectorDocument], chosen: Optional[VectorDocument], near: Any
) -> List[Dot]:
    shown = [one for one in documents if len(one.vector)]
    if chosen is not None and all(one.id != chosen.id for one in shown):
        shown.append(chosen)
    if not shown:
        return []
    matrix = np.asarray([one.vector for one in shown], dtype=np.float32)
    places = await run_in_thread(lambda: two_dimensions(matrix))
    base = f"/vectors/{quote(name, safe='')}?"
    return [
        Dot(
            float(place[0]),
            float(place[1]),
            (one.content or one.id)[:_LABEL],
            base + urlencode({"near": one.id}),
            "chosen" if chosen is not None and one.id == chosen.id else "near" if one.id in near else "",
        )
        for one, place in zip(shown, places)
    ]


def two_dimensions(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the two principal components of the rows of `matrix`: the plane in which they are spread most.

    Args:
        matrix: Shape (rows, dimension).

    Returns:
        Shape (rows, 2); zeros where there are fewer than two components.

    Source:
        Principal component analysis by the singular value decomposition of the centred matrix (Jolliffe 2002, 3.5).
        With fewer rows than dimensions the eigenvectors of the small Gram matrix give the same.
    """
    centred = matrix - matrix.mean(axis=0)
    if len(centred) <= centred.shape[1]:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        places = vectors * np.sqrt(np.maximum(values, 0))
    else:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        places = centred @ vectors
    found = np.zeros((len(matrix), 2), dtype=np.float32)
    best = places[:, ::-1][:, :2]
    found[:, : best.shape[1]] = best
    # the sign of a component is arbitrary: the same data must give the same picture
    for column in range(2):
        if found[np.argmax(np.abs(found[:, column])), column] < 0:
            found[:, column] *= -1
    return found
