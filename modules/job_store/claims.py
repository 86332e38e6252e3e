"""Claiming: each due job goes to one worker, by priority then time, within the limits of keys and queues."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import orjson

from modules.job_store import claim_statements as sql
from modules.job_store.limits import decode_options
from modules.job_store.records import ClaimedJob
from modules.storage.operations import Transaction, write
from modules.storage.statements import Row

__all__ = ["Wanted", "claim", "claim_in_turn", "claim_keyed", "claim_limited", "claim_plain", "claimed_job"]

# Rounds of parking blocked jobs and looking again, in one claim: each parks up to `limit` jobs.
_ROUNDS = 10
_ABOVE_EVERY_PRIORITY = 32_767


@dataclass(frozen=True)
class Wanted:
    """What a worker asks for.

    Attributes:
        worker: Its name.
        queues: Where from.
        limit: How many jobs at most.
        lease_us: For how long, in microseconds.
        tenant_id: Of one tenant only; None: of all.
    """

    worker: str
    queues: Tuple[str, ...]
    limit: int
    lease_us: int
    tenant_id: Optional[str] = None

    @property
    def scope(self) -> Dict[str, str]:
        """The parameter of the tenant, if there is one."""
        return {} if self.tenant_id is None else {"tenant_id": self.tenant_id}


def claimed_job(row: Row) -> ClaimedJob:
    """Return the claim that stands in a row of `CLAIM` and `CLAIM_ROWS`."""
    (tenant_id, job_id, fence, handler, payload, name, queue, priority, attempts, max_attempts, options, run_at,
     started_at, lease_until, key, schedule_id, scheduled_for) = row  # fmt: skip
    decoded = decode_options(options, max_attempts)
    return ClaimedJob(
        tenant_id, job_id, fence, handler, payload, name, queue, priority, attempts, decoded.retry, decoded.timeout_s,
        run_at, started_at, lease_until, key, decoded.keep_result_s, schedule_id, scheduled_for,
    )  # fmt: skip


def _in_order(rows: Sequence[Row]) -> List[ClaimedJob]:
    jobs = [claimed_job(row) for row in rows]
    if len(jobs) > 1:
        jobs.sort(key=lambda job: (-job.priority, job.run_at, job.id))
    return jobs


async def claim(executor: Any, wanted: Wanted) -> List[ClaimedJob]:
    """Claim up to `wanted.limit` due jobs, best first."""
    if executor.dialect in ("sqlite", "mongodb"):
        return _in_order(await executor.run(claim_in_turn, wanted))
    rows = await executor.run(claim_plain, wanted)
    told = [row[6] for row in rows if row[1] is None]
    if not told:
        return _in_order(rows)
    rows = [row for row in rows if row[1] is not None]
    if None in told and len(rows) < wanted.limit:
        rows += await executor.run(claim_keyed, wanted, wanted.limit - len(rows))
    limited = [queue for queue in wanted.queues if queue in told]
    if limited and len(rows) < wanted.limit:
        rows += await executor.run(claim_limited, wanted, limited, wanted.limit - len(rows))
    return _in_order(rows)


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


@write(atomic=False)
async def claim_plain(tx: Transaction, wanted: Wanted) -> List[Row]:
    """Claim what needs no look at other rows; rows without an id tell of what was left (`claim_statements`)."""
    return await tx.all(
        sql.CLAIM if wanted.tenant_id is None else sql.CLAIM_TENANT,
        queues=list(wanted.queues),
        limit=wanted.limit,
        lease_us=wanted.lease_us,
        worker=wanted.worker,
        **wanted.scope,
    )


@write
async def claim_keyed(tx: Transaction, wanted: Wanted, limit: int) -> List[Row]:
    """Claim the first jobs, those with a concurrency key while it has room, and park those whose key has none."""
    return await _claim_rounds(tx, wanted, list(wanted.queues), limit, with_limits=False)


@write
async def claim_limited(tx: Transaction, wanted: Wanted, queues: List[str], limit: int) -> List[Row]:
    """Claim from queues with a limit, as many as it allows; others that claim from them wait meanwhile."""
    rows: List[Row] = []
    for name, tokens in await tx.all(sql.LIMITED, queues=queues):
        allowed = limit - len(rows) if tokens is None else min(limit - len(rows), int(tokens))
        if allowed < 1:
            continue
        taken = await _claim_rounds(tx, wanted, [name], allowed, with_limits=True)
        if taken and tokens is not None:
            await tx.run(sql.TAKE_TOKENS, name=name, count=len(taken))
        rows += taken
    return rows


async def _claim_rounds(
    tx: Transaction, wanted: Wanted, queues: List[str], limit: int, *, with_limits: bool
) -> List[Row]:
    """Look, claim what may run, park what may not, and look again until enough is claimed or nothing is left."""
    statement = sql.KEYED if wanted.tenant_id is None else sql.KEYED_TENANT
    rows: List[Row] = []
    for _ in range(_ROUNDS):
        found = await tx.all(
            statement, queues=queues, limit=limit - len(rows), with_limits=with_limits, **wanted.scope
        )
        allowed, parked = await _sort_out(tx, found)
        if allowed:
            rows += await tx.all(
                sql.CLAIM_ROWS,
                tenants=[tenant_id for tenant_id, _ in allowed],
                ids=[job_id for _, job_id in allowed],
                lease_us=wanted.lease_us,
                worker=wanted.worker,
            )
        if not parked or len(rows) >= limit:
            break
    return rows


async def _sort_out(
    tx: Transaction, found: Sequence[Row]
) -> Tuple[List[Tuple[str, str]], List[Tuple[str, str]]]:
    """Return which of these locked jobs may run, and which were parked, in their order."""
    keys = sorted({(tenant_id, key) for tenant_id, _, key, _ in found if key is not None})
    if keys:
        await tx.all(sql.LOCK_KEYS, names=[f"{tenant_id}\n{key}" for tenant_id, key in keys])
    room = _Room(tx)
    allowed: List[Tuple[str, str]] = []
    parked: List[Tuple[str, str]] = []
    for tenant_id, job_id, key, most in found:
        if key is None or await room.take(tenant_id, key, most):
            allowed.append((tenant_id, job_id))
        else:
            await tx.run(sql.PARK, tenant_id=tenant_id, id=job_id)
            parked.append((tenant_id, job_id))
    return allowed, parked


class _Room:
    """How many jobs of each key run: counted once, then kept count of."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._running: Dict[Tuple[str, str], int] = {}

    async def take(self, tenant_id: str, key: str, most: int) -> bool:
        """Take a place for a job of `key`, of which at most `most` may run; False when there is none."""
        running = self._running.get((tenant_id, key))
        if running is None:
            row = await self._tx.one(sql.RUNNING_OF_KEY, tenant_id=tenant_id, concurrency_key=key)
            running = int(row[0])
        free = running < most
        self._running[tenant_id, key] = running + 1 if free else running
        return free


# --- SQLite -------------------------------------------------------------------------------------------------------


@write
async def claim_in_turn(tx: Transaction, wanted: Wanted) -> List[Row]:
    """Claim in the writer's turn, where nobody else changes anything."""
    asked = orjson.dumps(wanted.queues).decode()
    tokens: Dict[str, Any] = dict(await tx.all(sql.LIMITED, queues=asked))
    room = {
        queue: wanted.limit if tokens.get(queue) is None else int(tokens[queue]) for queue in wanted.queues
    }
    keys = _Room(tx)
    rows: List[Row] = []
    for _ in range(_ROUNDS):
        places: List[int] = []
        parked = False
        for _, place, tenant_id, job_id, key, most in await _heads(
            tx, wanted, room, wanted.limit - len(rows)
        ):
            if key is None or await keys.take(tenant_id, key, most):
                places.append(place)
            else:
                await tx.run(sql.PARK, tenant_id=tenant_id, id=job_id)
                parked = True
        if places:
            found = await tx.all(
                sql.CLAIM_ROWS,
                places=orjson.dumps(places).decode(),
                lease_us=wanted.lease_us,
                worker=wanted.worker,
            )
            rows += found
            await _count_tokens(tx, found, tokens, room)
        if not parked or len(rows) >= wanted.limit:
            break
    return rows


async def _count_tokens(
    tx: Transaction, claimed: Sequence[Row], tokens: Dict[str, Any], room: Dict[str, int]
) -> None:
    for queue, count in Counter(row[6] for row in claimed).items():
        room[queue] -= count
        if tokens.get(queue) is not None:
            await tx.run(sql.TAKE_TOKENS, name=queue, count=count)


async def _heads(tx: Transaction, wanted: Wanted, room: Dict[str, int], limit: int) -> List[Row]:
    """Return the first due jobs over all queues, by priority then time, as many as the queues' limits allow."""
    top = sql.TOP if wanted.tenant_id is None else sql.TOP_TENANT
    heads = sql.HEADS if wanted.tenant_id is None else sql.HEADS_TENANT
    left = {queue: most for queue, most in room.items() if most > 0}
    levels: Dict[str, Optional[int]] = {}
    for queue in left:
        levels[queue] = (await tx.one(top, queue=queue, priority=_ABOVE_EVERY_PRIORITY, **wanted.scope))[0]
    found: List[Row] = []
    while len(found) < limit:
        best = max((level for level in levels.values() if level is not None), default=None)
        if best is None:
            break
        same: List[Row] = []
        for queue in [queue for queue, level in levels.items() if level == best]:
            most = min(limit - len(found), left[queue])
            rows = await tx.all(heads, queue=queue, priority=best, limit=most, **wanted.scope)
            left[queue] -= len(rows)
            same += rows
            levels[queue] = None
            if left[queue] > 0 and len(found) + len(same) < limit:
                levels[queue] = (await tx.one(top, queue=queue, priority=best, **wanted.scope))[0]
        same.sort(key=lambda row: (row[0], row[1]))
        found += same
    return found[:limit]
