"""`AccessStore`: makes, lists, revokes and checks the tokens of the HTTP API."""

from __future__ import annotations

import hmac
import math
from typing import List, Optional, Sequence

from modules.access_store import operations as op
from modules.access_store.errors import TokenNotFoundError, TokenRejectedError
from modules.access_store.records import SCOPES, AccessToken, NewAccessToken
from modules.access_store.tokens import TokenKey, key_of, new_token
from modules.storage.operations import Store
from modules.store_common.errors import InvalidValueError
from modules.store_common.ids import new_id
from modules.store_common.values import check_identifier, encode_json

__all__ = ["AccessStore"]

_MAX_LIFETIME_S = 100 * 365.25 * 86400
_MAX_TENANTS = 100
_MAX_PAGE = 1000
_ENDED = {1: "expired", 2: "revoked"}


class AccessStore(Store):
    """Tokens of the HTTP API. What is stored of a token is its SHA-256."""

    async def create_token(
        self,
        name: str,
        *,
        scopes: Sequence[str] = ("read",),
        lifetime_seconds: Optional[float] = None,
        other_tenants: Sequence[str] = (),
        tenant_id: Optional[str] = None,
    ) -> NewAccessToken:
        """Make a token and return it with its text, which is kept nowhere.

        Args:
            name: What it is for; for people.
            scopes: One or more of "read", "write" (also reads), "monitor" (health and metrics), "admin" (everything).
            lifetime_seconds: How long it holds, by the database's clock; None: until it is revoked.
            other_tenants: Tenants that it may name besides its own.
            tenant_id: The tenant that it is bound to; see `TenantPolicy`.
        """
        tenant = self._tenant(tenant_id)
        text = new_token(tenant)
        others = [check_identifier(other, "other_tenants") for other in dict.fromkeys(other_tenants)]
        if len(others) > _MAX_TENANTS:
            raise InvalidValueError(f"a token may name at most {_MAX_TENANTS} other tenants")
        values = {
            "tenant_id": tenant,
            "id": new_id(),
            "digest": key_of(text).digest,
            "name": check_identifier(name, "name"),
            "scopes": encode_json(_check_scopes(scopes), "scopes"),
            "other_tenants": encode_json([other for other in others if other != tenant], "other_tenants"),
            "lifetime_s": _check_lifetime(lifetime_seconds),
        }
        return NewAccessToken(await self._executor.run(op.add_token, values), text)

    async def list_tokens(
        self, *, limit: int = 100, after: str = "", tenant_id: Optional[str] = None
    ) -> List[AccessToken]:
        """Return the tokens bound to the tenant, oldest first; revoked and expired ones, too.

        Args:
            limit: 1 to 1,000.
            after: The id of the last one of the page before.
            tenant_id: Whose; see `TenantPolicy`.
        """
        if type(limit) is not int or not 1 <= limit <= _MAX_PAGE:
            raise InvalidValueError(f"limit must be an int from 1 to {_MAX_PAGE}")
        return await self._executor.run(op.list_tokens, self._tenant(tenant_id), after, limit)

    async def revoke_token(self, token_id: str, *, tenant_id: Optional[str] = None) -> AccessToken:
        """End a token for good. Harmless when it has ended.

        Raises:
            TokenNotFoundError: the tenant has no such token.
        """
        tenant = self._tenant(tenant_id)
        found = await self._executor.run(op.revoke_token, tenant, check_identifier(token_id, "token_id"))
        if found is None:
            raise TokenNotFoundError(token_id)
        return found

    async def require_token(self, key: TokenKey) -> AccessToken:
        """Return the token that `key` (of `tokens.key_of`) stands for.

        The tenant is that of the key: this call says who is calling, so it comes before any tenant.

        Raises:
            TokenRejectedError: there is none, or it has ended.
        """
        row = await self._executor.run(op.find_token, key.tenant_id, key.digest)
        if row is None or not hmac.compare_digest(row[1], key.digest):
            raise TokenRejectedError("unknown")
        token: AccessToken = row[0]
        if row[2]:
            raise TokenRejectedError(_ENDED[row[2]])
        return token

    async def note_use(self, token: AccessToken) -> bool:
        """Write down that `token` was used now; False when that was written within the last minute."""
        return await self._executor.run(op.note_use, token.tenant_id, token.id)


def _check_scopes(scopes: Sequence[str]) -> List[str]:
    given = [scopes] if isinstance(scopes, str) else list(scopes)
    if not given or any(scope not in SCOPES for scope in given):
        raise InvalidValueError(f"scopes are one or more of {', '.join(SCOPES)}")
    return [scope for scope in SCOPES if scope in given]


def _check_lifetime(seconds: Optional[float]) -> float:
    if seconds is None:
        return 0.0
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise InvalidValueError("lifetime_seconds must be a finite number")
    if not 0 < seconds <= _MAX_LIFETIME_S:
        raise InvalidValueError("lifetime_seconds must be more than 0 and at most 100 years")
    return float(seconds)
