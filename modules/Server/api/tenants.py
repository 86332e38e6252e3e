"""What the token may do, and whose data it may name."""

from __future__ import annotations

from fastapi import APIRouter

from modules.Server.callers import Reader
from modules.Server.models import PageOf, TenantOut
from modules.Server.replies import Json

__all__ = ["list_tenants", "router"]

router = APIRouter(prefix="/v1", tags=["tenants"])


@router.get("/tenants", response_model=PageOf[TenantOut])
async def list_tenants(caller: Reader) -> Json:
    """List the tenants that the token may name in the header Atlas-Tenant."""
    items = [{"id": name, "is_default": name == caller.token.tenant_id} for name in caller.token.tenants]
    return Json({"items": items, "next_cursor": None})
