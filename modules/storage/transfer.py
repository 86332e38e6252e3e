"""Data of a tenant in and out of a storage, as files: foreign conversations and our own export in, our own export out.

Everything is a stream: memory does not grow with the file. It is read in a thread (`transfer_reading`). The format of our
own export is in `transfer_export`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from modules.conversation_store.errors import ConversationArchivedError, ConversationNotFoundError
from modules.conversation_store.records import NewMessage
from modules.storage.import_formats import (
    FORMAT_NAMES,
    BadRecord,
    ImportedConversation,
    ImportedMessage,
    ImportFileError,
    RawRecord,
)
from modules.storage.transfer_export import FORMAT_VERSION, ExportReport, export_tenant
from modules.storage.transfer_reading import (
    ConversationGroups,
    ExportMessages,
    FileReading,
    RecordsAhead,
    kind_of,
)
from modules.store_common.clock import utc_now
from modules.store_common.errors import InvalidValueError, StorageError

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager

__all__ = ["ExportReport", "ImportReport", "OnBad", "OnProgress", "export_tenant", "import_file"]

_KEYS_TOGETHER = 100
_BAD_KEPT = 1000
# What the storage refuses for what it is: the record is left out, the rest goes on.
_REFUSED = (InvalidValueError, ConversationArchivedError, ConversationNotFoundError)


@dataclass
class ImportReport:
    """What an import did; filled while it runs.

    Attributes:
        formats: The formats met.
        conversations_seen: Conversations in the file, without the bad ones.
        conversations_added: Those that were not there before.
        messages_seen: Messages in those conversations.
        messages_added: Those that were not there before.
        keys_seen: Keys in the file (our own export only).
        keys_added: Those that were not there before.
        bad: The records that were left out, the first thousand of them.
        bad_count: How many were left out.
    """

    formats: List[str] = field(default_factory=list)
    conversations_seen: int = 0
    conversations_added: int = 0
    messages_seen: int = 0
    messages_added: int = 0
    keys_seen: int = 0
    keys_added: int = 0
    bad: List[BadRecord] = field(default_factory=list)
    bad_count: int = 0

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @property
    def summary(self) -> str:
        """What happened, in one line."""
        names = ", ".join(FORMAT_NAMES.get(name, name) for name in self.formats) or "no known format"
        parts = [
            f"Read {self.conversations_seen:,} conversations with {self.messages_seen:,} messages ({names})",
            f"added {self.conversations_added:,} conversations and {self.messages_added:,} messages",
        ]
        if self.keys_seen:
            parts.append(f"added {self.keys_added:,} of {self.keys_seen:,} keys")
        if self.bad_count:
            parts.append(f"left out {self.bad_count:,} bad records")
        return "; ".join(parts) + "."


OnProgress = Callable[[int, ImportReport], None]
OnBad = Callable[[BadRecord], None]


async def import_file(
    storage: StorageManager,
    path: Union[str, os.PathLike[str]],
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
    async with FileReading(path) as reading:
        importer = _Importer(storage, tenant_id, reading, on_progress, on_bad)
        if reading.file.is_own_export:
            await importer.own_export()
        else:
            await importer.foreign()
    await storage.maintenance.index_messages()
    return importer.report


class _Importer:
    """Takes the records of one file, in order."""

    def __init__(
        self,
        storage: StorageManager,
        tenant_id: Optional[str],
        reading: FileReading,
        on_progress: Optional[OnProgress],
        on_bad: Optional[OnBad],
    ) -> None:
        self.report = ImportReport()
        self._storage = storage
        self._tenant_id = tenant_id
        self._reading = reading
        self._file = reading.file
        self._on_progress = on_progress
        self._on_bad = on_bad

    async def foreign(self) -> None:
        """Import conversations of any foreign shape, several at once: on SQLite they share the writer's commits."""
        async for group in ConversationGroups(self._reading):
            for bad in group.bad:
                self._bad(bad)
            await self._side_by_side(group.conversations)
        self._tell()

    async def _side_by_side(self, together: Sequence[Tuple[RawRecord, ImportedConversation]]) -> None:
        """Import different conversations; the first error that is no refusal is raised when all have ended."""
        outcomes = await asyncio.gather(
            *[
                self._conversation(
                    record, _header_of(item), (_new_message(message) for message in item.messages)
                )
                for record, item in together
            ],
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def own_export(self) -> None:
        """Import what `export_tenant` wrote."""
        # a conversation's messages are read while it is being stored, so a record read too far is put back
        records = RecordsAhead(self._reading)
        footer = None
        async with _Keys(self) as keys:
            while True:
                record = await records.next()
                if record is None:
                    break
                if isinstance(record, BadRecord):
                    self._bad(record)
                    continue
                kind, body = kind_of(record.value)
                if kind == "conversation":
                    messages = ExportMessages(records)
                    await self._conversation(record, body, messages)
                elif kind == "key":
                    await keys.add(record, body)
                elif kind == "end":
                    footer = record
                elif kind == "atlas_export":
                    self._check_version(record.value)
                else:
                    self._bad(record.bad("is no record of an export, or a message without its conversation"))
        if footer is None:
            self._bad(BadRecord(records.line, "the file ends without its footer: it was cut short"))
        self._tell()

    def _check_version(self, header: Mapping[str, Any]) -> None:
        if header["atlas_export"] != FORMAT_VERSION:
            raise ImportFileError(
                f"{self._file.path} was written by a newer release of atlas-storage; upgrade this one to import it"
            )

    async def _conversation(self, record: RawRecord, header: Any, messages: Any) -> None:
        try:
            result = await self._storage.conversations.import_conversation(
                header, messages, tenant_id=self._tenant_id
            )
        except _REFUSED as exc:
            if isinstance(messages, ExportMessages):
                await messages.skip()
            self._bad(record.bad(str(exc)))
            return
        if isinstance(messages, ExportMessages):
            for bad in messages.bad:
                self._bad(bad)
        self.report.conversations_seen += 1
        self.report.conversations_added += result.created
        self.report.messages_seen += result.added + result.skipped
        self.report.messages_added += result.added
        self._tell()

    def _bad(self, bad: BadRecord) -> None:
        self.report.bad_count += 1
        if len(self.report.bad) < _BAD_KEPT:
            self.report.bad.append(bad)
        if self._on_bad is not None:
            self._on_bad(bad)

    def _tell(self) -> None:
        self.report.formats = sorted(self._file.formats)
        if self._on_progress is not None:
            self._on_progress(self._file.bytes_read, self.report)

    async def set_key(self, record: RawRecord, body: Any) -> None:
        """Write one key of an export unless it is there or has expired."""
        try:
            value, ttl_seconds = _value_of(body), _seconds_left(body)
            if ttl_seconds is not None and ttl_seconds <= 0 and body.get("expires_at") is not None:
                return
            version = await self._storage.kv.set(
                body["namespace"],
                body["key"],
                value,
                ttl_seconds=ttl_seconds,
                only_if_absent=True,
                tenant_id=self._tenant_id,
            )
        except (KeyError, TypeError, ValueError) as exc:  # InvalidValueError is a ValueError
            self._bad(record.bad(str(exc) if isinstance(exc, StorageError) else "is no key of an export"))
            return
        self.report.keys_seen += 1
        self.report.keys_added += version > 0


class _Keys:
    """Writes keys many at a time, so that they share a commit."""

    def __init__(self, importer: _Importer) -> None:
        self._importer = importer
        self._waiting: List[Any] = []

    async def __aenter__(self) -> _Keys:
        return self

    async def __aexit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            await self._flush()

    async def add(self, record: RawRecord, body: Any) -> None:
        """Take a key."""
        self._waiting.append((record, body))
        if len(self._waiting) >= _KEYS_TOGETHER:
            await self._flush()

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        await asyncio.gather(*[self._importer.set_key(record, body) for record, body in waiting])


def _header_of(item: ImportedConversation) -> Dict[str, Any]:
    given = {"id": item.id, "title": item.title, "created_at": item.created_at, "metadata": item.metadata}
    return {name: value for name, value in given.items() if value is not None}


def _new_message(message: ImportedMessage) -> NewMessage:
    return NewMessage(
        role=message.role,
        content=message.content,
        id=message.id,
        name=message.name,
        metadata=message.metadata or {},
        parent_id=message.parent_id,
        created_at=message.created_at,
    )


def _value_of(body: Mapping[str, Any]) -> Any:
    if "base64" not in body:
        return body["value"]
    try:
        return base64.b64decode(body["base64"], validate=True)
    except binascii.Error as exc:
        raise InvalidValueError("the bytes of a key are no base64") from exc


def _seconds_left(body: Mapping[str, Any]) -> Optional[float]:
    """Return the time to live from now; 0 is for ever, as the store counts."""
    if body.get("expires_at") is None:
        return 0
    return (datetime.fromisoformat(body["expires_at"]) - utc_now()).total_seconds()
