"""Whose data a call is about: an explicit `tenant_id`, else `with tenant_context("acme"):`, else the configured default.

The tenant is read in the caller's task and travels as a value: context variables do not cross to a database thread.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Iterator, Optional

from modules.store_common.errors import TenantContextError
from modules.store_common.values import check_identifier

__all__ = ["TenantPolicy", "current_tenant", "tenant_context"]

_current: ContextVar[Optional[str]] = ContextVar("atlas_storage_tenant", default=None)


@contextmanager
def tenant_context(tenant_id: str) -> Iterator[str]:
    """Make `tenant_id` the tenant of every call inside the block, in this task and the tasks it starts.

    Raises:
        InvalidValueError: `tenant_id` is not an identifier.
    """
    token = _current.set(check_identifier(tenant_id, "tenant_id"))
    try:
        yield tenant_id
    finally:
        _current.reset(token)


def current_tenant() -> Optional[str]:
    """Return the tenant of the surrounding `tenant_context`, None outside of one."""
    return _current.get()


@dataclass(frozen=True)
class TenantPolicy:
    """How a store finds the tenant of a call.

    Attributes:
        required: Refuse calls without a tenant instead of using `default`.
        default: The tenant of calls that name none, when that is allowed.
    """

    required: bool = False
    default: str = "default"

    def resolve(self, explicit: Optional[str] = None) -> str:
        """Return the tenant of a call.

        Raises:
            TenantContextError: none was given and one is required.
            InvalidValueError: the one given is not an identifier.
        """
        if explicit is not None:
            return check_identifier(explicit, "tenant_id")
        tenant_id = _current.get()
        if tenant_id is not None:
            return tenant_id
        if self.required:
            raise TenantContextError(
                "this configuration requires a tenant: pass tenant_id=... or call inside `with tenant_context(...)`"
            )
        return self.default
