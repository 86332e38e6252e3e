"""Our own export: a tenant's conversations and keys as JSON lines, which `transfer.import_file` reads.

A header, each conversation followed by its messages, the keys, and a footer with the counts, by which an import knows
that the file is whole:

    {"atlas_export": 1, "exported_at": "...", "tenant_id": "default"}
    {"conversation": {"id": "c1", ...}}
    {"message": {"id": "m1", "role": "user", ...}}
    {"key": {"namespace": "n", "key": "k", "value": ... or "base64": "...", "expires_at": null}}
    {"end": {"conversations": 1, "messages": 1, "keys": 1}}

It is written as a stream. The file appears under its name only when all of it is on the disk.
"""

from __future__ import annotations

import base64
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Mapping, Optional, Union

import orjson

from modules.store_common.clock import utc_now
from modules.store_common.errors import InvalidValueError, StorageFullError, StorageIOError
from modules.store_common.tenancy import current_tenant

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager

__all__ = ["FORMAT_VERSION", "ExportReport", "export_tenant"]

#: Goes up when older releases could not read the file.
FORMAT_VERSION = 1
_BUFFER = 1024 * 1024


@dataclass
class ExportReport:
    """What an export wrote."""

    path: str
    conversations: int = 0
    messages: int = 0
    keys: int = 0
    size_bytes: int = 0

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @property
    def summary(self) -> str:
        """What happened, in one line."""
        counts = f"{self.conversations:,} conversations, {self.messages:,} messages, {self.keys:,} keys"
        return f"Wrote {counts} to {self.path} ({self.size_bytes:,} bytes)."


async def export_tenant(
    storage: StorageManager,
    path: Union[str, os.PathLike[str]],
    *,
    tenant_id: Optional[str] = None,
    on_progress: Optional[Callable[[int], None]] = None,
) -> ExportReport:
    """Write a tenant's conversations and keys to a file, which appears whole or not at all.

    Users, sessions, assets, deleted messages and former versions of messages are no part of it.

    Args:
        storage: Open.
        path: The file; an existing one is replaced.
        tenant_id: Whose data; see `TenantPolicy`.
        on_progress: Called with the bytes written, now and then.

    Raises:
        StorageFullError, StorageIOError: the file cannot be written; none is left, an existing one is as it was.
    """
    target = Path(path)
    report = ExportReport(str(target))
    with _whole_file(target) as write:

        def put(record: Mapping[str, Any]) -> None:
            before = report.size_bytes
            report.size_bytes += write(orjson.dumps(record) + b"\n")
            if on_progress is not None and before // _BUFFER != report.size_bytes // _BUFFER:
                on_progress(report.size_bytes)

        owner = tenant_id or current_tenant() or storage.get_settings().default_tenant_id
        put({"atlas_export": FORMAT_VERSION, "exported_at": utc_now().isoformat(), "tenant_id": owner})
        async for record in storage.conversations.export_conversations(tenant_id=tenant_id):
            if "message" in record:
                report.messages += 1
                # A reply that is being written now will never be finished in the copy.
                if record["message"].get("status") == "streaming":
                    record["message"]["status"] = "interrupted"
            else:
                report.conversations += 1
            put(record)
        await _put_keys(storage, tenant_id, put, report)
        put(
            {"end": {"conversations": report.conversations, "messages": report.messages, "keys": report.keys}}
        )
    return report


async def _put_keys(
    storage: StorageManager,
    tenant_id: Optional[str],
    put: Callable[[Mapping[str, Any]], None],
    report: ExportReport,
) -> None:
    cursor: Optional[str] = None
    while True:
        spaces = await storage.kv.list_namespaces(limit=1000, cursor=cursor, tenant_id=tenant_id)
        for namespace in spaces.namespaces:
            after: Optional[str] = None
            while True:
                page = await storage.kv.list(namespace, limit=500, cursor=after, tenant_id=tenant_id)
                for entry in page.entries:
                    put({"key": _key_record(entry)})
                report.keys += len(page.entries)
                after = page.next_cursor
                if after is None:
                    break
        cursor = spaces.next_cursor
        if cursor is None:
            return


def _key_record(entry: Any) -> Dict[str, Any]:
    record: Dict[str, Any] = {"namespace": entry.namespace, "key": entry.key}
    if isinstance(entry.value, bytes):
        record["base64"] = base64.b64encode(entry.value).decode()
    else:
        record["value"] = entry.value
    record["expires_at"] = None if entry.expires_at is None else entry.expires_at.isoformat()
    return record


@contextmanager
def _whole_file(target: Path) -> Iterator[Callable[[bytes], int]]:
    """Give a function that writes to a file which becomes `target` at the end, or is removed after an error."""
    if target.exists() and not target.is_file():
        raise InvalidValueError(f"{target} is no regular file; name a file to write")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        # The data is somebody's: for this user only.
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", _BUFFER) as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
        _sync_directory(target.parent)
    except OSError as exc:
        full = exc.errno in (28, 122)  # ENOSPC, EDQUOT
        kind = StorageFullError if full else StorageIOError
        raise kind(
            f"{target} cannot be written: {exc.strerror or type(exc).__name__}; nothing was left there"
        ) from exc
    finally:
        partial.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Make the new name last."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
