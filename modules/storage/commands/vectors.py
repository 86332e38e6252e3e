"""`vectors list`, `vectors info`, `vectors search`, `vectors rebuild`, `vectors recall`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import orjson
import typer

from modules.storage.commands.errors import CommandFailedError, CommandUsageError
from modules.storage.commands.invocation import Invocation, command, group

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager

__all__ = ["info", "list_collections", "rebuild", "recall", "register", "search"]

_COLLECTION = typer.Argument(..., help="Name of the collection.", metavar="COLLECTION", show_default=False)


async def list_collections(call: Invocation) -> None:
    """List the collections of vectors."""
    async with call.storage() as storage:
        found = await storage.vectors.list_collections()
    if call.out.as_json:
        call.out.records(item.to_dict() for item in found)
    rows = [(item.name, item.count, item.dimension, item.metric.value, item.index_type) for item in found]
    call.out.table(["collection", "documents", "dimension", "metric", "index"], rows)


async def info(call: Invocation, collection: str = _COLLECTION) -> None:
    """Say what is known of a collection; exit 1 when there is none of this name."""
    async with call.storage() as storage:
        provider = storage.vectors
        found = await provider.get_collection(collection)
    if found is None:
        raise CommandFailedError(
            f"there is no vector collection {collection!r}; see: atlas-storage vectors list"
        )
    shown = {**found.to_dict(), "provider": provider.name, "exact_search": provider.capabilities.exact_search}
    call.out.document(shown)
    call.out.table(["what", "value"], [(name.replace("_", " "), value) for name, value in shown.items()])


async def search(
    call: Invocation,
    collection: str = _COLLECTION,
    query: List[str] = typer.Argument(
        ..., help="A vector as JSON, or text; - reads stdin.", metavar="QUERY", show_default=False
    ),
    namespace: Optional[str] = typer.Option(
        None, "--namespace", help="Where to look.", metavar="NAME", show_default=False
    ),
    filter_text: Optional[str] = typer.Option(
        None,
        "--filter",
        help='Only documents that pass: {"year": {"$gte": 2020}}.',
        metavar="JSON",
        show_default=False,
    ),
    limit: int = typer.Option(10, "--limit", min=1, max=10_000, help="At most so many."),
) -> None:
    """Search a collection; the nearest first. Says on stderr when matches may be missing."""
    given = sys.stdin.read() if query == ["-"] else " ".join(query)
    wanted = None if filter_text is None else _json(filter_text, "--filter")
    async with call.storage() as storage:
        vector = await _query_vector(storage, given)
        found = await storage.vectors.search(
            collection, vector, top_k=limit, namespace=namespace, filter=wanted
        )
    if call.out.as_json:
        call.out.records(hit.to_dict() for hit in found)
    rows = [
        (f"{hit.score:.4f}", hit.document.id, hit.document.metadata, _short(hit.document.content))
        for hit in found
    ]
    if rows:
        call.out.table(["score", "id", "metadata", "content"], rows)
    else:
        call.out.line("Nothing found.")
    if not found.complete:
        call.out.warn(f"matches may be missing: {found.reason}")


async def _query_vector(storage: StorageManager, given: str) -> Any:
    """Return the vector of a query: written out as JSON, or made of text by the manager's embedder."""
    try:
        parsed = orjson.loads(given)
    except orjson.JSONDecodeError:
        parsed = None
    if isinstance(parsed, list):
        return parsed
    if not given.strip():
        raise CommandUsageError("the query is blank")
    embedder = getattr(storage, "embedder", None)
    if embedder is None:
        raise CommandUsageError(
            "the query is not a vector ([0.1, 0.2, ...]), and no embedder is configured that makes one of text"
        )
    return (await embedder.embed([given]))[0]


async def rebuild(call: Invocation, collection: str = _COLLECTION) -> None:
    """Make the search index of a collection anew from its documents."""
    async with call.storage() as storage:
        done = await storage.vectors.rebuild_index(collection)
    call.out.document(done.to_dict())
    call.out.line(f"Rebuilt {done.name}: {done.count:,} documents, index {done.index_type}.")


async def recall(
    call: Invocation,
    collection: str = _COLLECTION,
    sample: int = typer.Option(50, "--sample", min=1, max=10_000, help="How many queries to try."),
) -> None:
    """Measure what share of the nearest documents the index finds, against exact search."""
    async with call.storage() as storage:
        provider = storage.vectors
        if await provider.get_collection(collection) is None:
            raise CommandFailedError(f"there is no vector collection {collection!r}")
        if provider.capabilities.exact_search:
            call.out.document({"collection": collection, "exact": True, "recall": 1.0})
            call.out.line(f"{collection}: every search is exact, recall 1.0.")
            return
        measure = getattr(provider, "recall", None)
        if measure is None:
            raise CommandUsageError(f"the vector store {provider.name} cannot measure its recall")
        report = await measure(collection, sample)
    shown = _fields(report)
    call.out.document({"collection": collection, **shown})
    call.out.table(["what", "value"], [(name.replace("_", " "), value) for name, value in shown.items()])


def _fields(report: Any) -> Dict[str, Any]:
    from dataclasses import asdict

    return asdict(report)


def _json(text: str, what: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise CommandUsageError(f"{what} is not JSON: {exc}") from exc


def _short(text: Optional[str]) -> Optional[str]:
    if text is None:
        return None
    return text if len(text) <= 60 else text[:59] + "…"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    own = typer.Typer(help="Look at collections of vectors.", no_args_is_help=True, rich_markup_mode=None)
    group(own)
    names: Dict[str, Any] = {
        "list": list_collections,
        "info": info,
        "search": search,
        "rebuild": rebuild,
        "recall": recall,
    }
    for name, function in names.items():
        command(own, name)(function)
    app.add_typer(own, name="vectors")
