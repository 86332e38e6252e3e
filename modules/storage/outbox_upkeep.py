"""Looking at the outbox and keeping it small: figures, lists, parked keys, renewed claims, purges."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Dict, List, Optional, Sequence

from modules.storage.operations import Transaction, read, write
from modules.storage.outbox_queue import EMBEDDING_PREFIX, OutboxEntry, OutboxKey
from modules.storage.outbox_statements import (
    DISCARD,
    DUE,
    LIST,
    PURGE,
    REDRIVE,
    RENEW,
    SHOW,
    STATS,
)

__all__ = [
    "OutboxRecord",
    "OutboxStats",
    "TargetStats",
    "discard",
    "due_in",
    "list_records",
    "purge_done",
    "redrive",
    "renew",
    "show",
    "stats",
]


@dataclass(frozen=True)
class OutboxRecord:
    """A key in the outbox, for people.

    Attributes:
        tenant_id: Whose.
        target: Where it goes.
        kind: What kind of thing.
        key: Which one.
        state: pending, parked or done.
        version: Newest change.
        applied: Newest change that the target has.
        attempts: Failures since the last success.
        fence: How often it was claimed.
        staged_at: Since when it is dirty.
        available_at: When it is tried next; while it is being applied: when its claim ends.
        claimed_by: Which relay holds it.
        error: Why the last attempt failed.
        payload: JSON text that was staged with it.
    """

    tenant_id: str
    target: str
    kind: str
    key: str
    state: str
    version: int
    applied: int
    attempts: int
    fence: int
    staged_at: datetime
    available_at: datetime
    claimed_by: Optional[str]
    error: Optional[str]
    payload: Optional[str]

    @property
    def address(self) -> OutboxKey:
        """Tenant, target, kind and key."""
        return self.tenant_id, self.target, self.kind, self.key

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {
            **self.__dict__,
            "staged_at": self.staged_at.isoformat(),
            "available_at": self.available_at.isoformat(),
        }


@dataclass(frozen=True)
class TargetStats:
    """What waits for one target.

    Attributes:
        pending: Dirty keys that are tried.
        parked: Dirty keys that wait for somebody to look.
        lag_s: Age of the oldest pending one, in seconds; 0 when there is none.
    """

    pending: int = 0
    parked: int = 0
    lag_s: float = 0.0


@dataclass(frozen=True)
class OutboxStats:
    """What waits, by target (subscribers are targets too).

    The sums are those of deliveries: messages that wait to be embedded are a target of their own here, but filling an index
    with old ones takes as long as it takes, and is judged by the health of the vector store.
    """

    targets: Dict[str, TargetStats]

    @property
    def deliveries(self) -> List[TargetStats]:
        """Of each target but the indexes of meaning."""
        return [found for name, found in self.targets.items() if not name.startswith(EMBEDDING_PREFIX)]

    @property
    def pending(self) -> int:
        """Dirty keys that are tried, of all deliveries."""
        return sum(target.pending for target in self.deliveries)

    @property
    def parked(self) -> int:
        """Dirty keys that are parked, of all deliveries."""
        return sum(target.parked for target in self.deliveries)

    @property
    def lag_s(self) -> float:
        """Age of the oldest pending delivery, in seconds."""
        return max((target.lag_s for target in self.deliveries), default=0.0)

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {
            "pending": self.pending,
            "parked": self.parked,
            "lag_s": round(self.lag_s, 3),
            "targets": {name: dict(target.__dict__) for name, target in self.targets.items()},
        }


def _named(address: OutboxKey) -> Dict[str, Any]:
    return dict(zip(("tenant_id", "target", "kind", "key"), address))


def _record(row: Any) -> OutboxRecord:
    tenant_id, target, kind, key, version, applied, attempts, fence, staged_at, payload, *rest = row
    state, available_at, claimed_by, error = rest
    return OutboxRecord(
        tenant_id, target, kind, key, state, version, applied, attempts, fence, staged_at,
        available_at, claimed_by, error, payload,
    )  # fmt: skip


@read(urgent=True)
async def stats(tx: Transaction) -> OutboxStats:
    """Count what waits, by target; clean keys are not looked at."""
    found: Dict[str, Dict[str, Any]] = {}
    for target, state, count, oldest, clock in await tx.all(STATS):
        figures = found.setdefault(target, {})
        figures[state] = count
        if state == "pending":
            figures["lag_s"] = max(0.0, (clock - oldest).total_seconds())
    return OutboxStats({target: TargetStats(**figures) for target, figures in found.items()})


@read
async def due_in(tx: Transaction, target: str) -> Optional[float]:
    """Return in how many seconds the next key of a target is due (0 or less: now), None when none waits."""
    row = await tx.one(DUE, target=target)
    return None if row[0] is None else float((row[0] - row[1]).total_seconds())


@read
async def show(tx: Transaction, address: OutboxKey) -> Optional[OutboxRecord]:
    """Return one key, None when the outbox does not know it (any more)."""
    row = await tx.first(SHOW, **_named(address))
    return None if row is None else _record(row)


@read
async def list_records(
    tx: Transaction, state: str, target: str, after: OutboxKey, limit: int
) -> List[OutboxRecord]:
    """Return the next keys in a state by tenant, target, kind and key; `target` "" means all."""
    rows = await tx.all(
        LIST,
        state=state,
        target=target,
        tenant_id=after[0],
        after_target=after[1],
        kind=after[2],
        key=after[3],
        limit=limit,
    )
    return [_record(row) for row in rows]


@write
async def redrive(tx: Transaction, keys: Sequence[OutboxKey]) -> int:
    """Have parked keys tried again from the first attempt; returns how many there were."""
    return sum([await tx.run(REDRIVE, **_named(key)) for key in sorted(keys)])


@write
async def discard(tx: Transaction, keys: Sequence[OutboxKey]) -> int:
    """Give keys up: what is staged for them will not be applied; returns how many there were."""
    return sum([await tx.run(DISCARD, **_named(key)) for key in sorted(keys)])


@write
async def renew(tx: Transaction, entries: Sequence[OutboxEntry], lease_s: float) -> None:
    """Keep claims for `lease_s` seconds more; one that was lost stays lost."""
    await tx.run_many(
        RENEW,
        [
            {**_named(entry.address), "fence": entry.fence, "claim": entry.claim, "seconds": lease_s}
            for entry in sorted(entries, key=lambda item: item.address)
        ],
    )


@write(atomic=False)
async def purge_done(tx: Transaction, older_than_s: float, limit: int) -> int:
    """Remove up to `limit` keys that have been clean for longer; returns how many."""
    return await tx.run(PURGE, seconds=-older_than_s, limit=limit)
