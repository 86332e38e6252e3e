"""What must hold of a unit of work over two stores, whatever happened; every fault test of the outbox asks this."""

from __future__ import annotations

from typing import Any, Dict, Optional

__all__ = ["ABSENT", "PRESENT", "assert_whole"]

#: All of the unit, and nothing of it: `outbox_zygote.Pair.facts`.
PRESENT = {"messages": ["hello"], "counter": 1, "target": {"a": "new"}}
ABSENT = {"messages": [], "counter": None, "target": {"a": "old", "b": "old"}}


def assert_whole(facts: Dict[str, Any], where: str, *, applied: Optional[bool] = None) -> bool:
    """Fail unless the unit is wholly applied or wholly absent in both stores and nothing waits; returns which.

    Args:
        facts: What both stores hold.
        where: For the message.
        applied: What it has to be, where that is known: the caller was told.
    """
    seen = {name: facts[name] for name in PRESENT}
    assert seen in (PRESENT, ABSENT), f"{where}: half a unit of work: {facts}"
    assert (facts["pending"], facts["parked"]) == (0, 0), f"{where}: something waits for ever: {facts}"
    is_applied = seen == PRESENT
    assert applied is None or is_applied == applied, (
        f"{where}: told applied={applied}, found {is_applied}: {facts}"
    )
    return is_applied
