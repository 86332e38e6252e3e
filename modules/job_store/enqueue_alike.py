"""Enqueueing many jobs that differ in nothing but their payload: two arrays for the database instead of sixteen.

That is how jobs are made in bulk, and checking, encoding and sending each field of each of them took most of the time:
42 us of the client's processor a job in batches of 1,000 on PostgreSQL before, see docs/benchmarks.md for now.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import orjson
from sqlalchemy import Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY

from modules.job_store.enqueue_statements import FIELDS
from modules.job_store.limits import MAX_BATCH, job_fields
from modules.job_store.records import NewJob
from modules.job_store.sql import NOW, PARAMETERS, binds
from modules.storage.operations import Transaction, write
from modules.storage.statements import Statement
from modules.store_common.values import JsonText

__all__ = ["common_fields", "enqueue_alike"]

_SHARED = tuple(name for name in FIELDS if name not in ("id", "payload", "schedule_id", "scheduled_for"))
_STORED = tuple(name for name in _SHARED if name not in ("run_at", "delay_us"))
_INSERT = (
    f"INSERT INTO atlas_jobs ({', '.join(_STORED)}, id, payload, run_at, parked, attempts, fence, version,"
    " cancel_requested, created_at, updated_at)"
)
_GIVEN = ", ".join(f":{name}" for name in _STORED)
_COUNT = bindparam("count", type_=PARAMETERS["count"])

# Due one microsecond after the other, the last of them now: so they are claimed in their order.
_ALIKE = Statement(
    postgresql=text(
        f"{_INSERT} SELECT {_GIVEN.replace(':options', 'CAST(:options AS json)')}, g.id, CAST(g.payload AS json),"
        " coalesce(:run_at, statement_timestamp() + (:delay_us + g.n - :count) * interval '1 microsecond'),"
        " 0, 0, 0, 1, 0, statement_timestamp(), statement_timestamp()"
        " FROM unnest(:ids, :payloads) WITH ORDINALITY AS g (id, payload, n)"
    ).bindparams(
        *binds(*_SHARED),
        _COUNT,
        bindparam("ids", type_=ARRAY(Text())),
        bindparam("payloads", type_=ARRAY(Text())),
    ),
    sqlite=text(
        f"{_INSERT} SELECT {_GIVEN}, json_extract(g.value, '$[0]'), json_extract(g.value, '$[1]'),"
        f" coalesce(:run_at, {NOW['sqlite']} + :delay_us), 0, 0, 0, 1, 0, {NOW['sqlite']}, {NOW['sqlite']}"
        " FROM json_each(:rows) AS g"
    ).bindparams(*binds(*_SHARED), bindparam("rows", type_=Text())),
)


def common_fields(tenant_id: str, jobs: Sequence[NewJob]) -> Optional[Dict[str, Any]]:
    """Return the fields that all of `jobs` share; None when they differ in more than their payload, or have keys."""
    first = jobs[0]
    if type(first) is not NewJob or first.name is not None or first.task_ids != ():
        return None
    if first.idempotency_key is not None or first.unique_key is not None or first.unique_window_s is not None:
        return None
    model = _all_but_payload(first)
    if any(type(job) is not NewJob or _all_but_payload(job) != model for job in jobs):
        return None
    fields = {**job_fields(first), "tenant_id": tenant_id}
    return {name: fields[name] for name in _SHARED}


def _all_but_payload(job: NewJob) -> Any:
    return (
        job.handler, job.queue, job.priority, job.run_at, job.delay_s, job.draft, job.retry, job.timeout_s, job.name,
        job.idempotency_key, job.unique_key, job.unique_window_s, job.concurrency_key, job.concurrency_limit,
        job.keep_result_s, job.task_ids,
    )  # fmt: skip


@write
async def enqueue_alike(
    tx: Transaction, shared: Dict[str, Any], ids: List[str], payloads: List[JsonText]
) -> None:
    """Insert jobs, all or none."""
    for start in range(0, len(ids), MAX_BATCH):
        part = slice(start, start + MAX_BATCH)
        if tx.dialect == "postgresql":
            await tx.run(_ALIKE, count=len(ids[part]), ids=ids[part], payloads=payloads[part], **shared)
        else:
            rows = orjson.dumps([(i, str(p)) for i, p in zip(ids[part], payloads[part])]).decode()
            await tx.run(_ALIKE, rows=rows, **shared)
