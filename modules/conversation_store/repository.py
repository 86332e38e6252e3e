"""`ConversationStore`: the public face of the conversation store, put together from its rooms."""

from __future__ import annotations

from typing import Optional

from modules.conversation_store.conversations import Conversations
from modules.conversation_store.leases import Leases
from modules.conversation_store.lifecycle import Lifecycle
from modules.conversation_store.meaning import SemanticIndex
from modules.conversation_store.messages import Messages
from modules.conversation_store.people import People
from modules.conversation_store.reading import Reading
from modules.conversation_store.records import RetentionPolicy
from modules.conversation_store.retention import Retention, check_policy
from modules.conversation_store.search import Search
from modules.conversation_store.transfer import Transfer
from modules.conversation_store.turns import Turns
from modules.storage.operations import Executor
from modules.store_common.tenancy import TenantPolicy

__all__ = ["ConversationStore"]


class ConversationStore(
    People, Conversations, Lifecycle, Messages, Reading, Search, Leases, Turns, Retention, Transfer
):
    """Conversations of AI agents: users, sessions, conversations, messages, events, assets.

    Args:
        executor: A pool's executor, or that of a unit of work.
        tenancy: How the tenant of a call is found.
        search_language: The language that the search index was made for; see `search_ddl.LANGUAGES`.
        retention: What `run_retention` keeps when it is given no policy.
        semantic: What `search` by meaning asks; None: only by text.
    """

    def __init__(
        self,
        executor: Executor,
        tenancy: TenantPolicy,
        *,
        search_language: str = "english",
        retention: Optional[RetentionPolicy] = None,
        semantic: Optional[SemanticIndex] = None,
    ) -> None:
        super().__init__(executor, tenancy)
        self._search_language = search_language
        self._semantic = semantic
        self._retention = check_policy(retention or RetentionPolicy())
