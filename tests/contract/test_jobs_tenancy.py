"""No tenant sees, changes or counts another's jobs (P32). The list of methods is read from the store: a new public method
without a case here fails.
"""

from __future__ import annotations

import inspect
from typing import Any, Awaitable, Callable, Dict

import pytest

from modules.job_store.records import NewJob
from modules.job_store.repository import JobStore
from modules.job_store.schedules import Recurrence
from modules.store_common.errors import InvalidCursorError, NotFoundError, TenantContextError
from modules.store_common.tenancy import TenantPolicy, tenant_context
from tests.support import backends as support
from tests.support.jobs import executor_of_jobs

backend = support.backend

NOT_FOUND, NOTHING, OWN = "not found", "nothing", "works on the tenant's own"
_ZERO = dict.fromkeys(("draft", "scheduled", "running", "succeeded", "failed", "cancelled"), 0)

#: Method -> what happens to tenant "b" when it names what only tenant "a" has (job `j`, schedule `s`), and the call.
CASES: Dict[str, Any] = {
    "enqueue": (OWN, lambda s, j, x, **t: s.enqueue("h", name="n", unique_key="u", **t)),
    "enqueue_job": (OWN, lambda s, j, x, **t: s.enqueue_job(NewJob("h", idempotency_key="i"), **t)),
    "enqueue_many": (OWN, lambda s, j, x, **t: s.enqueue_many([NewJob("h", name="n")], **t)),
    "get": (NOTHING, lambda s, j, x, **t: s.get(j, **t)),
    "require": (NOT_FOUND, lambda s, j, x, **t: s.require(j, **t)),
    "get_by_name": (NOTHING, lambda s, j, x, **t: s.get_by_name("n", **t)),
    "list_jobs": (NOTHING, lambda s, j, x, **t: s.list_jobs(**t)),
    "list_runs": (NOT_FOUND, lambda s, j, x, **t: s.list_runs(j, **t)),
    "list_logs": (NOT_FOUND, lambda s, j, x, **t: s.list_logs(j, **t)),
    "list_events": (NOT_FOUND, lambda s, j, x, **t: s.list_events(j, **t)),
    "counts": (NOTHING, lambda s, j, x, **t: s.counts(**t)),
    "queue_statistics": (NOTHING, lambda s, j, x, **t: s.queue_statistics(**t)),
    "next_due": (NOTHING, lambda s, j, x, **t: s.next_due(**t)),
    "update": (NOT_FOUND, lambda s, j, x, **t: s.update(j, priority=3, **t)),
    "reschedule": (NOT_FOUND, lambda s, j, x, **t: s.reschedule(j, delay_s=3, **t)),
    "schedule": (NOT_FOUND, lambda s, j, x, **t: s.schedule(j, **t)),
    "to_draft": (NOT_FOUND, lambda s, j, x, **t: s.to_draft(j, **t)),
    "cancel": (NOT_FOUND, lambda s, j, x, **t: s.cancel(j, **t)),
    "rerun": (NOT_FOUND, lambda s, j, x, **t: s.rerun(j, **t)),
    "redrive_dead": (NOTHING, lambda s, j, x, **t: s.redrive_dead(**t)),
    "delete": (NOTHING, lambda s, j, x, **t: s.delete(j, **t)),
    "purge": (NOTHING, lambda s, j, x, **t: s.purge(older_than_days=0, **t)),
    "create_schedule": (
        OWN,
        lambda s, j, x, **t: s.create_schedule("s", Recurrence(every_s=60), NewJob("h"), **t),
    ),
    "get_schedule": (NOTHING, lambda s, j, x, **t: s.get_schedule(x, **t)),
    "get_schedule_by_name": (NOTHING, lambda s, j, x, **t: s.get_schedule_by_name("s", **t)),
    "list_schedules": (NOTHING, lambda s, j, x, **t: s.list_schedules(**t)),
    "update_schedule": (NOT_FOUND, lambda s, j, x, **t: s.update_schedule(x, enabled=False, **t)),
    "delete_schedule": (NOTHING, lambda s, j, x, **t: s.delete_schedule(x, **t)),
    "assign": (NOT_FOUND, lambda s, j, x, **t: s.assign(j, "eve", **t)),
    "unassign": (NOT_FOUND, lambda s, j, x, **t: s.unassign(j, "ada", **t)),
    "list_assignments": (NOTHING, lambda s, j, x, **t: s.list_assignments(j, **t)),
    "link_task": (NOT_FOUND, lambda s, j, x, **t: s.link_task(j, "t2", **t)),
    "unlink_task": (NOTHING, lambda s, j, x, **t: s.unlink_task(j, "t1", **t)),
    "list_tasks": (NOTHING, lambda s, j, x, **t: s.list_tasks(j, **t)),
    "list_jobs_of_task": (NOTHING, lambda s, j, x, **t: s.list_jobs_of_task("t1", **t)),
}
Case = Callable[..., Awaitable[Any]]


def test_every_public_method_has_a_case() -> None:
    public = {
        name for name, member in inspect.getmembers(JobStore, inspect.iscoroutinefunction) if name[0] != "_"
    }
    assert public == set(CASES)
    for name in public:
        parameter = inspect.signature(getattr(JobStore, name)).parameters["tenant_id"]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is None


async def _everything(store: JobStore, job_id: str, schedule_id: str) -> Any:
    t = {"tenant_id": "a"}
    return (
        list(await store.list_jobs(**t)), list(await store.list_runs(job_id, **t)),
        list(await store.list_events(job_id, **t)), list(await store.list_schedules(**t)),
        await store.list_assignments(job_id, **t), await store.list_tasks(job_id, **t), await store.counts(**t),
    )  # fmt: skip


async def test_another_tenants_jobs_do_not_exist(storage: Any) -> None:
    store = storage.jobs
    mine = await store.enqueue(
        "h", name="n", unique_key="u", idempotency_key="i", task_ids=["t1"], tenant_id="a"
    )
    await store.assign(mine, "ada", tenant_id="a")
    made = await store.create_schedule("s", Recurrence(every_s=3600), NewJob("h"), tenant_id="a")
    (claim,) = await storage.job_queue.claim("w")
    await storage.job_queue.fail(claim, "E", retry=False)
    before = await _everything(store, mine, made.id)

    for name, (what, call) in CASES.items():
        for how in ("argument", "context"):
            tenant = f"b-{name}-{how}"
            if how == "argument":
                outcome = call(store, mine, made.id, tenant_id=tenant)
            else:
                outcome = _in_context(tenant, call, store, mine, made.id)
            if what == NOT_FOUND:
                with pytest.raises(NotFoundError):
                    await outcome
            else:
                result = await outcome
                if what == NOTHING:
                    empty = result == _ZERO or not (list(result) if hasattr(result, "items") else result)
                    assert empty, f"{name}: {result}"
            assert await _everything(store, mine, made.id) == before, name


async def _in_context(tenant: str, call: Case, store: JobStore, job_id: str, schedule_id: str) -> Any:
    with tenant_context(tenant):
        return await call(store, job_id, schedule_id)


async def test_a_required_tenant_is_required_of_every_method(storage: Any) -> None:
    strict = JobStore(executor_of_jobs(storage), TenantPolicy(required=True))
    for name, (_, call) in CASES.items():
        with pytest.raises(TenantContextError):
            await call(strict, "j", "s")
        assert name
    with pytest.raises(TenantContextError):
        strict.queue()


async def test_a_cursor_of_another_tenant_is_refused(storage: Any) -> None:
    await storage.jobs.enqueue_many([NewJob("h")] * 3, tenant_id="a")
    page = await storage.jobs.list_jobs(limit=1, tenant_id="a")
    with pytest.raises(InvalidCursorError):
        await storage.jobs.list_jobs(limit=1, cursor=page.next_cursor, tenant_id="b")
