"""Data of a tenant in and out of a storage, as files: foreign conversations, and our own export.

The export is JSON lines: a header, then what belongs to each conversation, then keys, then a footer with the counts, by
which an import knows that the file is whole. It streams both ways, and the file appears under its name only when all of
it is on the disk.

    {"atlas_export": 1, "tenant_id": "default", "exported_at": "..."}
    {"kind": "conversation", ...}  {"kind": "message", ...}  ...
    {"kind": "kv", "namespace": "...", "key": "...", "value": ... | "base64": "...", "expires_at": null}
    {"kind": "end", "conversations": 6, "messages": 3453, "keys": 2}
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple

from modules.conversation_store.errors import ConversationArchivedError, ConversationNotFoundError
from modules.conversation_store.records import NewMessage
from modules.storage.import_formats import (
    FORMAT_NAMES,
    BadRecord,
    ImportedConversation,
    ImportFile,
    RawRecord,
)
from modules.store_common.errors import (
    IdempotencyConflictError,
    InvalidValueError,
    StorageError,
)

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager

__all__ = ["ExportReport", "ImportReport", "OnBad", "OnProgress", "export_tenant", "import_file", "prune"]

_FORMAT_VERSION = 1
_BATCH = 1000
_BAD_KEPT = 1000


@dataclass
class ImportReport:
    """What an import did; filled while it runs.

    Attributes:
        formats: The formats met.
        conversations_seen: Conversations in the file, the bad ones not counted.
        conversations_added: Those that were not there before.
        messages_seen: Messages in those conversations.
        messages_added: Those that were not there before.
        keys_added: Keys written (our own export only).
        bad: The records that were left out, the first thousand of them.
        bad_count: How many were left out.
    """

    formats: List[str] = field(default_factory=list)
    conversations_seen: int = 0
    conversations_added: int = 0
    messages_seen: int = 0
    messages_added: int = 0
    keys_added: int = 0
    bad: List[BadRecord] = field(default_factory=list)
    bad_count: int = 0

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @property
    def summary(self) -> str:
        """What happened, in one line."""
        names = ", ".join(FORMAT_NAMES.get(name, name) for name in self.formats) or "nothing"
        text = (
            f"Read {self.conversations_seen:,} conversations with {self.messages_seen:,} messages ({names}); "
            f"added {self.conversations_added:,} conversations, {self.messages_added:,} messages"
        )
        text += f", {self.keys_added:,} keys" if self.keys_added else ""
        return text + (f"; left out {self.bad_count:,} bad records" if self.bad_count else "") + "."


OnProgress = Callable[[int, ImportReport], None]
OnBad = Callable[[BadRecord], None]


async def import_file(
    storage: StorageManager,
    path: os.PathLike[str],
    *,
    tenant_id: Optional[str] = None,
    on_progress: Optional[OnProgress] = None,
    on_bad: Optional[OnBad] = None,
) -> ImportReport:
    """Import a file of conversations, whatever known format it has; what is there already is left as it is.

    Args:
        storage: Open.
        path: The file; see docs/import-formats.md.
        tenant_id: Whose data; see `TenantPolicy`.
        on_progress: Called with (bytes read, the report so far) after each conversation.
        on_bad: Called with each record that is left out.

    Raises:
        ImportFileError: the file as a whole cannot be read.
        StorageError: the storage failed; what was imported so far stays, and importing again goes on from there.
    """
    importer = _Importer(storage, tenant_id, on_bad)
    with ImportFile(path) as file:
        items = _own_items(file) if file.is_own_export else file.conversations()
        for record, item in items:
            await importer.take(record, item)
            importer.report.formats = sorted(file.formats)
            if on_progress is not None:
                on_progress(file.bytes_read, importer.report)
        await importer.finish()
    return importer.report


def _own_items(file: ImportFile) -> Iterator[Tuple[RawRecord, Any]]:
    for record in file.records():
        if isinstance(record, BadRecord):
            yield RawRecord(None, record.line, record.element), record
        else:
            yield record, record.value


class _Importer:
    """Takes the items of one file, in order."""

    def __init__(self, storage: StorageManager, tenant_id: Optional[str], on_bad: Optional[OnBad]) -> None:
        self.report = ImportReport()
        self._storage = storage
        self._tenant_id = tenant_id
        self._on_bad = on_bad

    async def take(self, record: RawRecord, item: Any) -> None:
        """Store one item; one that the storage refuses for what it is becomes a bad record."""
        if isinstance(item, BadRecord):
            self._bad(item)
            return
        try:
            await self._conversation(item)
        except (
            InvalidValueError,
            ConversationArchivedError,
            ConversationNotFoundError,
            IdempotencyConflictError,
        ) as exc:
            self._bad(record.bad(_reason(exc)))

    async def finish(self) -> None:
        """Store what is still waiting."""

    def _bad(self, bad: BadRecord) -> None:
        self.report.bad_count += 1
        if len(self.report.bad) < _BAD_KEPT:
            self.report.bad.append(bad)
        if self._on_bad is not None:
            self._on_bad(bad)

    async def _conversation(self, item: ImportedConversation) -> None:
        store = self._storage.conversations
        found = await store.ensure_conversation(
            str(item.id), title=item.title, metadata=item.metadata, tenant_id=self._tenant_id
        )
        self.report.conversations_seen += 1
        self.report.conversations_added += found.last_sequence == 0
        self.report.messages_seen += len(item.messages)
        known = set()
        if found.last_sequence:
            stream = store.stream_messages(found.id, include_deleted=True, tenant_id=self._tenant_id)
            known = {message.id async for message in stream}
        missing = [message for message in item.messages if message.id not in known]
        for start in range(0, len(missing), _BATCH):
            batch = [NewMessage(**_fields(message)) for message in missing[start : start + _BATCH]]
            await store.add_messages(found.id, batch, tenant_id=self._tenant_id)
            self.report.messages_added += len(batch)


def _fields(message: Any) -> Dict[str, Any]:
    fields = message._asdict()
    fields["metadata"] = fields["metadata"] or {}
    return fields


def _reason(exc: StorageError) -> str:
    return str(exc)


async def export_tenant(storage: Any, path: Any, *, on_progress: Any = None) -> Any:
    raise NotImplementedError


async def prune(storage: Any) -> Dict[str, Any]:
    raise NotImplementedError


class ExportReport: ...
