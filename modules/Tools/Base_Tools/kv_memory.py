"""A key-value adapter in the memory of this process: for tests of tools, nothing is kept and nothing is shared.

It passes the same contract suite as the real one (tests/contract/test_kv_tools.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Tuple

from modules.store_common.tenancy import TenantPolicy
from modules.store_common.values import check_identifier, decode_json
from modules.Tools.Base_Tools.kv_arguments import check_counter_start, check_key, check_ttl, fits_integer
from modules.Tools.Base_Tools.kv_errors import CounterOverflowError, InvalidValueTypeError
from modules.Tools.Base_Tools.kv_records import EncodedValue, encode_value

__all__ = ["MemoryAdapter"]


@dataclass
class _Held:
    value: EncodedValue
    version: int
    expires_at: Optional[float]


class MemoryAdapter:
    """Holds encoded values in a dict.

    Args:
        tenancy: How the tenant of a call is found.
        clock: Seconds, monotonic; tests give their own.
    """

    def __init__(
        self, tenancy: Optional[TenantPolicy] = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tenancy = tenancy if tenancy is not None else TenantPolicy()
        self._clock = clock
        self._held: Dict[Tuple[str, str, str], _Held] = {}

    async def get(
        self, namespace: str, key: str, default: Any = None, *, tenant_id: Optional[str] = None
    ) -> Any:
        """Return the value under `key`, else `default`."""
        held = self._live(self._place(namespace, key, tenant_id))
        return default if held is None else _decode(held.value)

    async def set(
        self,
        namespace: str,
        key: str,
        value: Any,
        *,
        ttl_seconds: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Store `value` under `key` and return its version."""
        place = self._place(namespace, key, tenant_id)
        encoded = encode_value(value)
        return self._put(place, encoded, self._expiry(ttl_seconds))

    async def delete(self, namespace: str, key: str, *, tenant_id: Optional[str] = None) -> bool:
        """Remove the entry under `key` and return whether it was there."""
        place = self._place(namespace, key, tenant_id)
        live = self._live(place) is not None
        self._held.pop(place, None)
        return live

    async def increment(
        self,
        namespace: str,
        key: str,
        amount: int = 1,
        *,
        ttl_seconds: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Add `amount` to the integer under `key`, 0 when there is none, and return the sum."""
        place = self._place(namespace, key, tenant_id)
        check_counter_start(amount, 0)
        expires_at = self._expiry(ttl_seconds)
        held = self._live(place)
        if held is None:
            self._put(place, encode_value(amount), expires_at)
            return amount
        current = _decode(held.value)
        if type(current) is not int:
            raise InvalidValueTypeError(f"the key {key!r} of namespace {namespace!r} holds no int")
        if not fits_integer(current + amount):
            raise CounterOverflowError(
                f"the key {key!r} of namespace {namespace!r} would leave 64 signed bits"
            )
        self._put(place, encode_value(current + amount), held.expires_at)
        return current + amount

    def _place(self, namespace: str, key: str, tenant_id: Optional[str]) -> Tuple[str, str, str]:
        return self._tenancy.resolve(tenant_id), check_identifier(namespace, "the namespace"), check_key(key)

    def _expiry(self, ttl_seconds: Optional[float]) -> Optional[float]:
        ttl_us = check_ttl(ttl_seconds, None)
        return None if ttl_us is None else self._clock() + ttl_us / 1_000_000

    def _live(self, place: Tuple[str, str, str]) -> Optional[_Held]:
        held = self._held.get(place)
        if held is None or (held.expires_at is not None and held.expires_at <= self._clock()):
            return None
        return held

    def _put(self, place: Tuple[str, str, str], value: EncodedValue, expires_at: Optional[float]) -> int:
        held = self._live(place)
        version = 1 if held is None else held.version + 1
        self._held[place] = _Held(value, version, expires_at)
        return version


def _decode(value: EncodedValue) -> Any:
    return value.data if value.text is None else decode_json(value.text)
