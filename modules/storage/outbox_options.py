"""How a relay works, and what it counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Tuple

from modules.storage.outbox_queue import MAX_ATTEMPTS

__all__ = ["Counters", "RelayOptions"]


@dataclass(frozen=True)
class RelayOptions:
    """How a relay works.

    Attributes:
        poll_s: Seconds between two looks for what other processes staged.
        apply_timeout_s: Deadline of one apply, in seconds.
        max_attempts: Failures in a row after which a key is parked; those of a target that is away do not park.
        concurrency: Applies of one target at once, not counting slow ones.
        max_in_flight: Applies of one target at once, slow ones and all.
        slow_after_s: An apply gives its place to another after so many seconds.
        lease_s: A relay that died loses its keys after so many seconds.
        keep_done_s: Rows of keys that are clean are removed after so many seconds.
        keep_keys_s: Keys of units are forgotten after so many seconds; 0 keeps them.
    """

    poll_s: float = 1.0
    apply_timeout_s: float = 10.0
    max_attempts: int = MAX_ATTEMPTS
    concurrency: int = 64
    max_in_flight: int = 1024
    slow_after_s: float = 0.25
    lease_s: float = 3.0
    keep_done_s: float = 3600.0
    keep_keys_s: float = 30 * 86400.0


class Counters:
    """What relays and units of this process have done, by event and target; for metrics.

    Events: staged (units that staged something), applied, failed, parked (attempts that were the last), lost (leases).
    """

    def __init__(self) -> None:
        self.events: Counter[Tuple[str, str]] = Counter()

    def add(self, event: str, target: str, count: int = 1) -> None:
        """Count an event."""
        self.events[event, target] += count

    def total(self, event: str) -> int:
        """Return the count of an event over all targets."""
        return sum(count for (name, _), count in self.events.items() if name == event)
