"""What the vector stores raise, the same for the same cause on every provider.

VectorStoreError                 StorageError
VectorNotFoundError            also NotFoundError: a collection that does not exist, or an id that must
VectorCollectionError          a collection that exists already, or otherwise than asked for
VectorDimensionError           also InvalidValueError: a vector of the wrong length, or not of finite numbers
VectorFilterError              also InvalidValueError: a filter that is not of the language, or cannot be answered exactly
VectorRateLimitedError         also UnavailableError: the service asked to slow down for longer than the call's budget
VectorUnavailableError         also UnavailableError: the store did not answer, or not in time
"""

from __future__ import annotations

from modules.store_common.errors import InvalidValueError, NotFoundError, StorageError, UnavailableError

__all__ = [
    "VectorCollectionError",
    "VectorDimensionError",
    "VectorFilterError",
    "VectorNotFoundError",
    "VectorRateLimitedError",
    "VectorStoreError",
    "VectorUnavailableError",
]


class VectorStoreError(StorageError):
    """Root of the vector stores' errors."""


class VectorNotFoundError(VectorStoreError, NotFoundError):
    """The collection, or a document that must exist, is not there for this tenant."""


class VectorCollectionError(VectorStoreError):
    """The collection exists already, or differs from what was asked for, or the back end refuses it."""


class VectorDimensionError(VectorStoreError, InvalidValueError):
    """A vector has the wrong shape, is not finite, or has no direction where one is needed."""


class VectorFilterError(VectorStoreError, InvalidValueError):
    """A filter is not of the filter language (see `filters`)."""


class VectorRateLimitedError(VectorStoreError, UnavailableError):
    """The service asked to slow down and the call's patience ended."""


class VectorUnavailableError(VectorStoreError, UnavailableError):
    """The store cannot be reached or did not answer within its deadline."""
