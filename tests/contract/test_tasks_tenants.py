"""No tenant sees, changes or counts another's tasks (P32). The list of methods is read from the store: a new public method
without a case here fails.
"""

from __future__ import annotations

import inspect
from typing import Any, Dict

import pytest

from modules.store_common.errors import InvalidCursorError, NotFoundError, TenantContextError
from modules.store_common.tenancy import TenantPolicy, tenant_context
from modules.task_store.repository import TaskStore

NOT_FOUND, NOTHING, OWN = "not found", "nothing", "works on the tenant's own"


async def _all(items: Any) -> Any:
    return [item async for item in items]


#: Method -> what happens to tenant "b" when it names what only tenant "a" has, and the call.
CASES: Dict[str, Any] = {
    "create_task": (OWN, lambda s, **t: s.create_task("B", task_id="t1", idempotency_key="k", **t)),
    "create_tasks": (OWN, lambda s, **t: s.create_tasks([{"title": "B", "id": "t1"}], **t)),
    "get_task": (NOTHING, lambda s, **t: s.get_task("t1", **t)),
    "get_task_details": (NOTHING, lambda s, **t: s.get_task_details("t1", **t)),
    "list_tasks": (NOTHING, lambda s, **t: s.list_tasks(tag="x", conversation_id="c", **t)),
    "list_ready_tasks": (NOTHING, lambda s, **t: s.list_ready_tasks(**t)),
    "count_tasks": (OWN, lambda s, **t: s.count_tasks(**t)),
    "search": (NOTHING, lambda s, **t: s.search("umbrella", **t)),
    "list_dependencies": (NOTHING, lambda s, **t: s.list_dependencies("t2", **t)),
    "list_dependents": (NOTHING, lambda s, **t: s.list_dependents("t1", **t)),
    "list_assignments": (NOTHING, lambda s, **t: s.list_assignments(task_id="t1", **t)),
    "list_events": (NOTHING, lambda s, **t: s.list_events("t1", **t)),
    "subscribe": (NOTHING, lambda s, **t: _all(s.subscribe("sub", follow=False, **t))),
    "handle_events": (NOTHING, lambda s, **t: s.handle_events("sub", print, follow=False, **t)),
    "unsubscribe": (NOTHING, lambda s, **t: s.unsubscribe("sub", **t)),
    "delete_task": (NOTHING, lambda s, **t: s.delete_task("t1", **t)),
    "update_task": (NOT_FOUND, lambda s, **t: s.update_task("t1", title="B", **t)),
    "transition_task": (NOT_FOUND, lambda s, **t: s.transition_task("t1", "cancelled", **t)),
    "add_dependency": (NOT_FOUND, lambda s, **t: s.add_dependency("t1", "t3", **t)),
    "remove_dependency": (NOT_FOUND, lambda s, **t: s.remove_dependency("t2", "t1", **t)),
    "assign_task": (NOT_FOUND, lambda s, **t: s.assign_task("t1", "bob", **t)),
    "transition_assignment": (NOT_FOUND, lambda s, **t: s.transition_assignment("t1", "a1", "accepted", **t)),
    "add_comment": (NOT_FOUND, lambda s, **t: s.add_comment("t1", "B", **t)),
}
#: Administration of the whole database: takes no tenant and gives no content.
WITHOUT_TENANT = {"rebuild_search"}


@pytest.fixture
async def store(storage: Any) -> Any:
    """A store in which tenant "a" has something of everything."""
    store = storage.tasks
    with tenant_context("a"):
        assert not await _all(store.subscribe("sub", follow=False))
        await store.create_task(
            "umbrella", task_id="t1", status="ready", tags=["x"], conversation_id="c", idempotency_key="k"
        )
        await store.create_task("second", task_id="t2", depends_on=["t1"], parent_id="t1")
        await store.create_task("third", task_id="t3")
        await store.assign_task("t1", "ann", assignment_id="a1")
        await store.add_comment("t1", "a comment")
    return store


async def _everything(store: Any) -> Any:
    with tenant_context("a"):
        return (
            [await store.get_task_details(name) for name in ("t1", "t2", "t3")],
            await store.count_tasks(),
            [hit.task for hit in await store.search("umbrella")],
        )


def test_every_public_method_has_a_case() -> None:
    members = inspect.getmembers(TaskStore, inspect.isfunction)
    public = {name for name, _ in members if not name.startswith("_")}
    assert public - WITHOUT_TENANT == set(CASES)
    for name in CASES:
        parameter = inspect.signature(getattr(TaskStore, name)).parameters["tenant_id"]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is None


@pytest.mark.parametrize("name", sorted(CASES))
async def test_another_tenants_things_do_not_exist(store: Any, name: str) -> None:
    outcome, call = CASES[name]
    before = await _everything(store)
    if outcome == NOT_FOUND:
        with pytest.raises(NotFoundError) as caught:
            await call(store, tenant_id="b")
        # the same as for a tenant in whose place nothing is anywhere
        with pytest.raises(type(caught.value)) as unknown:
            await call(store, tenant_id="nobody")
        assert str(unknown.value) == str(caught.value)
    else:
        result = await call(store, tenant_id="b")
        if outcome == NOTHING:
            assert not result
        if name == "count_tasks":
            assert set(result.values()) == {0}
    assert await _everything(store) == before
    with tenant_context("a"):
        events = await _all(store.subscribe("sub", follow=False))
        assert len(events) == 5


@pytest.mark.parametrize("name", sorted(CASES))
async def test_without_a_tenant_where_one_is_required(storage: Any, name: str, backend: str) -> None:
    if backend != "sqlite":
        pytest.skip("refused before any database is asked")
    strict = TaskStore(storage.executor, TenantPolicy(required=True))
    with pytest.raises(TenantContextError):
        await CASES[name][1](strict)


async def test_links_do_not_cross_tenants(store: Any) -> None:
    await store.create_task("own", task_id="own", tenant_id="b")
    for call in (
        store.add_dependency("own", "t1", tenant_id="b"),
        store.update_task("own", parent_id="t1", tenant_id="b"),
        store.create_task("new", parent_id="t1", tenant_id="b"),
        store.create_task("new", depends_on=["t1"], tenant_id="b"),
    ):
        with pytest.raises(NotFoundError, match="'t1'"):
            await call
    assert await store.list_tasks(tenant_id="b", parent_id="t1") is not None
    assert (await store.count_tasks(tenant_id="b"))["draft"] == 1


async def test_cursors_are_bound_to_their_tenant(store: Any) -> None:
    tasks = (await store.list_tasks(limit=1, tenant_id="a")).next_cursor
    events = (await store.list_events("t1", limit=1, tenant_id="a")).next_cursor
    for call in (
        store.list_tasks(limit=1, cursor=tasks, tenant_id="b"),
        store.list_tasks(limit=1, cursor=tasks, order="updated", tenant_id="a"),
        store.list_ready_tasks(limit=1, cursor=tasks, tenant_id="a"),
        store.list_events("t1", limit=1, cursor=events, tenant_id="b"),
        store.list_events("t1", limit=1, cursor=tasks, tenant_id="a"),
    ):
        with pytest.raises(InvalidCursorError):
            await call
