"""Room: full-text search over titles and descriptions."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

from sqlalchemy import text

from modules.storage.operations import Store, Transaction, read, write
from modules.storage.statements import Row, Statement
from modules.store_common.arguments import check_limit, check_optional_id
from modules.store_common.text_query import fts5_query, question_terms, snippet_of
from modules.task_store.encoding import check_status
from modules.task_store.records import TaskHit
from modules.task_store.rows import to_task
from modules.task_store.search_ddl import rebuild_ddl
from modules.task_store.search_statements import SEARCH

__all__ = ["MAX_HITS", "Search", "find", "rebuild"]

MAX_HITS = 1000


@read
async def find(tx: Transaction, params: Dict[str, Any], terms: List[str]) -> List[Row]:
    """Run a search whose parameters were checked."""
    if tx.dialect == "sqlite":
        scope = "q" + params["tenant_id"].encode().hex() + "x"
        return await tx.all(SEARCH, **params, query=fts5_query(terms, scope))
    return await tx.all(SEARCH, **params, query=" ".join(terms))


@write
async def rebuild(tx: Transaction, statements: Sequence[Statement]) -> None:
    """Make the search index anew."""
    for statement in statements:
        await tx.run(statement)


class Search(Store):
    """Full-text search."""

    _search_language: str

    async def search(
        self,
        query: str,
        *,
        status: Optional[str] = None,
        owner_id: Optional[str] = None,
        conversation_id: Optional[str] = None,
        limit: int = 10,
        snippet_characters: int = 160,
        tenant_id: Optional[str] = None,
    ) -> List[TaskHit]:
        """Return the tasks whose title or description has any of the question's words, best first.

        Args:
            query: Any text a person types, up to 64 KiB; quotes and operators are nothing special. A blank text, and one
                of nothing but stop words, finds nothing.
            status: Only in this state; "open": in any that is not final.
            owner_id: Only with this label.
            conversation_id: Only with this label.
            limit: 1 to 1,000.
            snippet_characters: About how long the snippets are, 1 to 10,000.
            tenant_id: Whose; see `TenantPolicy`.
        """
        is_open = status == "open"
        params: Dict[str, Any] = {
            "tenant_id": self._tenant(tenant_id),
            "status": None if status is None or is_open else check_status(status),
            "open": int(is_open),
            "owner_id": check_optional_id(owner_id, "owner_id"),
            "conversation_id": check_optional_id(conversation_id, "conversation_id"),
            "limit": check_limit(limit, "limit", MAX_HITS),
            "language": self._search_language,
        }
        check_limit(snippet_characters, "snippet_characters")
        terms = question_terms(query, self._search_language)
        if not terms:
            return []
        rows = await self._executor.run(find, params, terms)
        return [_hit(row, terms, snippet_characters) for row in rows]

    async def rebuild_search(self) -> None:
        """Make the search index of all tenants' tasks anew, in this store's language. Writes wait meanwhile.

        Needed after the setting of the language was changed. A task of administration: it takes no tenant and reads
        nothing out.
        """
        ddl = rebuild_ddl(self._executor.dialect, self._search_language)
        await self._executor.run(rebuild, [Statement(text(sql)) for sql in ddl])


def _hit(row: Row, terms: List[str], width: int) -> TaskHit:
    task = to_task(row)
    words = task.title if task.description is None else f"{task.title} {task.description}"
    return TaskHit(task, float(row[-1]), snippet_of(words, terms, width))
