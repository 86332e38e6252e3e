"""Every operation of the job store over documents: what `MongoPool.executor` is given for `JobStore` and `JobQueue`."""

from __future__ import annotations

from modules.job_store import (
    mongo_claims,
    mongo_enqueue,
    mongo_lifecycle,
    mongo_people,
    mongo_reading,
    mongo_schedules,
    mongo_settling,
    mongo_slots,
    mongo_upkeep,
)
from modules.job_store.mongo_documents import FORMS

__all__ = ["JOB_FORMS"]

#: The forms, complete once the rooms above are imported.
JOB_FORMS = FORMS
_ROOMS = (
    mongo_claims,
    mongo_enqueue,
    mongo_lifecycle,
    mongo_people,
    mongo_reading,
    mongo_schedules,
    mongo_settling,
    mongo_slots,
    mongo_upkeep,
)
