"""The job store in MongoDB: what is behind a job.

Runs that ended and events are first in its own document, with the change that made them, and are moved to their own
collections later: by the next claim, or when there are many.

Moving is: add what is not there yet (keys decide), then take it out of the job if nothing came to it meanwhile. So a process
that dies between leaves some in both places, and readers take each once.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from modules.job_store.mongo_documents import EVENTS, JOBS, RUNS, instant, json_or_none
from modules.job_store.records import JobRun
from modules.storage.documents import Document, Documents, key_of

__all__ = ["move_trail", "run_document", "run_of", "runs_before", "runs_since"]

# An event more makes the document move all of them.
_MOST_EVENTS = 50


def run_document(job: Document, number: int, status: str, now: int, **fields: Any) -> Document:
    """Return the document of a run that ended."""
    return {"n": number, "a": job["at"], "st": status, "w": job["w"], "sa": job["sa"], "fa": now, **fields}


def run_of(job_id: str, run: Document) -> JobRun:
    """Return the record of a run."""
    return JobRun(
        job_id, run["n"], run["a"], run["st"], run["w"], instant(run["sa"]), instant(run["fa"]),
        json_or_none(run.get("err")), json_or_none(run.get("res")),
    )  # fmt: skip


async def move_trail(db: Documents, jobs: Sequence[Document], *, most_events: int = _MOST_EVENTS) -> None:
    """Move the runs of `jobs`, and their events where they are many, to their own collections."""
    full = [job for job in jobs if job["er"] or len(job["ev"]) > most_events]
    if not full:
        return
    runs = [(job, run) for job in full for run in job["er"]]
    events = [(job, event) for job in full for event in job["ev"]]
    if runs:
        await db.upsert_each(RUNS, [_added(job, run, run["n"]) for job, run in runs])
    if events:
        await db.upsert_each(EVENTS, [_added(job, event, event["id"]) for job, event in events])
    changes: List[Tuple[Document, Document]] = [
        (
            {"_id": job["_id"], "rv": job["rv"]},
            {"$set": {"er": [], "ev": []}, "$inc": {"rv": 1}, "$unset": {"rt": ""}},
        )
        for job in full
    ]
    await db.update_each(JOBS, changes)


def _added(job: Document, part: Document, place: Any) -> Tuple[Document, Document]:
    where = {"_id": key_of(job["t"], job["id"], place)}
    return where, {"$setOnInsert": {"t": job["t"], "j": job["id"], **part}}


async def runs_before(db: Documents, job: Document, before: int, limit: int) -> List[Document]:
    """Return the runs of a job with a lower number, the newest first; one under way, too."""
    kept = await db.find(
        RUNS, {"t": job["t"], "j": job["id"], "n": {"$lt": before}}, sort=[("n", -1)], limit=limit
    )
    found: Dict[int, Document] = {run["n"]: run for run in (*job["er"], *kept) if run["n"] < before}
    under_way = _under_way(job)
    if under_way is not None and under_way["n"] < before:
        found[under_way["n"]] = under_way
    return [found[number] for number in sorted(found, reverse=True)][:limit]


async def runs_since(db: Documents, job: Document, at: int, limit: int) -> List[Document]:
    """Return the runs of a job that ended at `at` or later, the oldest first, and the one under way."""
    kept = await db.find(
        RUNS, {"t": job["t"], "j": job["id"], "fa": {"$gte": at}}, sort=[("n", 1)], limit=limit
    )
    found: Dict[int, Document] = {run["n"]: run for run in (*job["er"], *kept)}
    under_way = _under_way(job)
    if under_way is not None:
        found[under_way["n"]] = under_way
    return [found[number] for number in sorted(found)]


def _under_way(job: Document) -> Optional[Document]:
    if job["st"] != "running":
        return None
    return {**run_document(job, job["f"], "running", 0, err=None, res=None), "fa": None}
