"""The reading half of the key-value store."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Optional

from modules.storage.operations import Store
from modules.storage.statements import Row
from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.errors import InvalidCursorError, InvalidValueError
from modules.store_common.values import check_identifier
from modules.Tools.Base_Tools import kv_operations as op
from modules.Tools.Base_Tools.kv_arguments import check_key, check_page, check_prefix, upper_bound
from modules.Tools.Base_Tools.kv_errors import KeyNotFoundError
from modules.Tools.Base_Tools.kv_records import KeyValueEntry, KeyValuePage, NamespacePage

__all__ = ["KeyValueReads"]

_KEYS_PER_STATEMENT = 1000


def _entry(namespace: str, row: Row) -> KeyValueEntry:
    key, value, data, version, size_bytes, created_at, updated_at, expires_at = row
    return KeyValueEntry(
        namespace,
        key,
        value if data is None else data,
        version,
        size_bytes,
        created_at,
        updated_at,
        expires_at,
    )


class KeyValueReads(Store):
    """What can be asked of the key-value store. An expired entry is not there, for every method."""

    async def get(
        self, namespace: str, key: str, default: Any = None, *, tenant_id: Optional[str] = None
    ) -> Any:
        """Return the value under `key`: JSON or bytes.

        Args:
            namespace: 1 to 255 bytes of UTF-8, an identifier.
            key: 1 to 1,024 bytes of UTF-8, without control characters or white space at its ends.
            default: What to return when there is none. A stored None is returned as None: pass a default of your own
                to tell the two apart, or use `get_entry`.
            tenant_id: Whose data; see `tenant_context`.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(namespace, "the namespace")
        row = await self._executor.run(op.get_value, tenant_id, namespace, check_key(key))
        if row is None:
            return default
        return row[0] if row[1] is None else row[1]

    async def get_entry(
        self, namespace: str, key: str, *, tenant_id: Optional[str] = None
    ) -> Optional[KeyValueEntry]:
        """Return the value under `key` with its version and times, None when there is none."""
        tenant_id = self._tenant(tenant_id)
        check_identifier(namespace, "the namespace")
        row = await self._executor.run(op.get_entry, tenant_id, namespace, check_key(key))
        return None if row is None else _entry(namespace, row)

    async def get_many(
        self, namespace: str, keys: Iterable[str], *, tenant_id: Optional[str] = None
    ) -> Dict[str, Any]:
        """Return the values that are there, by key, in the order of `keys`.

        More than 1,000 keys are read in several statements, each of one moment.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(namespace, "the namespace")
        if isinstance(keys, (str, bytes)):
            raise InvalidValueError("keys must be a collection of str, not one text")
        wanted = list(dict.fromkeys(check_key(key) for key in keys))
        found: Dict[str, Any] = {}
        for start in range(0, len(wanted), _KEYS_PER_STATEMENT):
            part = wanted[start : start + _KEYS_PER_STATEMENT]
            for key, value, data in await self._executor.run(op.get_many, tenant_id, namespace, part):
                found[key] = value if data is None else data
        return {key: found[key] for key in wanted if key in found}

    async def exists(self, namespace: str, key: str, *, tenant_id: Optional[str] = None) -> bool:
        """Return whether there is an entry under `key`."""
        tenant_id = self._tenant(tenant_id)
        check_identifier(namespace, "the namespace")
        return await self._executor.run(op.exists, tenant_id, namespace, check_key(key))

    async def ttl(self, namespace: str, key: str, *, tenant_id: Optional[str] = None) -> Optional[float]:
        """Return how many seconds the entry has left by the database's clock, None if it never expires.

        Raises:
            KeyNotFoundError: there is no entry under `key`.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(namespace, "the namespace")
        row = await self._executor.run(op.time_to_live, tenant_id, namespace, check_key(key))
        if row is None:
            raise KeyNotFoundError(f"there is no key {key!r} in namespace {namespace!r}")
        expires_at, now = row
        return None if expires_at is None else (expires_at - now).total_seconds()

    async def list(
        self,
        namespace: str,
        prefix: str = "",
        *,
        limit: int = 100,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> KeyValuePage:
        """Return a page of the entries whose key begins with `prefix`, ordered by key (by code point).

        Args:
            namespace: Which namespace.
            prefix: Any text, taken literally; "" for all.
            limit: Entries wanted, 1 to 1,000.
            cursor: `next_cursor` of the page before, for the same tenant, namespace and prefix.
            tenant_id: Whose data.

        Raises:
            InvalidCursorError: the cursor belongs to another list, or is damaged.
        """
        tenant_id = self._tenant(tenant_id)
        filters = [check_identifier(namespace, "the namespace"), check_prefix(prefix)]
        after = _position(decode_cursor(cursor, tenant_id, "kv.list", 1, filters=filters))
        rows = await self._executor.run(
            op.list_entries,
            tenant_id,
            namespace,
            prefix if after is None else after,
            upper_bound(prefix),
            after is None,
            check_page(limit) + 1,
        )
        entries = [_entry(namespace, row) for row in rows[:limit]]
        if len(rows) <= limit:
            return KeyValuePage(entries)
        return KeyValuePage(entries, encode_cursor(tenant_id, "kv.list", [entries[-1].key], filters=filters))

    async def list_namespaces(
        self, *, limit: int = 100, cursor: Optional[str] = None, tenant_id: Optional[str] = None
    ) -> NamespacePage:
        """Return a page of the namespaces that hold entries, in the order of code points.

        Args:
            limit: Names wanted, 1 to 1,000.
            cursor: `next_cursor` of the page before.
            tenant_id: Whose data.
        """
        tenant_id = self._tenant(tenant_id)
        after = _position(decode_cursor(cursor, tenant_id, "kv.namespaces", 1)) or ""
        names: List[str] = await self._executor.run(
            op.list_namespaces, tenant_id, after, check_page(limit) + 1
        )
        if len(names) <= limit:
            return NamespacePage(names)
        return NamespacePage(names[:limit], encode_cursor(tenant_id, "kv.namespaces", [names[limit - 1]]))


def _position(position: Optional[List[Any]]) -> Optional[str]:
    """Return the key in a cursor. A cursor is no secret, so a forged one is checked like any other argument."""
    if position is None:
        return None
    if not isinstance(position[0], str):
        raise InvalidCursorError("the cursor is damaged; start again without one")
    return check_key(position[0])
