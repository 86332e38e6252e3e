"""Errors of the key-value store.

    KeyValueStoreError               root, a StorageError
      KeyNotFoundError               also NotFoundError (LookupError): there is no such key, or it has expired
      NamespaceQuotaExceededError    also QuotaExceededError: the namespace would pass its limit
      GlobalQuotaExceededError       also QuotaExceededError: the tenant would pass its limit
      InvalidValueTypeError          the stored value is not of the type that this call works on
      CounterOverflowError           also InvalidValueError: a counter would leave 64 signed bits
      ValueSerializationError        also InvalidValueError (ValueError): the value is neither JSON nor bytes

A version that is not the expected one is `ConcurrencyError`. Nothing is changed by a call that ends in one of these.
"""

from __future__ import annotations

from typing import Optional

from modules.store_common.errors import InvalidValueError, NotFoundError, QuotaExceededError, StorageError

__all__ = [
    "CounterOverflowError",
    "GlobalQuotaExceededError",
    "InvalidValueTypeError",
    "KeyNotFoundError",
    "KeyValueStoreError",
    "NamespaceQuotaExceededError",
    "ValueSerializationError",
]


class KeyValueStoreError(StorageError):
    """Root of the key-value store's own errors."""


class KeyNotFoundError(KeyValueStoreError, NotFoundError):
    """There is no such key for this tenant, or it has expired."""


class InvalidValueTypeError(KeyValueStoreError):
    """The stored value is not of the type that this call works on; it was left as it is."""


class CounterOverflowError(KeyValueStoreError, InvalidValueError):
    """A counter would leave 64 signed bits; it was left as it is."""


class ValueSerializationError(KeyValueStoreError, InvalidValueError):
    """The value is neither bytes nor JSON of the value contract. Raised before any store is touched."""


class _QuotaError(KeyValueStoreError, QuotaExceededError):
    """A limit in bytes would be passed.

    Attributes:
        limit_bytes: The configured limit.
        used_bytes: What was used before this write, after expired entries were removed.
        needed_bytes: What this write adds.
    """

    def __init__(
        self,
        message: str,
        limit_bytes: Optional[int] = None,
        used_bytes: Optional[int] = None,
        needed_bytes: Optional[int] = None,
    ) -> None:
        super().__init__(message, limit_bytes, used_bytes, needed_bytes)
        self.limit_bytes = limit_bytes
        self.used_bytes = used_bytes
        self.needed_bytes = needed_bytes

    def __str__(self) -> str:
        return str(self.args[0])


class NamespaceQuotaExceededError(_QuotaError):
    """The namespace would pass its limit in bytes; nothing was written."""


class GlobalQuotaExceededError(_QuotaError):
    """The tenant would pass its limit in bytes over all namespaces; nothing was written."""
