"""Targets: where a relay brings what was staged, and how what stands in SQL is applied to them.

    async def apply(entry: OutboxEntry) -> None:      # bring entry.key up to date; called again after a failure or a crash
        ...
    storage.register_target("search", apply)

`DocumentTarget` is the target of a store of documents: it reads their newest state from `staged_documents` and hands it to
a `DocumentWriter`, which is all that such a store has to bring.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Awaitable, Callable, Dict, List, Optional, Protocol, Sequence, Tuple

from modules.storage.operations import Executor
from modules.storage.outbox_queue import OutboxEntry
from modules.storage.staged_documents import StagedDocument, document_key, read_many
from modules.store_common.errors import AlreadyExistsError, NotConfiguredError, StorageError
from modules.store_common.values import check_identifier

__all__ = [
    "Apply",
    "ApplyMany",
    "DocumentTarget",
    "DocumentWriter",
    "FoundDocument",
    "Outcome",
    "Target",
    "TargetRegistry",
]

#: Applies one entry; an exception is a failed attempt.
Apply = Callable[[OutboxEntry], Awaitable[Any]]
#: None for an entry that was applied, else why not.
Outcome = Optional[Exception]
#: Applies several entries of different keys at once and says of each what became of it; an exception says it of none.
ApplyMany = Callable[[Sequence[OutboxEntry]], Awaitable[Sequence[Outcome]]]


@dataclass(frozen=True)
class FoundDocument:
    """A document as reconciliation finds it in a store: its id, and the digest of its contents (`digest_of`)."""

    id: str
    digest: str


class DocumentWriter(Protocol):
    """A store of documents, as a `DocumentTarget` needs it. A failure is an exception; doing a thing twice is harmless."""

    async def put(self, documents: Sequence[StagedDocument]) -> Sequence[Outcome]:
        """Store documents (and make their collections where missing), remove those that are tombstones.

        `document.key` says tenant, target, collection, namespace and id; the collection itself has an empty id. A store
        that can should keep `document.version` and leave a newer one alone.
        """
        ...

    async def scan(
        self, tenant_id: str, collection: str, namespace: str, after_id: str, limit: int
    ) -> List[FoundDocument]:
        """Return the next documents by id in code-point order; nothing where there is no such collection."""
        ...


@dataclass(frozen=True)
class Target:
    """Where entries go.

    Attributes:
        name: In the outbox.
        apply: Applies one.
        apply_many: Applies several at once; None: one by one.
        batch: Entries that `apply_many` gets at most.
        writer: Gives the store behind a `DocumentTarget`; None: there is nothing to reconcile with.
    """

    name: str
    apply: Apply
    apply_many: Optional[ApplyMany] = None
    batch: int = 100
    writer: Optional[Callable[[], DocumentWriter]] = None


class DocumentTarget:
    """Reads what was staged and brings a store of documents up to it.

    Args:
        executor: Of the SQL database.
        writer: The store.
    """

    def __init__(self, executor: Executor, writer: DocumentWriter) -> None:
        self._executor = executor
        self.writer = writer

    @classmethod
    def make(cls, name: str, executor: Executor, writer: DocumentWriter, *, batch: int = 100) -> Target:
        """Return the target `name` over `writer`."""
        made = cls(executor, writer)
        return Target(name, made.apply, made.apply_many, batch, lambda: writer)

    async def apply(self, entry: OutboxEntry) -> None:
        """Bring the document of one entry up to date."""
        (outcome,) = await self.apply_many([entry])
        if outcome is not None:
            raise outcome

    async def apply_many(self, entries: Sequence[OutboxEntry]) -> List[Outcome]:
        """Bring the documents of several entries up to date."""
        keys = [document_key(entry.address) for entry in entries]
        found = await self._executor.run(read_many, keys)
        outcomes: List[Outcome] = [None] * len(entries)
        wanted: List[Tuple[int, StagedDocument]] = []
        for position, document in enumerate(found):
            if document is None:
                outcomes[position] = StorageError("what was staged is not in its home any more")
            else:
                wanted.append((position, document))
        for (position, _), outcome in zip(wanted, await self.writer.put([item for _, item in wanted])):
            outcomes[position] = outcome
        return outcomes


class TargetRegistry:
    """The targets that this process can reach, by name."""

    def __init__(self) -> None:
        self._targets: Dict[str, Target] = {}
        self._listeners: List[Callable[[], Any]] = []

    def register(self, target: Target) -> None:
        """Add a target.

        Raises:
            AlreadyExistsError: the name is taken.
            InvalidValueError: the name is no identifier, or begins as those of subscribers do.
        """
        check_identifier(target.name, "the target's name")
        if target.name in self._targets:
            raise AlreadyExistsError(f"there is a target {target.name!r} already")
        if not asyncio.iscoroutinefunction(target.apply) and not callable(target.apply):
            raise NotConfiguredError("a target's apply is `async def apply(entry)`")
        self._targets[target.name] = target
        for listener in self._listeners:
            listener()

    def add_listener(self, listener: Callable[[], Any]) -> None:
        """Have `listener()` called when a target is added."""
        self._listeners.append(listener)

    def require(self, name: str) -> Target:
        """Return a target.

        Raises:
            NotConfiguredError: this process has none of that name.
        """
        found = self._targets.get(name)
        if found is None:
            known = ", ".join(sorted(self._targets)) or "none"
            raise NotConfiguredError(f"there is no target {name!r} in this process; there are: {known}")
        return found

    @property
    def names(self) -> List[str]:
        """The names, in order."""
        return sorted(self._targets)
