"""Who is calling: dependencies of the routes that ask for a token with a scope, and for the tenant that the call is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Optional

from fastapi import Depends, Header, Request

from modules.access_store.records import AccessToken
from modules.Server.problems import ApiError
from modules.Server.services import Services, services_of
from modules.storage.manager import StorageManager

__all__ = ["Admin", "Caller", "Monitor", "Reader", "Writer", "bearer_of"]


@dataclass(frozen=True)
class Caller:
    """An authenticated call.

    Attributes:
        token: Its token.
        tenant_id: Whose data it is about: pass it to every call of a store.
        services: The server's parts.
    """

    token: AccessToken
    tenant_id: str
    services: Services

    @property
    def storage(self) -> StorageManager:
        """The storage."""
        return self.services.storage


def bearer_of(request: Request) -> str:
    """Return the token in the header `Authorization`.

    Raises:
        ApiError: there is none.
    """
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise ApiError(401, "unauthorized", "send a token: `Authorization: Bearer ...`")
    return text.strip()


class _Require:
    """A dependency: a token with `scope`."""

    def __init__(self, scope: str) -> None:
        self._scope = scope

    async def __call__(
        self,
        request: Request,
        atlas_tenant: Annotated[
            Optional[str],
            Header(
                description="Tenant that the call is about, of those that the token may name; default: the token's own."
            ),
        ] = None,
    ) -> Caller:
        services = services_of(request)
        token = await services.authenticator.token_of(bearer_of(request))
        if self._scope not in token.granted:
            raise ApiError(403, "forbidden", f"this token lacks the scope {self._scope!r}")
        tenant_id = token.tenant_id if atlas_tenant is None else _named(atlas_tenant)
        if tenant_id not in token.tenants:
            raise ApiError(403, "tenant_not_allowed", "this token may not name that tenant")
        return Caller(token, tenant_id, services)


def _named(header: str) -> str:
    """Return the text of a header: HTTP libraries write what is not ASCII as UTF-8 bytes."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


Reader = Annotated[Caller, Depends(_Require("read"))]
Writer = Annotated[Caller, Depends(_Require("write"))]
Monitor = Annotated[Caller, Depends(_Require("monitor"))]
Admin = Annotated[Caller, Depends(_Require("admin"))]
