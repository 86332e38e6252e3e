"""What a handler may raise to say how to go on, and what the orchestration raises itself.

StorageError
  OrchestrationError             parent of those below
    HandlerNotFoundError         also LookupError: no handler of that name is registered
    HandlerNameTakenError        a name was registered twice
    HandlersNotLoadedError       a module of handlers could not be imported, or registers none
    JobTimeoutError              the run took longer than its job allows
    JobStoppedError              raised by `JobContext.raise_if_stopped` in a run that is to stop
    RetryJobError                raised by a handler: try again, after a wait of its choice
    GiveUpJobError               raised by a handler: do not try again
"""

from __future__ import annotations

from typing import Optional

from modules.store_common.errors import StorageError

__all__ = [
    "GiveUpJobError",
    "HandlerNameTakenError",
    "HandlerNotFoundError",
    "HandlersNotLoadedError",
    "JobStoppedError",
    "JobTimeoutError",
    "OrchestrationError",
    "RetryJobError",
]


class OrchestrationError(StorageError):
    """Parent of the orchestration's own errors."""


class HandlerNotFoundError(OrchestrationError, LookupError):
    """No handler of that name is registered with this worker."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"this worker has no handler {self.name!r}; import the module that registers it, or give it a queue of its own"


class HandlerNameTakenError(OrchestrationError):
    """Two functions were registered under one name."""


class HandlersNotLoadedError(OrchestrationError):
    """A module of handlers could not be imported, or registers none."""


class JobTimeoutError(OrchestrationError, TimeoutError):
    """The run took longer than its job allows."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"the run took longer than its {self.timeout_s:g} s"


class JobStoppedError(OrchestrationError):
    """The run is to stop; `reason` says why (see `JobContext.stop_reason`)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the run is to stop: {self.reason}"


class RetryJobError(OrchestrationError):
    """Raised by a handler: this attempt failed, try again.

    Args:
        message: Why; kept with the run.
        delay_s: Seconds to wait; None: what the job's retry policy says.
    """

    def __init__(self, message: str, delay_s: Optional[float] = None) -> None:
        super().__init__(message, delay_s)
        self.delay_s = delay_s

    def __str__(self) -> str:
        return str(self.args[0])


class GiveUpJobError(OrchestrationError):
    """Raised by a handler: another attempt cannot help. The job is failed for good, with this message."""
