"""Reconciliation: compares the home of what was staged with each target, says what differs, and has it repaired.

Both sides are read in the order of their ids, a page at a time, so memory does not grow with what is compared. How far it
has come is kept after every page: a run that broke off is taken up again. Repair marks keys dirty; a relay does the rest, so
that a repair is as safe as any other delivery. A target that lost everything is thereby rebuilt.

Keys with a delivery under way are left out: they are about to change.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, replace
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from sqlalchemy import BigInteger, String, Text, bindparam, text

from modules.storage.operations import Executor, Transaction, read, write
from modules.storage.outbox_queue import OutboxKey, stage_many
from modules.storage.outbox_statements import SHOW
from modules.storage.outbox_targets import DocumentWriter, FoundDocument, Target
from modules.storage.staged_documents import (
    DocumentKey,
    StagedDocument,
    collections,
    following,
    namespaces,
    outbox_key,
    put,
    tombstone,
)
from modules.storage.statements import Statement
from modules.store_common.deadlines import within
from modules.store_common.errors import NotConfiguredError, UnavailableError
from modules.store_common.values import decode_json, encode_json

__all__ = ["Difference", "OnDifference", "OnProgress", "Reconciliation", "Report"]

_PAGE = 500
# What one page of a target may take, in seconds.
_SCAN_TIMEOUT_S = 60.0

_THIS = bindparam("target", type_=String())
_LOAD = Statement(
    text("SELECT progress FROM atlas_reconciliations WHERE target = :target")
    .bindparams(_THIS)
    .columns(progress=Text)
)
_SAVE_TEXT = (
    "INSERT INTO atlas_reconciliations (target, progress, updated_at) VALUES (:target, :progress, {now})"
    " ON CONFLICT (target) DO UPDATE SET progress = excluded.progress, updated_at = excluded.updated_at"
)
_SAVED = (_THIS, bindparam("progress", type_=Text()))
_SAVE = Statement(
    sqlite=text(_SAVE_TEXT.format(now="(CAST(strftime('%s', 'now') AS INTEGER) * 1000000)")).bindparams(
        *_SAVED
    ),
    postgresql=text(_SAVE_TEXT.format(now="statement_timestamp()")).bindparams(*_SAVED),
)
_FORGET = Statement(text("DELETE FROM atlas_reconciliations WHERE target = :target").bindparams(_THIS))
_COUNT = Statement(
    text("SELECT count(*) AS n FROM atlas_staged WHERE target = :target AND id <> ''")
    .bindparams(_THIS)
    .columns(n=BigInteger)
)


@dataclass(frozen=True)
class Difference:
    """A document that is not in its target as it ought to be.

    Attributes:
        kind: missing (not there), stale (other contents), undead (there, but deleted at home), extra (unknown at home).
        key: Which one.
        version: Of the home row; 0 for an extra one.
    """

    kind: str
    key: DocumentKey
    version: int


@dataclass(frozen=True)
class Report:
    """What a comparison found.

    Attributes:
        compared: Home rows and extra documents looked at.
        equal: As they ought to be.
        missing: Not in the target.
        stale: There with other contents.
        undead: There although deleted at home.
        extra: There and unknown at home: written past the units of work, or left over.
        pending: Left out because a delivery is under way.
        repaired: Marked for delivery.
        done: Whether the comparison came to its end.
    """

    compared: int = 0
    equal: int = 0
    missing: int = 0
    stale: int = 0
    undead: int = 0
    extra: int = 0
    pending: int = 0
    repaired: int = 0
    done: bool = False

    @property
    def differences(self) -> int:
        """How many documents are not as they ought to be."""
        return self.missing + self.stale + self.undead + self.extra


#: Called after each page with the report so far; for a progress bar.
OnProgress = Callable[[Report], Any]
OnDifference = Callable[[Difference], Any]


@read
async def _load(tx: Transaction, target: str) -> Optional[str]:
    row = await tx.first(_LOAD, target=target)
    return None if row is None else row[0]


@write
async def _save(tx: Transaction, target: str, progress: Optional[str]) -> None:
    if progress is None:
        await tx.run(_FORGET, target=target)
    else:
        await tx.run(_SAVE, target=target, progress=progress)


@read
async def _count(tx: Transaction, target: str) -> int:
    count: int = (await tx.one(_COUNT, target=target))[0]
    return count


@read
async def _under_way(tx: Transaction, keys: Sequence[OutboxKey]) -> List[bool]:
    found = []
    for tenant_id, target, kind, key in keys:
        row = await tx.first(SHOW, tenant_id=tenant_id, target=target, kind=kind, key=key)
        found.append(row is not None and row[10] != "done")
    return found


@write
async def _bury(tx: Transaction, keys: Sequence[DocumentKey]) -> None:
    """Make tombstones of documents that home does not know, unless it has come to know them meanwhile."""
    await put(tx, [tombstone(key) for key in keys])


class Reconciliation:
    """Compares one target with its home.

    Args:
        executor: Of the SQL database.
        target: One with a `writer`.
        repair: Have missing, stale and undead documents delivered again.
        prune: Have extra documents deleted.
        on_difference: Called for each difference.

    Raises:
        NotConfiguredError: the target keeps nothing that can be compared.
    """

    def __init__(
        self,
        executor: Executor,
        target: Target,
        *,
        repair: bool = False,
        prune: bool = False,
        on_difference: Optional[OnDifference] = None,
    ) -> None:
        if target.writer is None:
            raise NotConfiguredError(
                f"the target {target.name!r} was registered with an apply function only, so it cannot be compared"
            )
        self._executor = executor
        self._name = target.name
        self._writer: DocumentWriter = target.writer()
        self._repair = repair
        self._prune = prune
        self._on_progress: Optional[OnProgress] = None
        self._on_difference = on_difference
        self._report = Report()
        self._place: Tuple[str, str, str, str, bool] = ("", "", "", "", False)

    def on_progress(self, listener: OnProgress) -> None:
        """Have `listener(report)` called after each page."""
        self._on_progress = listener

    async def count(self) -> int:
        """Return how many documents home has for the target, tombstones too."""
        return await self._executor.run(_count, self._name)

    async def run(self, *, resume: bool = True) -> Report:
        """Compare everything; goes on where a former run of the same kind broke off, unless told not to.

        Raises:
            UnavailableError: the target does not answer; run it again to go on.
        """
        saved = await self._executor.run(_load, self._name) if resume else None
        if saved is not None:
            progress: Dict[str, Any] = decode_json(saved)
            if progress["kind"] == self._kind:
                self._place = tuple(progress["place"])
                self._report = Report(**progress["report"])
        tenant_id, collection, namespace, after_id, finished = self._place
        if collection:
            if not finished:
                await self._namespace(tenant_id, collection, namespace, after_id)
            await self._collection(tenant_id, collection, namespace)
        while True:
            page = await self._executor.run(collections, self._name, (tenant_id, collection), 1)
            if not page:
                break
            tenant_id, collection = page[0]
            await self._collection(tenant_id, collection, "")
        await self._executor.run(_save, self._name, None)
        return replace(self._report, done=True)

    @property
    def _kind(self) -> List[bool]:
        return [self._repair, self._prune]

    async def _collection(self, tenant_id: str, collection: str, namespace: str) -> None:
        """Compare the namespaces after `namespace`."""
        while True:
            page = await self._executor.run(namespaces, tenant_id, self._name, collection, namespace, 1)
            if not page:
                return
            namespace = page[0]
            await self._namespace(tenant_id, collection, namespace, "")

    async def _namespace(self, tenant_id: str, collection: str, namespace: str, after_id: str) -> None:
        """Walk both sides in the order of the ids; each step takes what both have read up to."""
        while True:
            home = await self._executor.run(
                following, tenant_id, self._name, collection, namespace, after_id, _PAGE
            )
            there = await self._scan(tenant_id, collection, namespace, after_id)
            ends = [page[-1] for page in (_ids(home), _ids(there)) if len(page) == _PAGE]
            upto = min(ends) if ends else None
            await self._compare(
                (tenant_id, self._name, collection, namespace), _upto(home, upto), _upto(there, upto)
            )
            after_id = after_id if upto is None else upto
            await self._keep((tenant_id, collection, namespace, after_id, upto is None))
            if upto is None:
                return

    async def _scan(
        self, tenant_id: str, collection: str, namespace: str, after_id: str
    ) -> List[FoundDocument]:
        try:
            return await within(
                self._writer.scan(tenant_id, collection, namespace, after_id, _PAGE), _SCAN_TIMEOUT_S
            )
        except asyncio.TimeoutError as exc:
            raise UnavailableError(
                f"the target {self._name} did not list its documents within {_SCAN_TIMEOUT_S:g} s; run it again to go on"
            ) from exc

    async def _compare(
        self, place: Tuple[str, str, str, str], home: List[StagedDocument], there: List[FoundDocument]
    ) -> None:
        digests = {found.id: found.digest for found in there}
        wrong: List[Difference] = []
        equal = 0
        for staged in home:
            digest = digests.pop(staged.key[4], None)
            kind = _difference(staged, digest)
            if kind is None:
                equal += 1
            else:
                wrong.append(Difference(kind, staged.key, staged.version))
        wrong += [Difference("extra", (*place, id_), 0) for id_ in digests]
        wrong.sort(key=lambda difference: difference.key)
        busy = await self._executor.run(_under_way, [outbox_key(item.key) for item in wrong])
        real = [item for item, under_way in zip(wrong, busy) if not under_way]
        repaired = await self._mend(real)
        self._count_page(equal, real, sum(busy), repaired)

    def _count_page(self, equal: int, real: List[Difference], pending: int, repaired: int) -> None:
        counts = {kind: sum(item.kind == kind for item in real) for kind in _KINDS}
        before = self._report
        self._report = Report(
            compared=before.compared + equal + len(real) + pending,
            equal=before.equal + equal,
            pending=before.pending + pending,
            repaired=before.repaired + repaired,
            **{kind: getattr(before, kind) + count for kind, count in counts.items()},
        )
        for difference in real:
            if self._on_difference is not None:
                self._on_difference(difference)
        if self._on_progress is not None:
            self._on_progress(self._report)

    async def _mend(self, wrong: List[Difference]) -> int:
        again = [item.key for item in wrong if self._repair and item.kind != "extra"]
        gone = [item.key for item in wrong if self._prune and item.kind == "extra"]
        if gone:
            await self._executor.run(_bury, gone)
        keys = sorted(outbox_key(key) for key in [*again, *gone])
        if keys:
            await self._executor.run(stage_many, [(key, None) for key in keys])
        return len(keys)

    async def _keep(self, place: Tuple[str, str, str, str, bool]) -> None:
        progress = {"kind": self._kind, "place": list(place), "report": asdict(self._report)}
        await self._executor.run(_save, self._name, encode_json(progress, "the progress"))


_KINDS = ("missing", "stale", "undead", "extra")


def _difference(staged: StagedDocument, digest: Optional[str]) -> Optional[str]:
    if staged.deleted:
        return None if digest is None else "undead"
    if digest is None:
        return "missing"
    return None if digest == staged.digest else "stale"


def _ids(page: Sequence[Any]) -> List[str]:
    return [item.key[4] if isinstance(item, StagedDocument) else item.id for item in page]


def _upto(page: List[Any], last: Optional[str]) -> List[Any]:
    return [item for item, id_ in zip(page, _ids(page)) if last is None or id_ <= last]
