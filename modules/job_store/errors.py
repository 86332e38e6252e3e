"""What the job store raises on purpose.

StorageError
  JobError                       parent of those below that belong to nothing more general
    JobTransitionError           also ConcurrencyError: the job's status does not allow the move; names both
    JobLeaseLostError            also ConcurrencyError: the claim is not the job's current one any more
  JobNotFoundError               also NotFoundError (LookupError)
  JobNameTakenError              also AlreadyExistsError: a job of that name is not final yet
  ScheduleNotFoundError          also NotFoundError (LookupError)
  ScheduleNameTakenError         also AlreadyExistsError
  JobLeaseTooShortError          also InvalidValueError: jobs would be rescued while they still run
"""

from __future__ import annotations

from typing import Optional

from modules.store_common.errors import (
    AlreadyExistsError,
    ConcurrencyError,
    InvalidValueError,
    NotFoundError,
    StorageError,
)

__all__ = [
    "JobError",
    "JobLeaseLostError",
    "JobLeaseTooShortError",
    "JobNameTakenError",
    "JobNotFoundError",
    "JobTransitionError",
    "ScheduleNameTakenError",
    "ScheduleNotFoundError",
]


class JobError(StorageError):
    """Parent of the job store's own errors."""


class JobNotFoundError(NotFoundError):
    """The job does not exist for this tenant."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"there is no job {self.job_id!r}"


class ScheduleNotFoundError(NotFoundError):
    """The schedule does not exist for this tenant."""

    def __init__(self, schedule_id: str) -> None:
        super().__init__(schedule_id)
        self.schedule_id = schedule_id

    def __str__(self) -> str:
        return f"there is no schedule {self.schedule_id!r}"


class JobNameTakenError(AlreadyExistsError):
    """Another job of that name is draft, scheduled or running."""

    def __init__(self, name: Optional[str] = None) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        which = "of that name" if self.name is None else f"named {self.name!r}"
        return f"a job {which} is not finished yet; wait for it, cancel it, or give another name or none"


class ScheduleNameTakenError(AlreadyExistsError):
    """Another schedule has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"there is a schedule named {self.name!r} already"


class JobTransitionError(JobError, ConcurrencyError):
    """The job's status does not allow the move; nothing was changed.

    Attributes:
        job_id: The job.
        status: What it is.
        wanted: What it was to become.
    """

    def __init__(self, job_id: str, status: str, wanted: str) -> None:
        super().__init__(job_id, status, wanted)  # type: ignore[arg-type]
        self.args = (job_id, status, wanted)
        self.job_id = job_id
        self.status = status
        self.wanted = wanted

    def __str__(self) -> str:
        return f"job {self.job_id!r} is {self.status} and cannot become {self.wanted}"


class JobLeaseLostError(JobError, ConcurrencyError):
    """The claim is not the job's current one: its lease ran out, or the job was taken away. The write was refused.

    Attributes:
        job_id: The job.
        fence: Number of the claim that was lost.
    """

    def __init__(self, job_id: str, fence: int = 0) -> None:
        super().__init__(job_id, fence)
        self.args = (job_id, fence)
        self.job_id = job_id
        self.fence = fence

    def __str__(self) -> str:
        return f"claim {self.fence} of job {self.job_id!r} is not its current one; another worker may have it: stop this run"


class JobLeaseTooShortError(JobError, InvalidValueError):
    """With these settings a job would be taken for lost, and started again, while it still runs."""
