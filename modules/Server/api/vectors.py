"""Collections of vectors: list, make, delete, upsert, look up, search."""

from __future__ import annotations

from typing import Annotated, Any, Dict, List, Optional

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.responses import Response

from modules.Server.api.parameters import PartOf100, errors
from modules.Server.callers import Reader, Writer
from modules.Server.models import CollectionOut, CountOut, DocumentOut, Input, NeighboursOut, PageOf
from modules.Server.replies import Json
from modules.storage.vectors.errors import VectorNotFoundError
from modules.storage.vectors.models import DistanceMetric, VectorDocument

__all__ = [
    "DocumentIn",
    "Ids",
    "NewCollection",
    "Query_",
    "Upsert",
    "create_collection",
    "delete_collection",
    "delete_documents",
    "get_collection",
    "list_collections",
    "list_documents",
    "router",
    "search_collection",
    "upsert_documents",
]

router = APIRouter(prefix="/v1/vectors", tags=["vectors"])
_Collection = Annotated[str, Path(description="Name of the collection.", examples=["docs"])]
_Namespace = Annotated[Optional[str], Query(description="Only in this namespace.")]
_Filter = Optional[Dict[str, Any]]


class NewCollection(Input):
    """A collection to make."""

    name: str = Field(examples=["docs"])
    dimension: int = Field(ge=1, le=100_000, examples=[3])
    metric: DistanceMetric = DistanceMetric.COSINE
    metadata: Dict[str, Any] = Field(default_factory=dict)


class DocumentIn(Input):
    """A document to store."""

    id: str = Field("", description="Unset: a new UUIDv7.", examples=["d1"])
    vector: List[float] = Field(examples=[[0.1, 0.9, 0.2]])
    content: Optional[str] = None
    metadata: Dict[str, Any] = Field(default_factory=dict)


class Upsert(Input):
    """Documents to store, each in place of the one with its id."""

    documents: List[DocumentIn] = Field(max_length=10_000)
    namespace: Optional[str] = None


class Query_(Input):  # noqa: N801 - `Query` is FastAPI's
    """What to look for."""

    vector: List[float] = Field(examples=[[0.1, 0.9, 0.2]])
    top_k: int = Field(10, ge=1, le=10_000)
    namespace: Optional[str] = None
    filter: _Filter = Field(None, examples=[{"lang": "en"}], description="See docs/vectors.md, Filters.")
    include_vectors: bool = False


class Ids(Input):
    """Which documents."""

    ids: List[str] = Field(max_length=10_000)
    namespace: Optional[str] = None


@router.get("", response_model=PageOf[CollectionOut], responses=errors(501))
async def list_collections(caller: Reader) -> Json:
    """List the collections."""
    found = await caller.storage.vectors.list_collections(tenant_id=caller.tenant_id)
    return Json({"items": [item.to_dict() for item in found], "next_cursor": None})


@router.post("", status_code=201, response_model=CollectionOut, responses=errors(409, 501))
async def create_collection(caller: Writer, body: NewCollection) -> Json:
    """Make a collection."""
    made = await caller.storage.vectors.create_collection(
        body.name, body.dimension, metric=body.metric, metadata=body.metadata, tenant_id=caller.tenant_id
    )
    return Json(made.to_dict(), 201)


@router.get("/{collection:segment}", response_model=CollectionOut, responses=errors(404, 501))
async def get_collection(caller: Reader, collection: _Collection) -> Json:
    """Get a collection."""
    found = await caller.storage.vectors.get_collection(collection, tenant_id=caller.tenant_id)
    if found is None:
        raise VectorNotFoundError(f"this tenant has no collection {collection!r}")
    return Json(found.to_dict())


@router.delete("/{collection:segment}", status_code=204, response_model=None, responses=errors(404, 501))
async def delete_collection(caller: Writer, collection: _Collection) -> Response:
    """Delete a collection and its documents."""
    if not await caller.storage.vectors.delete_collection(collection, tenant_id=caller.tenant_id):
        raise VectorNotFoundError(f"this tenant has no collection {collection!r}")
    return Response(status_code=204)


@router.get("/{collection:segment}/documents", response_model=PageOf[DocumentOut], responses=errors(404, 501))
async def list_documents(
    caller: Reader,
    part: PartOf100,
    collection: _Collection,
    namespace: _Namespace = None,
    include_vectors: bool = False,
) -> Json:
    """List the documents of a collection by id."""
    page = await caller.storage.vectors.scroll(collection, namespace=namespace, **part.of(caller))
    items = [_document(item, include_vectors) for item in page.items]
    return Json({"items": items, "next_cursor": page.next_cursor})


@router.post("/{collection:segment}/documents", response_model=CountOut, responses=errors(404, 409, 501))
async def upsert_documents(caller: Writer, collection: _Collection, body: Upsert) -> Json:
    """Store documents, each in place of the one with its id; the same request again changes nothing."""
    documents = [VectorDocument(item.id, item.vector, item.content, item.metadata) for item in body.documents]
    count = await caller.storage.vectors.upsert(
        collection, documents, namespace=body.namespace, tenant_id=caller.tenant_id
    )
    return Json({"count": count})


@router.post("/{collection:segment}/delete", response_model=CountOut, responses=errors(404, 501))
async def delete_documents(caller: Writer, collection: _Collection, body: Ids) -> Json:
    """Delete documents by id and say how many were there."""
    count = await caller.storage.vectors.delete(
        collection, body.ids, namespace=body.namespace, tenant_id=caller.tenant_id
    )
    return Json({"count": count})


@router.post("/{collection:segment}/search", response_model=NeighboursOut, responses=errors(404, 501))
async def search_collection(caller: Reader, collection: _Collection, body: Query_) -> Json:
    """Find the documents nearest to a vector, best first."""
    found = await caller.storage.vectors.search(
        collection,
        body.vector,
        top_k=body.top_k,
        namespace=body.namespace,
        filter=body.filter,
        include_vectors=body.include_vectors,
        tenant_id=caller.tenant_id,
    )
    items = [
        {
            "document": _document(hit.document, body.include_vectors),
            "score": hit.score,
            "distance": hit.distance,
        }
        for hit in found
    ]
    return Json({"items": items, "complete": found.complete, "reason": found.reason})


def _document(document: VectorDocument, with_vector: bool) -> Dict[str, Any]:
    plain = document.to_dict()
    return plain if with_vector else {**plain, "vector": []}
