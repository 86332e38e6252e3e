"""What the access store gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Dict, FrozenSet, Optional, Tuple

__all__ = ["SCOPES", "AccessToken", "NewAccessToken", "granted_by"]

#: What a token can be made for. "admin" may do everything, "write" may also read, "monitor" sees health and metrics of the
#: whole installation and no data.
SCOPES = ("read", "write", "monitor", "admin")

_IMPLIED = {"admin": frozenset(SCOPES), "write": frozenset(("read", "write"))}


def granted_by(scopes: Tuple[str, ...]) -> FrozenSet[str]:
    """Return every scope that `scopes` stand for."""
    return frozenset().union(*(_IMPLIED.get(scope, frozenset((scope,))) for scope in scopes))


@dataclass(frozen=True)
class AccessToken:
    """A token, without its text.

    Attributes:
        id: Names it for people and for `revoke_token`; no secret.
        tenant_id: The tenant it is bound to.
        name: What it was made for.
        scopes: Of `SCOPES`.
        other_tenants: Tenants that it may name besides its own.
        expires_at: When it ends by the database's clock; None: never.
        last_used_at: To about a minute; None: never used.
        revoked_at: When it was revoked; None: it was not.
    """

    id: str
    tenant_id: str
    name: str
    scopes: Tuple[str, ...]
    other_tenants: Tuple[str, ...]
    created_at: datetime
    expires_at: Optional[datetime]
    last_used_at: Optional[datetime]
    revoked_at: Optional[datetime]

    @property
    def granted(self) -> FrozenSet[str]:
        """Every scope that its scopes stand for."""
        return granted_by(self.scopes)

    @property
    def tenants(self) -> Tuple[str, ...]:
        """The tenants it may name, its own first."""
        return (self.tenant_id, *self.other_tenants)

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        plain = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
        }
        return {**plain, "scopes": list(self.scopes), "other_tenants": list(self.other_tenants)}


@dataclass(frozen=True)
class NewAccessToken:
    """A token just made, with its text: the only time that it can be seen."""

    token: AccessToken
    text: str

    def __repr__(self) -> str:
        return f"NewAccessToken(token={self.token!r}, text='***')"
