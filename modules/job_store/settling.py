"""How runs end: settled by their worker, or rescued when it is gone. Also heartbeats."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

import orjson

from modules.job_store import settle_statements as sql
from modules.job_store.claim_statements import LOCK_KEYS, RUNNING_OF_KEY
from modules.job_store.errors import JobLeaseLostError
from modules.job_store.limits import check_seconds, decode_options
from modules.job_store.records import ClaimedJob, Outcome, RetryPolicy
from modules.storage.operations import Transaction, read, write
from modules.store_common.backoff import full_jitter
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import JsonText, check_text, encode_json, encode_text

__all__ = [
    "LOST_ERROR",
    "Settled",
    "Settlement",
    "beat",
    "current_claims",
    "rescue",
    "settle_all",
    "settle_keyed",
    "settle_one",
    "settlement",
    "unpark",
    "unpark_waiting",
]

_ERROR_TYPE_BYTES = 255
#: The error of a run whose lease ran out.
LOST_ERROR = encode_json(
    {"type": "JobLeaseLost", "message": "the worker was silent for longer than its lease", "details": None},
    "error",
)


class Settlement(NamedTuple):
    """What becomes of a claimed job, as the statements take it.

    Attributes:
        status: What the job becomes.
        delay_us: Microseconds until it is due again; 0 keeps its time.
        delta: What its attempts change by.
        run_status: How the run ended.
        concurrency_key: Of the job, to let the next one in.
    """

    tenant_id: str
    id: str
    fence: int
    status: str
    delay_us: int
    delta: int
    reason: Optional[str]
    run_status: str
    error: Optional[JsonText]
    result: Optional[JsonText]
    keep_us: Optional[int]
    concurrency_key: Optional[str]


class Settled(NamedTuple):
    """What became of a batch: the status of each job, None for a claim that was lost; queues in which a job came free."""

    statuses: List[Optional[str]]
    freed: Tuple[str, ...]


def settlement(outcome: Outcome) -> Settlement:
    """Return what `outcome` makes of its job, checked.

    Raises:
        InvalidValueError: the result or error breaks the value contract, or the kind is unknown.
    """
    claim = outcome.claim
    if not isinstance(claim, ClaimedJob):
        raise InvalidValueError(f"a claim is the ClaimedJob that claim() gave, not {type(claim).__name__}")
    delay_s = None if outcome.delay_s is None else check_seconds(outcome.delay_s, "delay_s")
    reason = None if outcome.error_message is None else check_text(outcome.error_message, "reason")
    if outcome.kind == "succeeded":
        keep = None if claim.keep_result_s is None else round(claim.keep_result_s * 1_000_000)
        result = encode_json(outcome.result, "the result")
        return _settlement(claim, "succeeded", result=result, keep_us=keep)
    if outcome.kind == "released":
        return _settlement(claim, "scheduled", "released", delay_us=round((delay_s or 0.0) * 1e6), delta=-1)
    if outcome.kind == "cancelled":
        return _settlement(claim, "cancelled", reason=reason)
    if outcome.kind == "failed":
        return _failed(claim, outcome, delay_s)
    raise InvalidValueError("an outcome is succeeded, failed, released or cancelled")


def _settlement(
    claim: ClaimedJob,
    status: str,
    run_status: Optional[str] = None,
    *,
    delay_us: int = 0,
    delta: int = 0,
    reason: Optional[str] = None,
    error: Optional[JsonText] = None,
    result: Optional[JsonText] = None,
    keep_us: Optional[int] = None,
) -> Settlement:
    return Settlement(
        claim.tenant_id, claim.id, claim.fence, status, delay_us, delta, reason, run_status or status, error, result,
        keep_us, claim.concurrency_key,
    )  # fmt: skip


def _failed(claim: ClaimedJob, outcome: Outcome, delay_s: Optional[float]) -> Settlement:
    error_type = check_text(outcome.error_type or "Error", "error_type", max_bytes=_ERROR_TYPE_BYTES)
    message = check_text(outcome.error_message or "", "error_message")
    error = encode_json(
        {"type": error_type, "message": message, "details": outcome.error_details}, "the error"
    )
    given_up = _why_given_up(claim.retry, claim.attempt, error_type, outcome.retry)
    if given_up is not None:
        return _settlement(claim, "failed", reason=given_up, error=error)
    if delay_s is None:
        delay_s = full_jitter(claim.attempt, base_s=claim.retry.base_s, cap_s=claim.retry.cap_s)
    return _settlement(claim, "scheduled", "failed", delay_us=round(delay_s * 1e6), error=error)


def _why_given_up(retry: RetryPolicy, attempt: int, error_type: str, wish: Optional[bool]) -> Optional[str]:
    """Return why a failed job is not tried again, None when it is."""
    if attempt >= retry.max_attempts:
        return f"{error_type}: attempt {attempt} of {retry.max_attempts} was the last"
    if wish is True:
        return None
    if wish is False:
        return f"{error_type}: the handler said not to try again"
    if error_type in retry.give_up_on:
        return f"{error_type}: is not tried again (give_up_on)"
    if retry.retry_on is not None and error_type not in retry.retry_on:
        return f"{error_type}: is not one that is tried again (retry_on)"
    return None


# --- operations ---------------------------------------------------------------------------------------------------


def _arrays(batch: Sequence[Settlement]) -> Dict[str, Any]:
    (tenant_ids, ids, fences, statuses, delays, deltas, reasons, run_statuses, errors, results, keeps, _) = (
        zip(*batch)
    )
    return {
        "tenant_ids": tenant_ids, "ids": ids, "fences": fences, "statuses": statuses, "delays": delays, "deltas": deltas,
        "reasons": [encode_text(reason) for reason in reasons], "run_statuses": run_statuses, "errors": errors,
        "results": results, "keeps": keeps,
    }  # fmt: skip


async def _settle_batch(
    tx: Transaction, calls: Sequence[Tuple[Settlement]]
) -> Sequence[Union[str, BaseException]]:
    statuses = await settle_all(tx, [call[0] for call in calls])
    return [
        JobLeaseLostError(call[0].id, call[0].fence) if status is None else status
        for call, status in zip(calls, statuses)
    ]


def _one_job(item: Settlement) -> Tuple[str, str]:
    return item.tenant_id, item.id


@write(atomic=False, batch=_settle_batch, conflict_key=_one_job)
async def settle_one(tx: Transaction, item: Settlement) -> str:
    """End one run and return what the job became; without a concurrency key.

    Raises:
        JobLeaseLostError: the claim is not the current one.
    """
    status = (await settle_all(tx, [item]))[0]
    if status is None:
        raise JobLeaseLostError(item.id, item.fence)
    return status


@write(atomic=False)
async def settle_all(tx: Transaction, batch: Sequence[Settlement]) -> List[Optional[str]]:
    """End runs and return what each job became; None for a claim that was lost."""
    statuses: List[Optional[str]] = [None] * len(batch)
    if tx.dialect == "postgresql":
        for n, status in await tx.all(sql.SETTLE, **_arrays(batch)):
            statuses[n - 1] = status
        return statuses
    rows = orjson.dumps([_row(item) for item in batch]).decode()
    await tx.run(sql.KEEP_RUNS, rows=rows)
    found = {row[:2]: row[2] for row in await tx.all(sql.SETTLE_ROWS, rows=rows)}
    return [found.get((item.tenant_id, item.id)) for item in batch]


def _row(item: Settlement) -> Tuple[Any, ...]:
    """Return the values of `settle_statements._ROW_NAMES`; plain text, as orjson takes no subclass of str."""
    return (
        item.tenant_id, item.id, item.fence, item.status, item.delay_us, item.delta, encode_text(item.reason),
        item.run_status, None if item.error is None else str(item.error),
        None if item.result is None else str(item.result), item.keep_us,
    )  # fmt: skip


@write
async def settle_keyed(tx: Transaction, batch: Sequence[Settlement]) -> Settled:
    """End runs, and let in the next job of each concurrency key that came free."""
    statuses = await settle_all(tx, batch)
    return Settled(statuses, await _free(tx, batch))


async def _free(tx: Transaction, batch: Iterable[Settlement]) -> Tuple[str, ...]:
    keys = sorted({(s.tenant_id, s.concurrency_key) for s in batch if s.concurrency_key is not None})
    return await unpark(tx, keys)


async def unpark(tx: Transaction, keys: Sequence[Tuple[str, str]]) -> Tuple[str, ...]:
    """Let the first parked job of each key be claimed; return the queues of those. `keys` are sorted."""
    if not keys:
        return ()
    if tx.dialect == "postgresql":
        await tx.all(LOCK_KEYS, names=[f"{tenant_id}\n{key}" for tenant_id, key in keys])
    freed: Dict[str, None] = {}
    for tenant_id, key in keys:
        row = await tx.first(sql.UNPARK, tenant_id=tenant_id, concurrency_key=key)
        if row is not None:
            freed[row[0]] = None
    return tuple(freed)


@write
async def unpark_waiting(
    tx: Transaction, after: Tuple[str, str], limit: int
) -> Tuple[Optional[Tuple[str, str]], Tuple[str, ...]]:
    """Look at the next `limit` keys with parked jobs, and let one in where none runs: mends what a crash may leave.

    Returns:
        Where to go on, None at the end; the queues in which a job came free.
    """
    idle: List[Tuple[str, str]] = []
    position: Optional[Tuple[str, str]] = after
    for _ in range(limit):
        row = await tx.first(sql.PARKED_KEYS, tenant_id=position[0], concurrency_key=position[1])  # type: ignore[index]
        if row is None:
            position = None
            break
        position = (row[0], row[1])
        running = await tx.one(RUNNING_OF_KEY, tenant_id=row[0], concurrency_key=row[1])
        if running[0] == 0:
            idle.append(position)
    return position, await unpark(tx, idle)


@write
async def rescue(tx: Transaction, limit: int) -> Tuple[List[Tuple[str, str, str]], Tuple[str, ...]]:
    """End the runs whose lease ran out: their jobs are tried again, or have failed when that was the last attempt.

    Returns:
        Tenant, id and new status of each job; the queues in which jobs came free.
    """
    lost: List[Settlement] = []
    queues: Dict[str, None] = {}
    for tenant_id, job_id, fence, attempts, most, options, key, queue in await tx.all(
        sql.EXPIRED, limit=limit
    ):
        retry = decode_options(options, most).retry
        last = attempts >= most
        delay_s = 0.0 if last else full_jitter(attempts, base_s=retry.base_s, cap_s=retry.cap_s)
        reason = f"JobLeaseLost: attempt {attempts} of {most} was the last" if last else None
        status, delay_us = ("failed", 0) if last else ("scheduled", round(delay_s * 1e6))
        lost.append(
            Settlement(
                tenant_id, job_id, fence, status, delay_us, 0, reason, "lost", LOST_ERROR, None, None, key
            )
        )
        queues[queue] = None
    if not lost:
        return [], ()
    statuses = await settle_all(tx, lost)
    freed = await _free(tx, lost)
    ended = [(s.tenant_id, s.id, status) for s, status in zip(lost, statuses) if status is not None]
    return ended, tuple(dict.fromkeys((*queues, *freed)))


@write(atomic=False)
async def beat(
    tx: Transaction, claims: Sequence[Tuple[str, str, int]], lease_us: int
) -> List[Optional[Tuple[int, Any]]]:
    """Extend the leases of claims (tenant, id, fence); for each whether it is to be cancelled, and its new end."""
    found: List[Optional[Tuple[int, Any]]] = [None] * len(claims)
    if tx.dialect == "postgresql":
        tenant_ids, ids, fences = zip(*claims)
        for n, cancel, until in await tx.all(
            sql.BEAT, tenant_ids=tenant_ids, ids=ids, fences=fences, lease_us=lease_us
        ):
            found[n - 1] = (cancel, until)
        return found
    for n, (tenant_id, job_id, fence) in enumerate(claims):
        row = await tx.first(sql.BEAT, tenant_id=tenant_id, id=job_id, fence=fence, lease_us=lease_us)
        if row is not None:
            found[n] = (row[1], row[2])
    return found


@read
async def current_claims(tx: Transaction, claims: Sequence[Tuple[str, str, int]]) -> List[Optional[int]]:
    """Return for each claim (tenant, id, fence) whether it is to be cancelled (1); None when it was lost."""
    found: List[Optional[int]] = [None] * len(claims)
    if tx.dialect == "postgresql":
        tenant_ids, ids, fences = zip(*claims)
        for n, cancel in await tx.all(sql.CANCEL_REQUESTED, tenant_ids=tenant_ids, ids=ids, fences=fences):
            found[n - 1] = cancel
        return found
    for n, (tenant_id, job_id, fence) in enumerate(claims):
        row = await tx.first(sql.CANCEL_REQUESTED, tenant_id=tenant_id, id=job_id, fence=fence)
        if row is not None:
            found[n] = row[1]
    return found
