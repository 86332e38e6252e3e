"""No tenant sees, changes or counts another's entries, whatever method is called: generated from the class itself."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, Awaitable, Callable, Dict

import pytest

from modules.store_common.errors import ConcurrencyError, TenantContextError
from modules.store_common.tenancy import TenantPolicy, tenant_context
from modules.Tools.Base_Tools.kv_store import KeyNotFoundError, KeyValuePage, KeyValueStore, NamespacePage
from tests.support import kv as support

kv, kv_pool, backend = support.kv, support.kv_pool, support.backend

Call = Callable[[KeyValueStore, Dict[str, Any]], Awaitable[Any]]
#: A call of every public method on an entry that another tenant has, and what it must answer: as if it did not exist.
CASES: Dict[str, Any] = {
    "get": (lambda kv, t: kv.get("app", "k", "none", **t), "none"),
    "get_entry": (lambda kv, t: kv.get_entry("app", "k", **t), None),
    "get_many": (lambda kv, t: kv.get_many("app", ["k", "n"], **t), {}),
    "exists": (lambda kv, t: kv.exists("app", "k", **t), False),
    "ttl": (lambda kv, t: kv.ttl("app", "k", **t), KeyNotFoundError),
    "list": (lambda kv, t: kv.list("app", **t), KeyValuePage([])),
    "list_namespaces": (lambda kv, t: kv.list_namespaces(**t), NamespacePage([])),
    "set": (lambda kv, t: kv.set("app", "k", "mine", expected_version=1, **t), ConcurrencyError),
    "set_many": (lambda kv, t: kv.set_many("app", {"k": "mine"}, **t), 1),
    "delete": (lambda kv, t: kv.delete("app", "k", **t), False),
    "increment": (lambda kv, t: kv.increment("app", "n", **t), 1),
    "compare_and_set": (lambda kv, t: kv.compare_and_set("app", "k", "mine", expected="theirs", **t), 0),
    "touch": (lambda kv, t: kv.touch("app", "k", ttl_seconds=1, **t), False),
    "clear": (lambda kv, t: kv.clear("app", **t), 0),
}


def test_every_public_method_has_a_case() -> None:
    public = [name for name, _ in inspect.getmembers(KeyValueStore, inspect.isfunction) if name[0] != "_"]
    assert sorted(public) == sorted(CASES)
    for name in public:
        parameter = inspect.signature(getattr(KeyValueStore, name)).parameters["tenant_id"]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is None


async def _theirs(kv: KeyValueStore) -> Any:
    page = await kv.list("app", tenant_id="theirs")
    return [(e.key, e.value, e.version, e.expires_at, e.updated_at) for e in page.entries]


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("how", ["argument", "context", "default"])
async def test_another_tenants_entry_does_not_exist(kv: KeyValueStore, name: str, how: str) -> None:
    await kv.set("app", "k", "theirs", ttl_seconds=1000, tenant_id="theirs")
    await kv.set("app", "n", 5, tenant_id="theirs")
    before = await _theirs(kv)
    call, expected = CASES[name]

    async def act() -> Any:
        if how == "argument":
            return await call(kv, {"tenant_id": "mine"})
        if how == "default":
            return await call(kv, {})
        with tenant_context("mine"):
            return await call(kv, {})

    if inspect.isclass(expected):
        with pytest.raises(expected) as found:
            await act()
        assert "theirs" not in str(found.value)
    else:
        assert await act() == expected
    assert await _theirs(kv) == before


@pytest.mark.parametrize("name", sorted(CASES))
async def test_a_required_tenant_is_required_of_every_method(kv_pool: Any, name: str) -> None:
    strict = KeyValueStore(kv_pool.executor, TenantPolicy(required=True))
    with pytest.raises(TenantContextError):
        await CASES[name][0](strict, {})


async def test_tasks_keep_their_own_tenants(kv: KeyValueStore) -> None:
    async def work(tenant: str) -> Any:
        with tenant_context(tenant):
            for _ in range(10):
                await kv.increment("app", "n")
                await kv.set("app", "who", tenant)
            return await kv.get("app", "who"), await kv.get("app", "n")

    found = await asyncio.gather(*[work(f"t{i}") for i in range(10)])
    assert found == [(f"t{i}", 10) for i in range(10)]
