"""`TaskStore`: the public face of the task store, put together from its rooms."""

from __future__ import annotations

from typing import Optional

from modules.storage.operations import Executor
from modules.store_common.tenancy import TenantPolicy
from modules.task_store.assignments import Assignments
from modules.task_store.creating import Creating
from modules.task_store.dependencies import Dependencies
from modules.task_store.events import Events
from modules.task_store.reading import Reading
from modules.task_store.room import WakeUps
from modules.task_store.search import Search
from modules.task_store.subscriptions import Subscriptions
from modules.task_store.tasks import Tasks

__all__ = ["TaskStore"]


class TaskStore(Creating, Tasks, Dependencies, Assignments, Events, Reading, Search, Subscriptions):
    """Tasks with a state machine, dependencies, assignments and events.

    Args:
        executor: A pool's executor, or that of a unit of work.
        tenancy: How the tenant of a call is found.
        search_language: The language that the search index was made for; see `text_query.LANGUAGES`.
        wakeups: Tells subscribers of changes; None: they find out by looking.
    """

    def __init__(
        self,
        executor: Executor,
        tenancy: TenantPolicy,
        *,
        search_language: str = "english",
        wakeups: Optional[WakeUps] = None,
    ) -> None:
        super().__init__(executor, tenancy, wakeups=wakeups)
        self._search_language = search_language
