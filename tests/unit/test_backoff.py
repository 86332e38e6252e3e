"""Back-off with full jitter: its bounds."""

from __future__ import annotations

from modules.store_common.backoff import full_jitter


def test_the_bound_doubles_up_to_the_cap_and_all_of_the_range_is_used() -> None:
    for attempt, bound in ((1, 0.5), (2, 1.0), (3, 2.0), (4, 3.0), (10**6, 3.0)):
        waits = [full_jitter(attempt, base_s=0.5, cap_s=3.0) for _ in range(400)]

        assert 0.0 <= min(waits) < bound * 0.2
        assert bound * 0.8 < max(waits) <= bound
