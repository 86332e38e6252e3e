"""Whose data a call is about: `modules.store_common.tenancy`."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, List

import pytest

from modules.store_common.errors import InvalidValueError, TenantContextError
from modules.store_common.tenancy import TenantPolicy, current_tenant, tenant_context

STRICT = TenantPolicy(required=True)


def test_the_explicit_tenant_wins_over_context_and_default() -> None:
    with tenant_context("acme"):
        assert TenantPolicy(default="d").resolve("explicit") == "explicit"
        assert TenantPolicy(default="d").resolve() == "acme"
    assert TenantPolicy(default="d").resolve() == "d"


def test_a_missing_tenant_is_refused_where_one_is_required() -> None:
    with pytest.raises(TenantContextError, match="requires a tenant"):
        STRICT.resolve()
    assert STRICT.resolve("acme") == "acme"


@pytest.mark.parametrize("bad", ["", " ", "a\x00", "\ud800", "x" * 256, 7, b"acme"])
def test_a_tenant_is_an_identifier(bad: Any) -> None:
    with pytest.raises(InvalidValueError, match="tenant_id"):
        TenantPolicy().resolve(bad)
    with pytest.raises(InvalidValueError, match="tenant_id"), tenant_context(bad):
        pass
    assert current_tenant() is None


def test_an_empty_tenant_is_never_the_default() -> None:
    with pytest.raises(InvalidValueError):
        TenantPolicy(default="d").resolve("")


def test_contexts_nest_and_end_on_errors() -> None:
    with tenant_context("outer") as name:
        assert name == "outer"
        with pytest.raises(KeyError), tenant_context("inner"):
            assert current_tenant() == "inner"
            raise KeyError
        assert current_tenant() == "outer"
    assert current_tenant() is None


async def test_tasks_do_not_see_each_others_tenant() -> None:
    meeting = asyncio.Event()
    inside = 0

    async def work(tenant: str) -> List[str]:
        nonlocal inside
        with tenant_context(tenant):
            inside += 1
            if inside == 20:
                meeting.set()
            await meeting.wait()  # all twenty are inside their blocks at once
            child = asyncio.create_task(asyncio.sleep(0, STRICT.resolve()))
            return [STRICT.resolve(), await child]

    names = [f"tenant-{n}" for n in range(20)]
    assert await asyncio.gather(*map(work, names)) == [[name, name] for name in names]
    assert current_tenant() is None


def test_another_thread_starts_without_a_tenant() -> None:
    seen: List[Any] = []
    with tenant_context("acme"):
        thread = threading.Thread(target=lambda: seen.append(current_tenant()))
        thread.start()
        thread.join()
    assert seen == [None]
