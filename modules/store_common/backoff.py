"""How long to wait before something that failed is tried again: exponential back-off with full jitter."""

from __future__ import annotations

import random

__all__ = ["full_jitter"]

# 2**63 seconds are longer than anything; more would overflow a float's exact integers.
_MAX_DOUBLINGS = 63


def full_jitter(attempt: int, *, base_s: float, cap_s: float) -> float:
    """Return seconds to wait after the attempt of that number failed: random between 0 and the bound, which doubles.

    Args:
        attempt: 1 for the first attempt.
        base_s: The bound after the first attempt, in seconds.
        cap_s: The largest bound, in seconds.
    Source:
        M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: "full jitter" does the least work
        of the variants compared, since callers that failed together come back apart.
    """
    bound = min(cap_s, base_s * 2.0 ** min(max(attempt, 1) - 1, _MAX_DOUBLINGS))
    return random.uniform(0.0, bound)  # noqa: S311 - spreads load, protects nothing
