"""Upkeep of the conversation store across all tenants: for the manager and the command line, not for callers' requests.

It reads no content out. A caller's code uses `ConversationStore`, which never works without a tenant.
"""

from __future__ import annotations

from dataclasses import fields
from typing import AsyncIterator, List

from sqlalchemy import BigInteger, bindparam, select

from modules.conversation_store.encoding import check_limit
from modules.conversation_store.models import ConversationRow
from modules.conversation_store.records import RetentionPolicy, RetentionResult
from modules.conversation_store.retention import check_policy, retain
from modules.conversation_store.search_pending import index_all_pending
from modules.conversation_store.turns import recover_all
from modules.storage.operations import Executor, Transaction, read
from modules.storage.statements import Statement

__all__ = [
    "TENANTS",
    "ConversationMaintenance",
    "tenants_after",
]

_PAGE = 500
_C = ConversationRow

# one step of the index for each tenant, not one for each conversation
TENANTS = Statement(
    select(_C.tenant_id)
    .where(_C.tenant_id > bindparam("after"))
    .order_by(_C.tenant_id)
    .limit(bindparam("limit", type_=BigInteger))
)


@read
async def tenants_after(tx: Transaction, after: str, limit: int) -> List[str]:
    """Return tenants in order of their ids."""
    found: List[str] = []
    while len(found) < limit:
        row = await tx.first(TENANTS, after=after, limit=1)
        if row is None:
            break
        after = row[0]
        found.append(after)
    return found


class ConversationMaintenance:
    """Upkeep across all tenants. Any number of processes may do it at the same time.

    Args:
        executor: A pool's executor.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def list_tenants(self) -> AsyncIterator[str]:
        """Iterate over the tenants that have conversations, in order of their ids."""
        after = ""
        while True:
            found = await self._executor.run(tenants_after, after, _PAGE)
            for tenant_id in found:
                after = tenant_id
                yield tenant_id
            if len(found) < _PAGE:
                return

    async def recover_turns(self, *, limit: int = 10_000) -> int:
        """Mark the replies of turns that died, of every tenant, as "interrupted"; return how many there were."""
        return await recover_all(self._executor, None, limit)

    async def index_pending(self) -> int:
        """SQLite: put messages that are not yet in the full-text index there; return how many there were."""
        return await index_all_pending(self._executor)

    async def run_retention(self, policy: RetentionPolicy, *, limit: int = 10_000) -> RetentionResult:
        """Apply each tenant's policy, changing at most about `limit` rows of each; return the sums."""
        check_policy(policy)
        check_limit(limit, "limit", 1_000_000)
        totals = {item.name: 0 for item in fields(RetentionResult) if item.name != "complete"}
        complete = True
        async for tenant_id in self.list_tenants():
            result = await retain(self._executor, tenant_id, policy, limit)
            complete = complete and result.complete
            for name in totals:
                totals[name] += getattr(result, name)
        return RetentionResult(**totals, complete=complete)
