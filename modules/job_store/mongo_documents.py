"""The job store in MongoDB: its collections, and how a job stands in a document.

Whatever must change together stands in the job's own document, so that each step is one conditional change of it:

    atlas_jobs      _id tenant, id
        st    status; three more than in SQL, which nobody sees: "staged" (of a batch that is not published yet), "deleted"
              (being removed) and "alias", which is no job (see `aj`)
        f v   fence and version            rv  grows when `er` or `ev` change
        ep    raised by every change by hand: a claim that is under way with an older one fails
        lu    end of the lease, only while it runs
        nk    tenant and name, only while it is not final      ik, ud  idempotency key and digest
        uk uw unique key, and until when it is held though the job is final
        ts as linked tasks; assignments, by the hexadecimal name of the assignee
        er ev runs that ended and events, until they are moved to their own collections
        ht    the place in its concurrency key's slots that its last run took
        ct    the claim that took it last
        aj    only an alias has it, which has no more than t, st, ik and ud besides: the `_id` of the job, of another's
              making, that its idempotency key stands for
    atlas_job_slots _id tenant, concurrency key: who runs (`hs`), and how many (`n`)
    atlas_job_runs, atlas_job_events, atlas_job_logs, atlas_job_schedules, atlas_job_queues, atlas_job_workers
    atlas_job_batches   jobs that go in together and are not all published

JSON stands as text, instants as microseconds by the server's clock as the pool carries it on.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, List, Mapping, Optional

from modules.job_store.encoding import decode_job
from modules.job_store.records import Job
from modules.storage.documents import (
    MAX_DOCUMENT_BYTES,
    Document,
    DocumentForms,
    Documents,
    IndexModel,
    instant,
    key_of,
    micros,
)
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import decode_json, decode_text

__all__ = [
    "ALIAS",
    "BATCHES",
    "DELETED",
    "EVENTS",
    "FORMS",
    "HIDDEN",
    "JOBS",
    "LOGS",
    "QUEUES",
    "RUNS",
    "SCHEDULES",
    "SLOTS",
    "STAGED",
    "WORKERS",
    "claim_row",
    "due_at",
    "find_job",
    "instant",
    "is_visible",
    "job_document",
    "job_of",
    "json_or_none",
    "micros",
    "place_of",
]

JOBS = "atlas_jobs"
RUNS = "atlas_job_runs"
EVENTS = "atlas_job_events"
LOGS = "atlas_job_logs"
SLOTS = "atlas_job_slots"
BATCHES = "atlas_job_batches"
SCHEDULES = "atlas_job_schedules"
QUEUES = "atlas_job_queues"
WORKERS = "atlas_job_workers"

STAGED = "staged"
DELETED = "deleted"
ALIAS = "alias"
#: Statuses of what nobody sees.
HIDDEN = [STAGED, DELETED, ALIAS]

_T = ("t", 1)
_CLAIM = [("st", 1), ("pk", 1), ("q", 1)]
FORMS = DocumentForms(
    "jobs",
    2,
    [JOBS, RUNS, EVENTS, LOGS, SLOTS, BATCHES, SCHEDULES, QUEUES, WORKERS],
    [
        # without a tenant, as in SQL: a worker serves all of them
        IndexModel(JOBS, "ix_claim", [*_CLAIM, ("pr", -1), ("ra", 1)]),
        IndexModel(JOBS, "ix_due", [*_CLAIM, ("ra", 1)]),
        IndexModel(JOBS, "ix_leases", [("lu", 1)], sparse=True),
        IndexModel(JOBS, "ix_results", [("rt", 1)], sparse=True),
        IndexModel(JOBS, "ix_batch", [("b", 1)], sparse=True),
        IndexModel(JOBS, "ix_claim_tenant", [_T, *_CLAIM, ("pr", -1), ("ra", 1)]),
        IndexModel(JOBS, "ix_parked", [_T, ("pk", 1), ("ck", 1), ("pr", -1), ("ra", 1)]),
        IndexModel(JOBS, "ix_status", [_T, ("st", 1), ("id", -1)]),
        IndexModel(JOBS, "ix_name", [_T, ("name", 1), ("id", -1)]),
        IndexModel(JOBS, "ix_tasks", [_T, ("ts", 1), ("id", 1)]),
        # texts of all parts, because only an index on a single field can leave documents without it out
        IndexModel(JOBS, "ix_aliases", [("aj", 1)], sparse=True),
        IndexModel(JOBS, "uq_name", [("nk", 1)], unique=True, sparse=True),
        IndexModel(JOBS, "uq_idempotency", [("ik", 1)], unique=True, sparse=True),
        IndexModel(JOBS, "uq_unique", [("uk", 1)], unique=True, sparse=True),
        IndexModel(RUNS, "ix_job", [_T, ("j", 1), ("n", 1)]),
        IndexModel(RUNS, "ix_results", [("ru", 1)], sparse=True),
        IndexModel(EVENTS, "ix_job", [_T, ("j", 1), ("ca", 1), ("p", 1)]),
        IndexModel(LOGS, "ix_job", [_T, ("j", 1), ("id", 1)]),
        IndexModel(BATCHES, "ix_made", [("at", 1)]),
        IndexModel(SCHEDULES, "uq_name", [_T, ("name", 1)], unique=True),
        IndexModel(SCHEDULES, "ix_due", [("en", 1), ("na", 1)]),
        IndexModel(SCHEDULES, "ix_firing", [("fa", 1)], sparse=True),
        IndexModel(WORKERS, "ix_seen", [("seen", 1)]),
    ],
)


def json_or_none(text: Optional[str]) -> Any:
    """Return the value of a JSON text, None for none."""
    return None if text is None else decode_json(text)


def due_at(run_at: Optional[datetime], delay_us: Optional[int], now: int, kept: Optional[int] = None) -> Any:
    """Return when a job is due: at an instant, so many microseconds from now, or as before."""
    if run_at is not None:
        return micros(run_at)
    return kept if delay_us is None else now + delay_us


def is_visible(found: Optional[Document]) -> bool:
    """Return whether there is a job for everybody."""
    return found is not None and found["st"] not in HIDDEN


async def find_job(
    db: Documents, tenant_id: str, job_id: str, fields: Optional[List[str]] = None
) -> Optional[Document]:
    """Return a job's document, None when there is none."""
    wanted = None if fields is None else ["st", *fields]
    found = await db.find_one(JOBS, {"_id": key_of(tenant_id, job_id)}, fields=wanted)
    return found if is_visible(found) else None


def job_document(fields: Mapping[str, Any], now: int, place: int = 0) -> Document:
    """Return the document of a new job.

    Args:
        fields: What `limits.job_fields` gave, with tenant, id, schedule and nominal time.
        now: The time.
        place: Microseconds by which it is due later than others of its call, so that they keep their order.

    Raises:
        InvalidValueError: it is larger than a document of MongoDB can be.
    """
    payload = str(fields["payload"])
    if len(payload.encode()) > MAX_DOCUMENT_BYTES:
        raise InvalidValueError(
            f"the payload is {len(payload.encode())} bytes long; a document of MongoDB holds at most {MAX_DOCUMENT_BYTES}"
        )
    tenant_id, name = fields["tenant_id"], fields["name"]
    due = micros(fields["run_at"])
    document = {
        "_id": key_of(tenant_id, fields["id"]),
        "t": tenant_id,
        "id": fields["id"],
        "name": name,
        "h": fields["handler"],
        "q": fields["queue"],
        "st": fields["status"],
        "pr": fields["priority"],
        "pk": 0,
        "at": 0,
        "ma": fields["max_attempts"],
        "f": 0,
        "v": 1,
        "rv": 0,
        "ep": 0,
        "cr": 0,
        "ck": fields["concurrency_key"],
        "cl": fields["concurrency_limit"],
        "ra": now + fields["delay_us"] + place if due is None else due,
        "ca": now,
        "ua": now,
        "sa": None,
        "fa": None,
        "w": None,
        "sid": fields["schedule_id"],
        "sf": micros(fields["scheduled_for"]),
        "rs": None,
        "op": None if fields["options"] is None else str(fields["options"]),
        "pg": None,
        "pl": payload,
        "ts": [],
        "as": {},
        "er": [],
        "ev": [],
    }
    if name is not None:
        document["nk"] = key_of(tenant_id, name)
    return document


def job_of(found: Mapping[str, Any]) -> Job:
    """Return the record of a document."""
    return decode_job(
        (
            found["id"], found["name"], found["h"], found["q"], found["st"], found["pr"], decode_json(found["pl"]),
            instant(found["ra"]), found["at"], found["f"], found["v"], found["ma"], found["op"], found["ck"], found["cl"],
            found["pk"], json_or_none(found["pg"]), decode_text(found["rs"]), found["cr"], found["w"],
            instant(found.get("lu")), instant(found["sa"]), instant(found["fa"]), found["sid"], instant(found["sf"]),
            instant(found["ca"]), instant(found["ua"]),
        )
    )  # fmt: skip


def claim_row(found: Mapping[str, Any]) -> Any:
    """Return a claimed document as a row of a claim."""
    return (
        found["t"], found["id"], found["f"], found["h"], decode_json(found["pl"]), found["name"], found["q"], found["pr"],
        found["at"], found["ma"], found["op"], instant(found["ra"]), instant(found["sa"]), instant(found["lu"]),
        found["ck"], found["sid"], instant(found["sf"]),
    )  # fmt: skip


def place_of(fence: int, *, running: bool) -> str:
    """Return where an event stands among the runs: while run `fence` is under way, or after it."""
    return f"{fence:010d}" + ("m" if running else "zz")
