"""The key-value store of one database: `storage.kv`.

Arguments are checked and values encoded in the caller's task, before any store is touched.
"""

from __future__ import annotations

from typing import Any, Final, Mapping, Optional

from modules.storage.operations import Executor, Operation
from modules.store_common.errors import InvalidValueError
from modules.store_common.tenancy import TenantPolicy
from modules.store_common.values import check_identifier
from modules.Tools.Base_Tools import kv_operations as op
from modules.Tools.Base_Tools.kv_arguments import (
    check_counter_start,
    check_integer,
    check_key,
    check_ttl,
    check_version,
)
from modules.Tools.Base_Tools.kv_quota import NOT_STARTED, Limits, start_accounts, within_limits
from modules.Tools.Base_Tools.kv_reads import KeyValueReads
from modules.Tools.Base_Tools.kv_records import encode_value

__all__ = ["ABSENT", "KeyValueStore"]

_CLEAR_BATCH = 5000


class _Absent:
    """The type of `ABSENT`."""

    def __repr__(self) -> str:
        return "ABSENT"


#: For `compare_and_set(expected=ABSENT)`: there must be no entry.
ABSENT: Final = _Absent()
_ANY: Final = object()


class KeyValueStore(KeyValueReads):
    """Values by tenant, namespace and key, with versions, times to live and quotas.

    Args:
        executor: Runs the operations: a pool's, or a unit of work's.
        tenancy: How the tenant of a call is found.
        namespace_quota_bytes: Limit of each namespace of each tenant; 0 is none.
        global_quota_bytes: Limit of each tenant over all namespaces; 0 is none.
        default_ttl_seconds: Time to live of entries written without one; 0 is for ever.
    """

    def __init__(
        self,
        executor: Executor,
        tenancy: TenantPolicy,
        *,
        namespace_quota_bytes: int = 0,
        global_quota_bytes: int = 0,
        default_ttl_seconds: float = 0,
    ) -> None:
        super().__init__(executor, tenancy)
        for name, limit in (
            ("namespace_quota_bytes", namespace_quota_bytes),
            ("global_quota_bytes", global_quota_bytes),
        ):
            if check_integer(limit, name) < 0:
                raise InvalidValueError(f"{name} must be 0 (no limit) or more")
        self._limits = Limits(namespace_quota_bytes, global_quota_bytes)
        self._limited = bool(self._limits)
        self._default_ttl_us = check_ttl(default_ttl_seconds, None)

    async def set(
        self,
        namespace: str,
        key: str,
        value: Any,
        *,
        ttl_seconds: Optional[float] = None,
        only_if_absent: bool = False,
        expected_version: Optional[int] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Store `value` under `key`, replacing what is there, its time to live included.

        Args:
            namespace: 1 to 255 bytes of UTF-8, an identifier.
            key: 1 to 1,024 bytes of UTF-8, without control characters or white space at its ends.
            value: JSON (see `modules.store_common.values`) or bytes; bytearray and memoryview come back as bytes.
            ttl_seconds: Time to live; None for the store's default, 0 for ever.
            only_if_absent: Write nothing if there is an entry.
            expected_version: Write only if the entry has this version; 0 if there must be none.
            tenant_id: Whose data; see `tenant_context`.

        Returns:
            The entry's version: 1 at first, one more at each write; 0 when `only_if_absent` found an entry.

        Raises:
            ValueSerializationError: `value` is neither JSON nor bytes, or too long.
            ConcurrencyError: the version is not the expected one.
            QuotaExceededError: a limit would be passed.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(namespace, "the namespace")
        check_key(key)
        encoded = encode_value(value)
        ttl_us = self._default_ttl_us if ttl_seconds is None else check_ttl(ttl_seconds, None)
        if expected_version is not None:
            if only_if_absent:
                raise InvalidValueError("give only_if_absent or expected_version, not both")
            expected = check_version(expected_version)
            return int(
                await self._write(op.set_version, tenant_id, namespace, key, encoded, ttl_us, expected)
            )
        if only_if_absent:
            return int(await self._write(op.set_absent, tenant_id, namespace, key, encoded, ttl_us))
        if self._limited:
            return int(await self._write(op.set_entry, tenant_id, namespace, key, encoded, ttl_us))
        return await self._executor.run(op.set_entry, tenant_id, namespace, key, encoded, ttl_us)

    async def set_many(
        self,
        namespace: str,
        items: Mapping[str, Any],
        *,
        ttl_seconds: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Store every value of `items` under its key, in one transaction: all of them or none.

        Args:
            namespace: Which namespace.
            items: Values by key, thousands if need be.
            ttl_seconds: Time to live of each; None for the store's default, 0 for ever.
            tenant_id: Whose data.

        Returns:
            How many were stored.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(namespace, "the namespace")
        if not isinstance(items, Mapping):
            raise InvalidValueError(f"items must be a mapping, not {type(items).__name__}")
        encoded = sorted([(check_key(key), encode_value(value)) for key, value in items.items()])
        ttl_us = check_ttl(ttl_seconds, self._default_ttl_us)
        if not encoded:
            return 0
        return int(await self._write(op.set_many, tenant_id, namespace, encoded, ttl_us))

    async def delete(
        self,
        namespace: str,
        key: str,
        *,
        expected_version: Optional[int] = None,
        tenant_id: Optional[str] = None,
    ) -> bool:
        """Remove the entry under `key` and return whether it was there.

        Args:
            namespace: Which namespace.
            key: Which key.
            expected_version: Remove it only if it has this version.
            tenant_id: Whose data.

        Raises:
            ConcurrencyError: the version is not the expected one, or there is no entry.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(namespace, "the namespace")
        check_key(key)
        if expected_version is None:
            return bool(await self._write(op.delete_entry, tenant_id, namespace, key))
        if check_version(expected_version) == 0:
            raise InvalidValueError(
                "expected_version is 1 or more here: what does not exist cannot be deleted"
            )
        return bool(await self._write(op.delete_version, tenant_id, namespace, key, expected_version))

    async def increment(
        self,
        namespace: str,
        key: str,
        amount: int = 1,
        *,
        initial: int = 0,
        ttl_seconds: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Add `amount` to the integer under `key`, atomically, and return the sum.

        Args:
            namespace: Which namespace.
            key: Which key.
            amount: Any int of 64 signed bits, negative to count down.
            initial: What to start from when there is no entry.
            ttl_seconds: Time to live of an entry that is made by this call (None: the default, 0: for ever); an entry that
                is there keeps its own.
            tenant_id: Whose data.

        Raises:
            InvalidValueTypeError: the value stored is not an int.
            CounterOverflowError: the sum would leave 64 signed bits.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(namespace, "the namespace")
        check_key(key)
        check_counter_start(amount, initial)
        ttl_us = check_ttl(ttl_seconds, self._default_ttl_us)
        return int(await self._write(op.count_up, tenant_id, namespace, key, amount, initial, ttl_us))

    async def compare_and_set(
        self,
        namespace: str,
        key: str,
        value: Any,
        *,
        expected: Any = _ANY,
        expected_version: Optional[int] = None,
        ttl_seconds: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Store `value` if the entry is as expected, and say whether that was so. Of many rivals exactly one wins.

        Args:
            namespace: Which namespace.
            key: Which key.
            value: JSON or bytes.
            expected: The value that must be there, or `ABSENT`. JSON is compared as JSON: the order of keys does not
                matter, and 1, 1.0 and True are three values.
            expected_version: The version that it must have; 0 if there must be none. Give one of the two, or both.
            ttl_seconds: Time to live; None for the store's default, 0 for ever.
            tenant_id: Whose data.

        Returns:
            The new version (which is true), or 0 when the entry is not as expected and nothing was written.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(namespace, "the namespace")
        check_key(key)
        encoded = encode_value(value)
        ttl_us = check_ttl(ttl_seconds, self._default_ttl_us)
        version = None if expected_version is None else check_version(expected_version)
        if expected is _ANY and version is None:
            raise InvalidValueError("compare_and_set needs expected, expected_version or both")
        if expected is ABSENT or (expected is _ANY and version == 0):
            if version:
                return 0
            return int(await self._write(op.set_absent, tenant_id, namespace, key, encoded, ttl_us))
        if expected is _ANY:
            return int(
                await self._write(op.replace_version, tenant_id, namespace, key, encoded, ttl_us, version)
            )
        wanted = _comparable(expected)
        return int(
            await self._write(op.compare_and_set, tenant_id, namespace, key, wanted, encoded, ttl_us, version)
        )

    async def touch(
        self,
        namespace: str,
        key: str,
        *,
        ttl_seconds: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> bool:
        """Give the entry a new time to live from now and return whether it is there; value and version stay.

        Args:
            namespace: Which namespace.
            key: Which key.
            ttl_seconds: None for the store's default, 0 for ever.
            tenant_id: Whose data.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(namespace, "the namespace")
        check_key(key)
        return await self._executor.run(
            op.touch, tenant_id, namespace, key, check_ttl(ttl_seconds, self._default_ttl_us)
        )

    async def clear(self, namespace: str, *, tenant_id: Optional[str] = None) -> int:
        """Remove every entry of `namespace` and return how many there were.

        Works through the keys in batches of 5,000, each a transaction of its own (in a unit of work: all in its one), so
        that other writers are not kept waiting. Keys written meanwhile may stay.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(namespace, "the namespace")
        removed = 0
        after = ""
        while True:
            count, position = await self._write(op.clear_part, tenant_id, namespace, after, _CLEAR_BATCH)
            removed += int(count)
            if position is None:
                return removed
            after = position

    async def _write(
        self, operation: Operation[Any, Any], tenant_id: str, namespace: str, *arguments: Any
    ) -> Any:
        if self._limited:
            call = (self._limits, tenant_id, namespace, operation, arguments)
            result = await self._executor.run(within_limits, *call)
            if result is not NOT_STARTED:
                return result
            await self._executor.run(start_accounts)
            return await self._executor.run(within_limits, *call)
        return await self._executor.run(operation, tenant_id, namespace, *arguments)


def _comparable(expected: Any) -> Any:
    encoded = encode_value(expected)
    return op.comparable(expected, encoded.data)
