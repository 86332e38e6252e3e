"""SQLite: messages that are written and not yet in the full-text index (see `search_ddl`), and how they get into it.

PostgreSQL keeps its index in step by itself; there is nothing pending there.
"""

from __future__ import annotations

from typing import Any, Optional, TypeVar

from sqlalchemy import BigInteger, Integer, bindparam, text

from modules.conversation_store.search_ddl import SQLITE_FORGET_PENDING, SQLITE_INDEX_PENDING
from modules.storage.operations import Executor, Operation, Transaction, write
from modules.storage.statements import Statement
from modules.store_common.errors import StatementError

__all__ = ["has_pending", "index_all_pending", "index_many", "index_pending", "search_everything"]

T = TypeVar("T")

# How many messages one transaction puts into the index: some 50 ms of the writer's time.
_TOGETHER = 2000
# From this many messages on, whoever stores them puts them into the index as well: cheap in bulk, and the next search is
# not kept waiting.
_AT_ONCE = 100

_LIMIT = bindparam("limit", type_=BigInteger)
_PENDING = Statement(
    sqlite=text("SELECT EXISTS (SELECT 1 FROM atlas_search_pending)").columns(found=Integer())
)
_INDEX = Statement(sqlite=text(SQLITE_INDEX_PENDING).bindparams(_LIMIT))
_FORGET = Statement(sqlite=text(SQLITE_FORGET_PENDING).bindparams(_LIMIT))


async def has_pending(tx: Transaction) -> bool:
    """Return whether a search would miss messages."""
    return tx.dialect == "sqlite" and bool((await tx.one(_PENDING))[0])


@write
async def index_pending(tx: Transaction, limit: int) -> int:
    """Put up to `limit` pending messages of any tenant into the index; return how many."""
    await tx.run(_INDEX, limit=limit)
    return await tx.run(_FORGET, limit=limit)


async def index_many(tx: Transaction, count: int) -> None:
    """Put messages into the index in the transaction that stored `count` of them, if they are many."""
    if tx.dialect == "sqlite" and count >= _AT_ONCE:
        await index_pending(tx, count)


async def index_all_pending(executor: Executor) -> int:
    """Put every pending message of any tenant into the index, in bounded transactions; return how many there were."""
    total = 0
    if executor.dialect != "sqlite":
        return total
    while True:
        count = await executor.run(index_pending, _TOGETHER)
        total += count
        if count < _TOGETHER:
            return total


async def search_everything(executor: Executor, search: Operation[..., Optional[T]], *args: Any) -> T:
    """Run a search over everything that was written before this call.

    Args:
        executor: Of the store.
        search: Its last argument says whether it must give None while messages are pending.
        args: Its other arguments.
    """
    found = await executor.run(search, *args, True)
    if found is None:
        await index_all_pending(executor)
        # what others write meanwhile may be missing, what was there when this call came is not
        found = await executor.run(search, *args, False)
    if found is None:
        raise StatementError("a search that was to take what there is gave nothing")
    return found
