"""The stores of a unit of work, each made at first use and bound to the unit's transaction."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modules.conversation_store.repository import ConversationStore
    from modules.storage.vectors.base import VectorProvider
    from modules.Tools.Base_Tools.kv_store import KeyValueStore

__all__ = ["UnitStores"]


class UnitStores(abc.ABC):
    """What `unit_of_work.UnitOfWork` has of stores."""

    @abc.abstractmethod
    def _store(self, name: str) -> Any:
        """Return the store of that name inside the unit."""

    @property
    def conversations(self) -> ConversationStore:
        """The conversation store, inside this unit."""
        store: ConversationStore = self._store("conversations")
        return store

    @property
    def kv(self) -> KeyValueStore:
        """The key-value store, inside this unit."""
        store: KeyValueStore = self._store("kv")
        return store

    @property
    def tasks(self) -> Any:
        """The task store, inside this unit."""
        return self._store("tasks")

    @property
    def jobs(self) -> Any:
        """The job store, inside this unit."""
        return self._store("jobs")

    @property
    def vectors(self) -> VectorProvider:
        """The vector store, inside this unit.

        One in the SQL database (sqlite, pgvector) takes part in the transaction. Of any other, writes are staged: they are
        kept with the unit and applied by a relay after COMMIT; see docs/unit-of-work.md.
        """
        store: VectorProvider = self._store("vectors")
        return store

    @property
    def documents(self) -> Any:
        """Documents of MongoDB, staged: kept with the unit and applied by a relay after COMMIT."""
        return self._store("documents")
