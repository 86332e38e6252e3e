"""`JobStore`: the public face of the job store, put together from its rooms."""

from __future__ import annotations

from modules.job_store.enqueue import Enqueue

__all__ = ["JobStore"]


class JobStore(Enqueue):
    """Jobs of one tenant at a time: enqueue, read, change, schedule. Workers use `JobQueue`."""
