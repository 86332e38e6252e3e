"""`JobQueue`: what workers and schedulers call, over all tenants or narrowed to one."""

from __future__ import annotations

import time
from typing import Any, List, Optional, Sequence, Tuple

from modules.job_store.base import Wake
from modules.job_store.claims import Wanted, claim
from modules.job_store.errors import JobLeaseLostError
from modules.job_store.limits import (
    DEFAULT_LEASE_S,
    MAX_BATCH,
    check_count,
    check_lease,
    check_names,
)
from modules.job_store.records import ClaimedJob, Heartbeat, Outcome
from modules.job_store.settling import (
    Settlement,
    beat,
    current_claims,
    rescue,
    settle_all,
    settle_keyed,
    settle_one,
    settlement,
)
from modules.job_store.upkeep import QueueUpkeep
from modules.job_store.waiting import next_due_in
from modules.storage.operations import Executor
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier

__all__ = ["JobQueue"]

# A claim first looks for expired leases, at most this often in a process, in seconds.
_RESCUE_EVERY_S = 1.0


class JobQueue(QueueUpkeep):
    """Hands out jobs and takes back what became of them.

    Args:
        executor: A pool's executor.
        wake: Wakes the workers that wait on a channel.
        tenant_id: Only jobs of this tenant; None: of all.
    """

    def __init__(
        self, executor: Executor, *, wake: Optional[Wake] = None, tenant_id: Optional[str] = None
    ) -> None:
        super().__init__(executor, wake=wake, tenant_id=tenant_id)
        self._rescued_at = float("-inf")

    async def claim(
        self,
        worker: str,
        queues: Sequence[str] = ("default",),
        *,
        limit: int = 1,
        lease_s: float = DEFAULT_LEASE_S,
    ) -> List[ClaimedJob]:
        """Claim due jobs: each goes to one worker, by priority (highest first), then by time.

        Args:
            worker: The worker's name.
            queues: Where from, 1 to 1,000; a queue with a limit of its own comes after the others.
            limit: 1 to 1,000.
            lease_s: Seconds until a job whose worker is silent goes to another; see `LeasePolicy`.

        Returns:
            Up to `limit` jobs, best first; none when nothing is due.
        """
        check_identifier(worker, "worker")
        wanted = Wanted(
            worker, check_names(queues, "queues"), check_count(limit), round(check_lease(lease_s) * 1e6), self._tenant_id
        )  # fmt: skip
        if time.monotonic() - self._rescued_at >= _RESCUE_EVERY_S:
            self._rescued_at = time.monotonic()
            await self.rescue_expired()
        return await claim(self._executor, wanted)

    async def heartbeat(self, claims: Sequence[ClaimedJob], *, lease_s: float = DEFAULT_LEASE_S) -> Heartbeat:
        """Extend the leases of `claims`, from now, and say which are to be cancelled and which are lost.

        Raises:
            JobLeaseLostError: one claim was given and it is lost. Of several, look at `Heartbeat.lost`.
        """
        batch = _claims(claims)
        if not batch:
            return Heartbeat((), (), ())
        found = await self._executor.run(beat, _keys(batch), round(check_lease(lease_s) * 1e6))
        kept = tuple(c for c, state in zip(batch, found) if state is not None)
        cancelled = tuple(c for c, state in zip(batch, found) if state is not None and state[0])
        lost = tuple(c for c, state in zip(batch, found) if state is None)
        if lost and len(batch) == 1:
            raise JobLeaseLostError(lost[0].id, lost[0].fence)
        return Heartbeat(kept, cancelled, lost)

    async def cancellations(self, claims: Sequence[ClaimedJob]) -> List[ClaimedJob]:
        """Return those of `claims` that are to stop: somebody asked for it, or they are lost. Changes nothing."""
        batch = _claims(claims)
        if not batch:
            return []
        found = await self._executor.run(current_claims, _keys(batch))
        return [c for c, state in zip(batch, found) if state is None or state]

    async def complete(self, claim: ClaimedJob, result: Any = None) -> str:
        """Say that a claimed job has succeeded, with its result (JSON); return what it became.

        Raises:
            JobLeaseLostError: the claim is not the job's current one; nothing was changed.
        """
        return await self._settle_one(Outcome(claim, "succeeded", result=result))

    async def fail(
        self,
        claim: ClaimedJob,
        error_type: str,
        message: str = "",
        *,
        details: Any = None,
        retry: Optional[bool] = None,
        delay_s: Optional[float] = None,
    ) -> str:
        """Say that a claimed job has failed; return what it became: "scheduled" for another attempt, or "failed".

        Args:
            claim: What `claim` gave.
            error_type: Name of the error; the job's `RetryPolicy` decides by it.
            message: For people.
            details: JSON value, for example a traceback.
            retry: False: never try again; True: whatever the policy says of the error; None: as the policy says.
            delay_s: Seconds until the next attempt; None: exponential back-off with full jitter.

        Raises:
            JobLeaseLostError: the claim is not the job's current one; nothing was changed.
        """
        return await self._settle_one(
            Outcome(claim, "failed", None, error_type, message, details, retry, delay_s)
        )

    async def release(self, claim: ClaimedJob, *, delay_s: float = 0.0) -> str:
        """Give a claimed job back unfinished: the attempt does not count, and it is due again after `delay_s` seconds."""
        return await self._settle_one(Outcome(claim, "released", delay_s=delay_s))

    async def settle(self, outcomes: Sequence[Outcome]) -> List[ClaimedJob]:
        """Say how claimed jobs ended, up to 1,000 in one statement.

        Returns:
            The claims that were lost: what they did does not count. All others were settled.
        """
        statuses = await self.settle_to(outcomes)
        return [outcome.claim for outcome, status in zip(outcomes, statuses) if status is None]

    async def settle_to(self, outcomes: Sequence[Outcome]) -> List[Optional[str]]:
        """Do as `settle`, and return what each job became; None for a claim that was lost."""
        if isinstance(outcomes, Outcome) or len(outcomes) > MAX_BATCH:
            raise InvalidValueError(f"outcomes must be a sequence of at most {MAX_BATCH:,} Outcome")
        batch = [settlement(outcome) for outcome in outcomes]
        self._check_scope(batch)
        if not batch:
            return []
        if len({(item.tenant_id, item.id) for item in batch}) < len(batch):
            raise InvalidValueError("a job is settled twice in one call")
        if any(item.concurrency_key is not None for item in batch):
            statuses, freed = await self._executor.run(settle_keyed, batch)
            self._announce(freed)
        else:
            statuses = await self._executor.run(settle_all, batch)
        self._announce(
            outcome.claim.queue for outcome, status in zip(outcomes, statuses) if status == "scheduled"
        )
        return list(statuses)

    async def next_due_in(self, queues: Sequence[str] = ("default",)) -> Optional[float]:
        """Return in how many seconds there may be something to claim: a job is due, or a lease runs out; None: never.

        By the database's clock; 0 or less: now. What is paused or waits for its key does not count.
        """
        return await self._executor.run(next_due_in, check_names(queues, "queues"), self._tenant_id)

    async def rescue_expired(self, limit: int = 100) -> int:
        """End the runs whose lease ran out, so that their jobs run again; return how many. `claim` does it by itself."""
        ended, queues = await self._executor.run(rescue, check_count(limit))
        self._announce(queues)
        return len(ended)

    async def _settle_one(self, outcome: Outcome) -> str:
        item = settlement(outcome)
        self._check_scope([item])
        if item.concurrency_key is not None:
            statuses, freed = await self._executor.run(settle_keyed, [item])
            if statuses[0] is None:
                raise JobLeaseLostError(item.id, item.fence)
            self._announce(freed)
            return str(statuses[0])
        status = await self._executor.run(settle_one, item)
        if status == "scheduled":
            self._announce((outcome.claim.queue,))
        return status

    def _check_scope(self, batch: Sequence[Settlement]) -> None:
        if self._tenant_id is None:
            return
        for item in batch:
            if item.tenant_id != self._tenant_id:
                raise JobLeaseLostError(item.id, item.fence)


def _claims(claims: Sequence[ClaimedJob]) -> List[ClaimedJob]:
    if isinstance(claims, ClaimedJob):
        return [claims]
    if not isinstance(claims, Sequence) or len(claims) > MAX_BATCH:
        raise InvalidValueError(f"claims must be a sequence of at most {MAX_BATCH:,} ClaimedJob")
    for claimed in claims:
        if not isinstance(claimed, ClaimedJob):
            raise InvalidValueError(f"a claim is a ClaimedJob, not {type(claimed).__name__}")
    return list(claims)


def _keys(claims: Sequence[ClaimedJob]) -> List[Tuple[str, str, int]]:
    return [(claimed.tenant_id, claimed.id, claimed.fence) for claimed in claims]
