"""Reading conversation files of other programs: what a file is, found by looking, and its records one after another.

`ImportFile` opens a file, refuses what can be no such file (with what to do), and yields conversations and bad records.
Two containers are read, both as a stream: lines (a JSON object a line) and one JSON array or document, which is cut into
its elements by a scanner that follows strings and brackets, so that a ChatGPT export of hundreds of megabytes takes the
memory of its largest conversation. What a record means is in `import_shapes`.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Set, Tuple, Type, Union

import orjson

from modules.storage.import_shapes import (
    ImportedConversation,
    ImportedMessage,
    ShapeError,
    conversation_from_record,
    record_digest,
)
from modules.store_common.errors import StorageError

__all__ = [
    "FORMAT_NAMES",
    "MAX_RECORD_BYTES",
    "BadRecord",
    "ImportFile",
    "ImportFileError",
    "ImportedConversation",
    "ImportedMessage",
    "RawRecord",
]

#: A line or array element longer than this is reported and skipped.
MAX_RECORD_BYTES = 128 * 1024 * 1024
_CHUNK = 1024 * 1024
_BUFFER = 1024 * 1024
_HEAD = 64 * 1024

FORMAT_NAMES = {
    "messages": "chat lines",
    "sharegpt": "ShareGPT",
    "chatgpt": "ChatGPT export",
    "atlas": "ATLAS export",
}

_MAGIC = (
    (b"\x1f\x8b", "is gzip; unpack it first: gunzip -k {name}"),
    (b"PK\x03\x04", "is a zip archive; unpack it and import the conversations.json inside: unzip {name}"),
    (b"BZh", "is bzip2; unpack it first: bunzip2 -k {name}"),
    (b"\xfd7zXZ", "is xz; unpack it first: unxz -k {name}"),
    (b"\x28\xb5\x2f\xfd", "is zstd; unpack it first: unzstd {name}"),
    (
        b"SQLite format 3\x00",
        "is a SQLite database, not a file of conversations; to open it use --url sqlite:///{name}",
    ),
)
_UTF16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_KNOWN = (
    "known are JSON lines with messages, ShareGPT, a ChatGPT export (conversations.json) and our own export"
)

# A string, closed or cut off by the end of the buffer (group 1 is then empty), or a bracket.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{}]', re.DOTALL)

# Where such a number may stand: orjson quietly makes a float of an integer beyond 64 bits.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")


class ImportFileError(StorageError):
    """The file as a whole cannot be imported; the message says why and what to do."""


@dataclass(frozen=True)
class BadRecord:
    """A record that was left out.

    Attributes:
        line: Where it begins, counted from 1.
        reason: What is wrong with it, without its content.
        element: Its number in a JSON array, counted from 1; None in a file of lines.
    """

    line: int
    reason: str
    element: Optional[int] = None

    def __str__(self) -> str:
        place = f"line {self.line}" if self.element is None else f"element {self.element} (line {self.line})"
        return f"{place}: {self.reason}"


@dataclass(frozen=True)
class RawRecord:
    """A decoded JSON record and where it stands."""

    value: Any
    line: int
    element: Optional[int] = None

    def bad(self, reason: str) -> BadRecord:
        """Return the report that this record was left out."""
        return BadRecord(self.line, reason, self.element)


class ImportFile:
    """An open file of conversations. Use as a context manager; iterate once.

    Attributes:
        path: The file.
        size_bytes: Its size, None where it has none (a pipe).
        bytes_read: How far reading came; for progress bars.
        formats: Which formats were met so far ("messages", "sharegpt", "chatgpt").
    """

    def __init__(
        self, path: Union[str, os.PathLike[str]], *, max_record_bytes: int = MAX_RECORD_BYTES
    ) -> None:
        self.path = Path(path)
        self.size_bytes: Optional[int] = None
        self.bytes_read = 0
        self.formats: Set[str] = set()
        self._max = max_record_bytes
        self._stream: Optional[BinaryIO] = None
        self._container = "lines"
        self._is_own = False
        self._seen: Dict[bytes, int] = {}

    def __enter__(self) -> ImportFile:
        self._stream, self.size_bytes = _open(self.path)
        try:
            self._look()
        except BaseException:
            self._stream.close()
            raise
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    @property
    def is_own_export(self) -> bool:
        """True for a file that `atlas-storage export` wrote: read it with `records()`."""
        return self._is_own

    def __iter__(self) -> Iterator[Union[ImportedConversation, BadRecord]]:
        for _, item in self.conversations():
            yield item

    def conversations(self) -> Iterator[Tuple[RawRecord, Union[ImportedConversation, BadRecord]]]:
        """Yield each record with the conversation in it, or with what is wrong; every conversation has an id."""
        for record in self.records():
            if isinstance(record, BadRecord):
                yield RawRecord(None, record.line, record.element), record
                continue
            try:
                found = conversation_from_record(record.value)
            except ShapeError as exc:
                yield record, record.bad(str(exc))
                continue
            self.formats.add(found.shape)
            yield record, found if found.id else found._replace(id=self._made_id(record.value))

    def records(self) -> Iterator[Union[RawRecord, BadRecord]]:
        """Yield every JSON record of the file, or why it is none."""
        if self._container == "lines":
            return self._lines()
        return self._elements(1 if self._container == "array" else 0)

    def _made_id(self, value: Any) -> str:
        """Return the id of a record without one: its digest, and which copy it is where the file repeats it."""
        digest = record_digest(value)
        copy = self._seen[digest[:8]] = self._seen.get(digest[:8], 0) + 1
        return f"import-{digest.hex()}" + (f"-{copy}" if copy > 1 else "")

    # --- what the file is

    def _look(self) -> None:
        head = self._peek()
        if not head:
            raise ImportFileError(f"{self.path} is empty: there is nothing to import")
        for magic, advice in _MAGIC:
            if head.startswith(magic):
                raise ImportFileError(f"{self.path} " + advice.format(name=self.path))
        if head.startswith(_UTF16_OR_32) or _looks_like_utf16(head):
            raise ImportFileError(
                f"{self.path} is UTF-16 or UTF-32 text; save it as UTF-8, for example: "
                f"iconv -f UTF-16 -t UTF-8 {self.path} > utf8-{self.path.name}"
            )
        if b"\x00" in head:
            raise ImportFileError(f"{self.path} is a binary file, not JSON text; {_KNOWN}")
        if head.startswith(_BOM):
            self._read(len(_BOM))
            head = head[len(_BOM) :]
        self._container = self._container_of(head)
        self._is_own = bool(re.match(rb'\s*\{\s*"atlas_export"\s*:', head))
        if self._is_own:
            self.formats.add("atlas")

    def _container_of(self, head: bytes) -> str:
        text = head.lstrip()
        if not text and len(head) < _HEAD:
            raise ImportFileError(f"{self.path} holds nothing but blanks: there is nothing to import")
        if text.startswith(b"["):
            return "array"
        lines = text.splitlines()
        if len(lines) > 1 and _is_document(lines):
            return "document"
        if not any(line.startswith(b"{") for line in lines):
            raise ImportFileError(f"{self.path} does not look like JSON; {_KNOWN}")
        return "lines"

    # --- reading

    def _peek(self) -> bytes:
        assert self._stream is not None  # opened by __enter__  # noqa: S101
        return bytes(self._stream.peek(_HEAD)[:_HEAD])  # type: ignore[attr-defined]

    def _read(self, size: int) -> bytes:
        assert self._stream is not None  # noqa: S101
        data = self._stream.read(size)
        self.bytes_read += len(data)
        return data

    def _lines(self) -> Iterator[Union[RawRecord, BadRecord]]:
        assert self._stream is not None  # noqa: S101
        number = 0
        while True:
            line = self._stream.readline(self._max + 1)
            if not line:
                return
            number += 1
            self.bytes_read += len(line)
            if len(line) > self._max and not line.endswith(b"\n"):
                self._skip_line()
                yield BadRecord(number, f"is longer than {self._max:,} bytes; split the conversation")
            elif line.strip():
                yield _decode(line, number, None)

    def _skip_line(self) -> None:
        assert self._stream is not None  # noqa: S101
        while True:
            rest = self._stream.readline(_CHUNK)
            self.bytes_read += len(rest)
            if not rest or rest.endswith(b"\n"):
                return

    def _elements(self, base: int) -> Iterator[Union[RawRecord, BadRecord]]:
        """Yield what opens at bracket depth `base`: the elements of an array (1), or documents in a row (0)."""
        cutter = _Cutter(base, self._max)
        while not cutter.ended:
            chunk = self._read(_CHUNK)
            for data, line in cutter.feed(chunk):
                element = cutter.count if base else None
                if data is None:
                    yield BadRecord(line, f"is longer than {self._max:,} bytes", element)
                else:
                    yield _decode(data, line, element)
            if not chunk:
                break
        if cutter.problem:
            yield BadRecord(cutter.line, cutter.problem, cutter.count + 1 if base and cutter.inside else None)


class _Cutter:
    """Cuts a JSON text into its elements, by brackets and strings alone; each element is parsed by someone else."""

    def __init__(self, base: int, max_bytes: int) -> None:
        self.base = base
        self.count = 0
        self.line = 1  # where the element, or the gap before it, begins
        self.ended = False
        self.problem: Optional[str] = None
        self.inside = False
        self._max = max_bytes
        self._depth = 0
        self._buffer = b""
        self._start = 0  # of the element, or of the gap before it
        self._scanned = 0
        self._dropped = False
        self._dropped_lines = 0

    def feed(self, chunk: bytes) -> Iterator[Tuple[Optional[bytes], int]]:
        """Yield (element, its line) for each that `chunk` completes, None for one that was too long."""
        self._buffer = self._buffer[self._start :] + chunk
        self._scanned -= self._start
        self._start = 0
        for token in _TOKEN.finditer(self._buffer, self._scanned):
            if token[0][:1] == b'"':
                if not token[1]:
                    self._scanned = token.start()
                    break
                self._scanned = token.end()
                continue
            self._scanned = token.end()
            if token[0] in b"[{":
                if self._depth == self.base:
                    self._gap(token.start())
                    self.inside = True
                self._depth += 1
                if self._depth == self.base:  # the array's own bracket
                    self._advance(token.end())
                continue
            self._depth -= 1
            if self._depth == self.base and self.inside:
                yield self._take(token.end())
            elif self._depth < self.base or self._depth < 0:
                self._gap(token.start())
                self.ended = True
                return
        else:
            self._scanned = len(self._buffer)
        if self.inside and len(self._buffer) - self._start > self._max:
            self._dropped = True
            self._shrink()
        if not chunk and (self._depth or self.inside):
            self.problem = "the file ends in the middle of the JSON text; was the download cut short?"

    def _take(self, end: int) -> Tuple[Optional[bytes], int]:
        line = self.line
        data = None if self._dropped else self._buffer[self._start : end]
        self.count += 1
        self.inside = self._dropped = False
        self.line += self._dropped_lines
        self._dropped_lines = 0
        self._advance(end)
        return data, line

    def _gap(self, end: int) -> None:
        between = self._buffer[self._start : end].strip(b" \t\r\n,")
        if between and not self.problem:
            self.problem = f"there is something other than a JSON object after element {self.count}"
        self._advance(end)

    def _advance(self, to: int) -> None:
        self.line += self._buffer.count(b"\n", self._start, to)
        self._start = to

    def _shrink(self) -> None:
        """Forget the beginning of an element that is too long; only its brackets still matter."""
        self._dropped_lines += self._buffer.count(b"\n", self._start, self._scanned)
        self._start = self._scanned


class _TooLargeError(Exception):
    """An integer that would not come back as it was."""


def _check_integer(digits: str) -> None:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise _TooLargeError


def _decode(data: bytes, line: int, element: Optional[int]) -> Union[RawRecord, BadRecord]:
    try:
        value = orjson.loads(data)
        if _LONG_NUMBER.search(data):
            json.loads(data, parse_int=_check_integer)
        return RawRecord(value, line, element)
    except _TooLargeError:
        return BadRecord(line, "holds an integer outside 64 signed bits; write it as text", element)
    except orjson.JSONDecodeError as exc:
        try:
            data.decode()
        except UnicodeDecodeError as wrong:
            return BadRecord(line, f"is not valid UTF-8 at byte {wrong.start + 1} of the record", element)
        return BadRecord(line, f"is not valid JSON: {exc.msg} at column {exc.colno}", element)
    except RecursionError:
        return BadRecord(line, "is nested too deeply", element)


def _is_document(lines: List[bytes]) -> bool:
    """One pretty-printed object: its first line is no JSON by itself, and no later line opens another at the margin."""
    if not lines[0].startswith(b"{") or any(line.startswith(b"{") for line in lines[1:]):
        return False
    try:
        orjson.loads(lines[0])
    except orjson.JSONDecodeError:
        return True
    return False


def _looks_like_utf16(head: bytes) -> bool:
    """Half of UTF-16 JSON is NUL, on odd or on even places only."""
    sample = head[:200]
    pairs = len(sample) // 2
    zeros = sample.count(0)
    return (
        pairs > 1
        and zeros >= pairs * 0.8
        and (not any(sample[0::2][:pairs]) or not any(sample[1::2][:pairs]))
    )


def _open(path: Path) -> Tuple[BinaryIO, Optional[int]]:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            hint = path / "conversations.json"
            advice = f"; did you mean {hint}?" if hint.is_file() else "; name a file in it"
            raise ImportFileError(f"{path} is a directory{advice}")
        # The buffer is also how far `peek` can look.
        stream = open(path, "rb", buffering=_BUFFER)  # noqa: SIM115 - closed by ImportFile.__exit__
    except FileNotFoundError as exc:
        raise ImportFileError(f"{path} does not exist") from exc
    except PermissionError as exc:
        raise ImportFileError(f"{path} cannot be read: permission denied") from exc
    except (OSError, ValueError) as exc:
        raise ImportFileError(f"{path} cannot be opened: {getattr(exc, 'strerror', None) or exc}") from exc
    return stream, found.st_size if stat.S_ISREG(found.st_mode) else None
