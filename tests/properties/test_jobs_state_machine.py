"""P28 for the job store: random calls of callers and workers, on a real database and on a plain model, come out the same.

Workers claim, crash (say nothing more), come back stale, fail, release; callers enqueue, cancel, run again, move, delete;
leases end when the machine says so, by putting the database's column back: nothing sleeps.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from typing import Any, Awaitable, Dict, Iterator, List, Optional, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from modules.job_store.errors import JobLeaseLostError, JobNameTakenError, JobTransitionError
from modules.job_store.models import may_become
from modules.job_store.queue import JobQueue
from modules.job_store.records import ClaimedJob, Outcome, RetryPolicy
from modules.storage.manager import StorageManager
from modules.store_common.ids import new_id
from tests.support import backends as support
from tests.support.jobs import executor_of_jobs, let_leases_expire

backend = support.backend

R = TypeVar("R")
_RUNS = int(os.environ.get("ATLAS_TEST_STATE_MACHINE_RUNS", "15"))
_FINAL = ("succeeded", "failed", "cancelled")
_ATTEMPTS = 3
_LIMITS = {"k1": 1, "k2": 2}

_queues = st.sampled_from(["a", "b"])
_priorities = st.sampled_from([-1, 0, 0, 5])
_names = st.sampled_from([None, None, "n1", "n2"])
_keys = st.sampled_from([None, None, None, "k1", "k2"])
_picks = st.integers(0, 10_000)


@dataclass
class Held:
    """What the model knows of a job."""

    id: str
    queue: str
    priority: int
    name: Optional[str]
    key: Optional[str]
    order: int
    status: str = "scheduled"
    attempts: int = 0
    fence: int = 0
    expired: bool = False
    cancel: bool = False
    runs: List[str] = field(default_factory=list)


class _World:
    """The storage and the loop on which the machine talks to it."""

    def __init__(self, settings_: Any) -> None:
        self.loop = asyncio.new_event_loop()
        # leases are rescued when the machine says so, not when a round of upkeep falls
        self.storage = StorageManager(settings_, background=False)
        self.run(self.storage.initialize())

    def run(self, call: Awaitable[R]) -> R:
        return self.loop.run_until_complete(call)  # type: ignore[arg-type]

    def close(self) -> None:
        self.run(self.storage.shutdown())
        self.loop.close()


def _machine(world: _World) -> Any:
    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.tenant = new_id()
            self.jobs = world.storage.jobs
            self.queue = JobQueue(executor_of_jobs(world.storage), tenant_id=self.tenant)
            self.queue._rescued_at = float("inf")
            self.model: Dict[str, Held] = {}
            self.claims: List[ClaimedJob] = []
            self.stale: List[ClaimedJob] = []
            self.turn = 0

        def pick(self, number: int, *statuses: str) -> Optional[Held]:
            found = [held for held in self.model.values() if not statuses or held.status in statuses]
            return found[number % len(found)] if found else None

        def next_order(self) -> int:
            self.turn += 1
            return self.turn

        def name_is_free(self, held: Held) -> bool:
            return held.name is None or not any(
                other.name == held.name and other.status not in _FINAL and other is not held
                for other in self.model.values()
            )

        @rule(queue=_queues, priority=_priorities, name=_names, key=_keys)
        def enqueue(self, queue: str, priority: int, name: Optional[str], key: Optional[str]) -> None:
            held = Held("", queue, priority, name, key, self.next_order())
            call = self.jobs.enqueue(
                "h", queue=queue, priority=priority, name=name, retry=RetryPolicy(_ATTEMPTS, 0.0), concurrency_key=key,
                concurrency_limit=_LIMITS.get(key or "", 1), tenant_id=self.tenant,
            )  # fmt: skip
            if not self.name_is_free(held):
                with pytest.raises(JobNameTakenError):
                    world.run(call)
                return
            held.id = world.run(call)
            self.model[held.id] = held

        @rule(limit=st.integers(1, 4), queues=st.sampled_from([["a"], ["b"], ["a", "b"]]))
        def claim(self, limit: int, queues: List[str]) -> None:
            claims = world.run(self.queue.claim("w", queues, limit=limit))
            running = {
                key: sum(h.status == "running" and h.key == key for h in self.model.values())
                for key in _LIMITS
            }
            due = sorted(
                (h for h in self.model.values() if h.status == "scheduled" and h.queue in queues),
                key=lambda h: -h.priority,
            )
            free = [h for h in due if h.key is None]
            got = [self.model[c.id] for c in claims]
            assert len({h.id for h in got}) == len(got) <= limit
            assert all(h in due for h in got)
            assert [h.priority for h in got] == sorted((h.priority for h in got), reverse=True)
            for held in got:
                if held.key is not None:
                    running[held.key] += 1
                    assert running[held.key] <= _LIMITS[held.key]
            # what needs no key is never passed over, and of it the best come first
            mine = [h.priority for h in got if h.key is None]
            assert mine == [h.priority for h in free][: len(mine)]
            if len(got) < limit:
                assert len(mine) == len(free)
            for claimed, held in zip(claims, got):
                held.status, held.expired, held.cancel = "running", False, False
                held.attempts += 1
                held.fence += 1
                assert (claimed.fence, claimed.attempt) == (held.fence, held.attempts)
                self.claims.append(claimed)

        def end(self, held: Held, status: str, run: str) -> None:
            if held.cancel and status != "succeeded":
                status = run = "cancelled"
            held.status = status
            held.runs.append(run)

        def is_current(self, claimed: ClaimedJob) -> bool:
            held = self.model.get(claimed.id)
            return held is not None and held.status == "running" and held.fence == claimed.fence

        @rule(number=_picks, kind=st.sampled_from(["succeeded", "failed", "released", "cancelled", "fatal"]))
        def settle(self, number: int, kind: str) -> None:
            if not self.claims:
                return
            claimed = self.claims.pop(number % len(self.claims))
            retry = False if kind == "fatal" else None
            outcome = Outcome(
                claimed, "failed" if kind == "fatal" else kind, error_type="E", retry=retry, delay_s=0.0
            )
            lost = world.run(self.queue.settle([outcome]))
            if not self.is_current(claimed):
                assert lost == [claimed]
                return
            assert lost == []
            self.stale.append(claimed)
            held = self.model[claimed.id]
            if kind == "released":
                held.attempts -= 1
                self.end(held, "scheduled", "released")
            elif kind in ("failed", "fatal"):
                again = kind == "failed" and held.attempts < _ATTEMPTS
                self.end(held, "scheduled" if again else "failed", "failed")
            else:
                self.end(held, kind, kind)

        @rule(number=_picks)
        def a_stale_worker_is_refused(self, number: int) -> None:
            if self.stale:
                claimed = self.stale[number % len(self.stale)]
                for call in (
                    self.queue.complete(claimed),
                    self.queue.heartbeat([claimed]),
                    self.queue.log(claimed, "x"),
                ):
                    with pytest.raises(JobLeaseLostError):
                        world.run(call)

        @rule()
        def every_worker_is_silent(self) -> None:
            world.run(let_leases_expire(world.storage))
            for held in self.model.values():
                held.expired = held.expired or held.status == "running"

        @rule(number=_picks)
        def heartbeat(self, number: int) -> None:
            if not self.claims:
                return
            claimed = self.claims[number % len(self.claims)]
            if self.is_current(claimed):
                beat = world.run(self.queue.heartbeat([claimed]))
                held = self.model[claimed.id]
                held.expired = False
                assert bool(beat.cancelled) is held.cancel

        @rule()
        def rescue(self) -> None:
            expected = [h for h in self.model.values() if h.status == "running" and h.expired]
            while world.run(self.queue.rescue_expired()):
                pass
            for held in expected:
                self.end(held, "failed" if held.attempts >= _ATTEMPTS else "scheduled", "lost")

        @rule(number=_picks)
        def cancel(self, number: int) -> None:
            held = self.pick(number)
            if held is None:
                return
            call = self.jobs.cancel(held.id, tenant_id=self.tenant)
            if not may_become(held.status, "cancelled"):
                with pytest.raises(JobTransitionError):
                    world.run(call)
                return
            world.run(call)
            if held.status == "running":
                held.cancel = True
            else:
                held.status = "cancelled"

        @rule(number=_picks, wanted=st.sampled_from(["rerun", "draft", "schedule", "delete"]))
        def move(self, number: int, wanted: str) -> None:
            held = self.pick(number)
            if held is None:
                return
            if wanted == "delete":
                self.delete(held)
                return
            allowed = {"rerun": _FINAL, "draft": ("scheduled",), "schedule": ("draft",)}[wanted]
            method = {"rerun": self.jobs.rerun, "draft": self.jobs.to_draft, "schedule": self.jobs.schedule}[
                wanted
            ]
            call = method(held.id, tenant_id=self.tenant)
            if held.status not in allowed:
                with pytest.raises(JobTransitionError):
                    world.run(call)
            elif wanted == "rerun" and not self.name_is_free(held):
                with pytest.raises(JobNameTakenError):
                    world.run(call)
            else:
                world.run(call)
                held.status = "draft" if wanted == "draft" else "scheduled"
                held.attempts = 0 if wanted == "rerun" else held.attempts

        def delete(self, held: Held) -> None:
            call = self.jobs.delete(held.id, tenant_id=self.tenant)
            if held.status == "running":
                with pytest.raises(JobTransitionError):
                    world.run(call)
                return
            assert world.run(call) is True
            del self.model[held.id]
            self.stale = [claimed for claimed in self.stale if claimed.id != held.id]

        @invariant()
        def the_same_jobs(self) -> None:
            found = world.run(self.jobs.list_jobs(limit=1000, tenant_id=self.tenant))
            seen = {j.id: (j.status, j.attempts, j.runs, j.name) for j in found}
            assert seen == {h.id: (h.status, h.attempts, h.fence, h.name) for h in self.model.values()}

        @rule(number=_picks)
        def the_same_runs(self, number: int) -> None:
            held = self.pick(number)
            if held is not None:
                runs = world.run(self.jobs.list_runs(held.id, tenant_id=self.tenant))
                ended = [run.status for run in runs if run.status != "running"][::-1]
                assert ended == held.runs

        def teardown(self) -> None:
            """Nothing is stuck: what is scheduled can be claimed, whatever keys did."""
            for _ in range(3 * len(self.model) + 3):
                world.run(let_leases_expire(world.storage))
                world.run(self.queue.rescue_expired())
                claims = world.run(self.queue.claim("last", ["a", "b"], limit=50))
                world.run(self.queue.settle([Outcome(c, "succeeded") for c in claims]))
            counts = world.run(self.jobs.counts(tenant_id=self.tenant))
            assert counts["scheduled"] == counts["running"] == 0

    return Machine


@pytest.fixture
def world(migrated_settings: Any) -> Iterator[_World]:
    made = _World(migrated_settings)
    yield made
    made.close()


def test_the_store_behaves_like_the_model(world: _World, backend: str) -> None:
    runs = support.sized(backend, _RUNS, min(_RUNS, 5))
    run_state_machine_as_test(
        _machine(world), settings=settings(max_examples=runs, stateful_step_count=40, deadline=None)
    )
