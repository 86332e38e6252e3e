"""The domain stores by name, as both a manager and a unit of work have them."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modules.conversation_store.repository import ConversationStore
    from modules.job_store.repository import JobStore
    from modules.task_store.repository import TaskStore
    from modules.Tools.Base_Tools.kv_store import KeyValueStore

__all__ = ["DomainStores"]


class DomainStores(abc.ABC):
    """What has the domain stores. In a unit of work, what they do happens if and only if the unit commits."""

    @abc.abstractmethod
    def _store(self, name: str) -> Any:
        """Return the store of that name."""

    @property
    def conversations(self) -> ConversationStore:
        """Users, sessions, conversations and their messages."""
        store: ConversationStore = self._store("conversations")
        return store

    @property
    def kv(self) -> KeyValueStore:
        """Values by namespace and key."""
        store: KeyValueStore = self._store("kv")
        return store

    @property
    def tasks(self) -> TaskStore:
        """Tasks: what is to be done, in which order, and how far it is."""
        store: TaskStore = self._store("tasks")
        return store

    @property
    def jobs(self) -> JobStore:
        """Jobs of one tenant at a time: enqueue, read, change, schedule."""
        store: JobStore = self._store("jobs")
        return store
