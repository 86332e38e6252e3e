"""What a unit of work has staged: collected while it runs, written to the outbox just before COMMIT, followed after it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Optional, Protocol, Tuple

from modules.storage.operations import Transaction, read
from modules.storage.outbox_queue import OutboxKey, stage_many
from modules.storage.outbox_statements import APPLIED
from modules.storage.unit_contracts import UnitOfWorkError
from modules.store_common.errors import DeadlineExceededError
from modules.store_common.values import check_identifier, encode_json

if TYPE_CHECKING:
    from modules.storage.operations import Executor
    from modules.storage.unit_contracts import OpenTransaction

__all__ = ["OutboxLink", "Staging"]

# `applied` looks this often when no relay of this process says that something was applied, in seconds.
_LOOK_EVERY_S = 0.05


class OutboxLink(Protocol):
    """What a unit needs of the outbox beside the tables."""

    def committed(self, targets: Iterable[str]) -> None:
        """Told after COMMIT which targets have something new."""
        ...

    async def wait_for_progress(self, timeout_s: float) -> None:
        """Return when a relay of this process has applied something, or after `timeout_s` seconds."""
        ...


@read
async def _states(tx: Transaction, keys: List[OutboxKey]) -> List[Optional[Tuple[int, str]]]:
    found: List[Any] = []
    for tenant_id, target, kind, key in keys:
        found.append(await tx.first(APPLIED, tenant_id=tenant_id, target=target, kind=kind, key=key))
    return found


class Staging:
    """The dirty keys of one unit.

    Args:
        executor: The pool's, to look after COMMIT whether they were applied.
        link: The outbox; None where there is no relay to tell.
    """

    def __init__(self, executor: Executor, link: Optional[OutboxLink] = None) -> None:
        self._executor = executor
        self._link = link
        self._payloads: Dict[OutboxKey, Optional[str]] = {}
        self._versions: Dict[OutboxKey, int] = {}

    def add(self, address: OutboxKey, payload: Optional[str] = None) -> None:
        """Have a key marked dirty in the unit's transaction; of several payloads the last one counts."""
        self._payloads[address] = payload

    def add_checked(self, tenant_id: str, target: str, kind: str, key: str, payload: Any) -> None:
        """Do the same with arguments of a caller; `payload` is a JSON value or None."""
        address = (
            tenant_id,
            check_identifier(target, "the target"),
            check_identifier(kind, "the kind"),
            check_identifier(key, "the key"),
        )
        self.add(address, None if payload is None else encode_json(payload, "the payload"))

    async def write(self, open_transaction: Callable[[], OpenTransaction]) -> None:
        """Write the keys to the outbox, in their order, so that two units never wait for each other in a circle."""
        if not self._payloads:
            return
        entries = sorted(self._payloads.items())
        versions = await open_transaction().run(stage_many, (entries,), {})
        self._versions = dict(zip((address for address, _ in entries), versions))

    def committed(self) -> None:
        """Tell the relay, if there is one in this process."""
        if self._versions and self._link is not None:
            self._link.committed({target for _, target, _, _ in self._versions})

    async def applied(self, timeout_s: float) -> None:
        """Return when every target has what was staged.

        Raises:
            DeadlineExceededError: not within `timeout_s` seconds; it goes on all the same.
            UnitOfWorkError: a key is parked: somebody has to look.
        """
        end = time.monotonic() + timeout_s
        waiting = dict(self._versions)
        while True:
            keys = list(waiting)
            for key, state in zip(keys, await self._executor.run(_states, keys) if keys else ()):
                if state is None or state[0] >= waiting[key]:
                    del waiting[key]
                elif state[1] == "parked":
                    raise UnitOfWorkError(
                        f"{key[1]} refused what was staged for it too often, and it is parked; "
                        "see: atlas-storage outbox list --parked"
                    )
            left = end - time.monotonic()
            if not waiting:
                return
            if left <= 0:
                raise DeadlineExceededError(
                    f"{len(waiting)} of {len(self._versions)} staged changes were not applied within {timeout_s:g} s; "
                    "they stay in the outbox and will be (is a relay running?)"
                )
            if self._link is None:
                await asyncio.sleep(min(_LOOK_EVERY_S, left))
            else:
                await self._link.wait_for_progress(min(_LOOK_EVERY_S, left))
