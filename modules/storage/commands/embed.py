"""`embed`: make the vectors of messages now, instead of waiting for an application to do it in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Optional

import typer

from modules.storage.commands.errors import FAILED, CommandUsageError
from modules.storage.commands.invocation import Invocation, command

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager
    from modules.storage.semantic import SemanticIndex

__all__ = ["embed", "register"]


async def embed(
    call: Invocation,
    limit: Optional[int] = typer.Option(
        None, "--limit", min=1, help="Stop after about so many messages.", metavar="N", show_default=False
    ),
    anew: bool = typer.Option(False, "--anew", help="All messages, also those that were embedded before."),
    forget_former: bool = typer.Option(
        False, "--forget-former", help="Delete what is kept for an embedder that is configured no more."
    ),
) -> Optional[int]:
    """Embed the messages of all tenants that wait for it; exit 1 when the embedder refused some."""
    async with call.storage() as storage:
        index = storage.semantic_index
        if index is None:
            await _without_embedder(call, storage, forget_former)
            return None
        if not storage.vectors.capabilities.persistent:
            raise CommandUsageError(
                f"the vector store {storage.vectors.name} forgets everything when its process ends; set vectors.backend"
            )
        await index.register()
        if anew:
            await index.reindex()
        result = await _work(call, index, limit)
        forgotten = await index.forget_former() if forget_former else []
        left = await index.progress()
        former = await index.former()
    shown: Dict[str, Any] = {
        "embedder": index.embedder.name,
        "embedded": result.embedded,
        "removed": result.removed,
        "failed": result.failed,
        "pending": left.pending,
        "forgotten": forgotten,
        "former": former,
    }
    call.out.document(shown)
    call.out.line(
        f"Embedded {result.embedded:,} messages with {index.embedder.name}, removed {result.removed:,}; "
        f"{left.pending:,} wait."
    )
    for name in forgotten:
        call.out.line(f"Forgotten: {name}")
    for name in former:
        call.out.warn(
            f"changes are still noted for {name}, which is configured no more; --forget-former ends that"
        )
    if result.failed:
        call.out.warn(f"the embedder refused {result.failed:,} messages; they are tried again later")
    return FAILED if result.failed else None


async def _without_embedder(call: Invocation, storage: StorageManager, forget_former: bool) -> None:
    """Only what a former embedder left can be dealt with."""
    from modules.storage.semantic_registration import forget_indexes, former_indexes

    if not forget_former:
        raise CommandUsageError("no embedder is configured; set ATLAS_EMBEDDER (docs/semantic-search.md)")
    former = await former_indexes(storage.executor, None)
    forgotten = await forget_indexes(storage.executor, storage.vectors, former)
    call.out.document({"embedder": None, "forgotten": forgotten})
    for name in forgotten:
        call.out.line(f"Forgotten: {name}")


async def _work(call: Invocation, index: SemanticIndex, limit: Optional[int]) -> Any:
    before = await index.progress()
    total = before.pending if before.is_filled else None
    if limit is not None:
        total = limit if total is None else min(total, limit)
    with call.out.progress(f"Embedding with {index.embedder.name}", total, is_bytes=False) as show:
        return await index.embed_pending(
            limit, progress=lambda sums: show(sums.total, f"{sums.failed:,} refused" if sums.failed else "")
        )


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    command(app, "embed")(embed)
