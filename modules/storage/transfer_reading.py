"""Reading an import's file beside the event loop: a thread reads and decodes the next part while the loop serves others."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any, AsyncIterator, Callable, Iterator, List, Mapping, Optional, Set, Tuple, TypeVar, Union

from modules.storage.import_formats import BadRecord, ImportedConversation, ImportFile, RawRecord
from modules.storage.opening import run_in_thread

__all__ = [
    "ConversationGroup",
    "ConversationGroups",
    "ExportMessages",
    "FileReading",
    "RecordsAhead",
    "kind_of",
]

T = TypeVar("T")

# Conversations that are stored at once, and how many messages they may have together: they are held in memory.
_CONVERSATIONS_TOGETHER = 16
_MESSAGES_TOGETHER = 2000
# How much of an export one trip to the thread reads: bytes, and records.
_BYTES_TOGETHER = 1024 * 1024
_RECORDS_TOGETHER = 2000

_Record = Union[RawRecord, BadRecord]
_KINDS = ("conversation", "message", "key", "end", "atlas_export")


def kind_of(value: Any) -> Any:
    """Return (kind, body) of a record of our export, (None, None) of anything else."""
    if isinstance(value, dict):
        for kind in _KINDS:
            if kind in value:
                return kind, value[kind]
    return None, None


class FileReading:
    """A file that is read by one thread after another; closed at the end of the block, or when the last read has ended.

    A read may take as long as it likes (the file may be a pipe), and whoever waits for it may be cancelled meanwhile.
    """

    def __init__(self, path: Union[str, os.PathLike[str]]) -> None:
        self.file = ImportFile(path)
        self._lock = threading.Lock()
        self._wanted = True

    async def __aenter__(self) -> FileReading:
        try:
            await self.run(self.file.__enter__)
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._close()

    async def run(self, function: Callable[[], T]) -> T:
        """Run something that reads, in a thread."""
        result: T = await run_in_thread(lambda: self._run(function))
        return result

    def _run(self, function: Callable[[], T]) -> T:
        try:
            with self._lock:
                return function()
        finally:
            if not self._wanted:
                self._close()

    def _close(self) -> None:
        self._wanted = False
        # else a thread is reading, and closes the file when it has ended
        if self._lock.acquire(blocking=False):
            try:
                self.file.__exit__(None, None, None)
            finally:
                self._lock.release()


@dataclass
class ConversationGroup:
    """Different conversations that can be stored side by side, and the records before them that are none."""

    conversations: List[Tuple[RawRecord, ImportedConversation]] = field(default_factory=list)
    bad: List[BadRecord] = field(default_factory=list)


class ConversationGroups:
    """The conversations of a foreign file, some at a time. Iterate once."""

    def __init__(self, reading: FileReading) -> None:
        self._reading = reading
        self._items = reading.file.conversations()
        self._left: Optional[Tuple[RawRecord, ImportedConversation]] = None

    async def __aiter__(self) -> AsyncIterator[ConversationGroup]:
        while True:
            group = await self._reading.run(self._next)
            if not group.conversations and not group.bad:
                return
            yield group

    def _next(self) -> ConversationGroup:
        """Read the next group; blocks. Empty at the end of the file."""
        group = ConversationGroup()
        ids: Set[str] = set()
        held = 0
        if self._left is not None:
            held += _take(group, ids, self._left)
            self._left = None
        for record, item in self._items:
            if isinstance(item, BadRecord):
                group.bad.append(item)
                continue
            if item.id in ids:
                # the same conversation again: after the first of it is stored
                self._left = (record, item)
                break
            held += _take(group, ids, (record, item))
            if len(group.conversations) >= _CONVERSATIONS_TOGETHER or held >= _MESSAGES_TOGETHER:
                break
        return group


def _take(group: ConversationGroup, ids: Set[str], found: Tuple[RawRecord, ImportedConversation]) -> int:
    group.conversations.append(found)
    if found[1].id is not None:
        ids.add(found[1].id)
    return len(found[1].messages)


class RecordsAhead:
    """The records of an export, read some at a time; takes back the last one."""

    def __init__(self, reading: FileReading) -> None:
        self._reading = reading
        self._records = reading.file.records()
        self._read: Iterator[_Record] = iter(())
        self._back: Optional[_Record] = None
        self.line = 0

    async def next(self) -> Optional[_Record]:
        """Return the next record, None after the last."""
        record, self._back = self._back, None
        if record is not None:
            return record
        record = next(self._read, None)
        if record is None:
            self._read = iter(await self._reading.run(self._read_some))
            record = next(self._read, None)
        if record is not None:
            self.line = record.line
        return record

    def put_back(self, record: _Record) -> None:
        """Give out `record` again."""
        self._back = record

    def _read_some(self) -> List[_Record]:
        """Read the next records; blocks. Empty at the end of the file."""
        some: List[_Record] = []
        file = self._reading.file
        end = file.bytes_read + _BYTES_TOGETHER
        for record in self._records:
            some.append(record)
            if len(some) >= _RECORDS_TOGETHER or file.bytes_read >= end:
                break
        return some


class ExportMessages:
    """The messages that follow in an export, up to the next record of another kind."""

    def __init__(self, records: RecordsAhead) -> None:
        self._records = records
        self.bad: List[BadRecord] = []

    async def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]:
        while True:
            record = await self._records.next()
            if record is None:
                return
            if isinstance(record, BadRecord):
                self.bad.append(record)
                continue
            kind, body = kind_of(record.value)
            if kind != "message":
                self._records.put_back(record)
                return
            yield body

    async def skip(self) -> None:
        """Read over those that are left: their conversation was refused."""
        async for _ in self:
            pass
