"""What is allowed: the checks of the job store's arguments, and how a new job becomes the values that are stored."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import orjson

from modules.job_store.errors import JobLeaseTooShortError
from modules.job_store.records import Job, NewJob, RetryPolicy, Schedule
from modules.store_common.clock import require_utc
from modules.store_common.errors import ConcurrencyError, InvalidValueError
from modules.store_common.values import JsonText, check_identifier, encode_json

__all__ = [
    "DEFAULT_LEASE_S",
    "MAX_BATCH",
    "LeasePolicy",
    "Options",
    "check_count",
    "check_expected",
    "check_integer",
    "check_lease",
    "check_names",
    "check_priority",
    "check_retry",
    "check_seconds",
    "decode_options",
    "digest_of",
    "encode_options",
    "job_fields",
]

#: Lease of a claim that names none, in seconds.
DEFAULT_LEASE_S = 60.0
#: The most jobs of one claim, one settlement, one part of an enqueue.
MAX_BATCH = 1000

_SHORTEST_LEASE_S = 0.001
_LONGEST_S = 10 * 366 * 86_400.0
_MAX_ATTEMPTS = 1000
_PRIORITIES = range(-100, 101)
# A worker may miss this many heartbeats before its jobs are taken for lost.
_HEARTBEATS_PER_LEASE = 2


def check_seconds(value: Any, where: str, *, least: float = 0.0) -> float:
    """Return `value` as seconds, `least` to ten years."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not least <= value <= _LONGEST_S:
        raise InvalidValueError(f"{where} must be a number of seconds from {least:g} to {_LONGEST_S:g}")
    return float(value)


def check_integer(value: Any, where: str, least: int, most: int) -> int:
    """Return `value` if it is an int from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise InvalidValueError(f"{where} must be an int from {least:,} to {most:,}")
    return value


def check_count(value: Any, where: str = "limit", most: int = MAX_BATCH) -> int:
    """Return `value` if it is an int from 1 to `most`."""
    return check_integer(value, where, 1, most)


def check_priority(value: Any) -> int:
    """Return `value` if it may be a priority: -100 to 100."""
    if type(value) is not int or value not in _PRIORITIES:
        raise InvalidValueError("priority must be an int from -100 to 100; higher is claimed sooner")
    return value


def check_lease(value: Any) -> float:
    """Return `value` if it may be a lease, in seconds."""
    return check_seconds(value, "lease_s", least=_SHORTEST_LEASE_S)


@dataclass(frozen=True)
class LeasePolicy:
    """How long a worker may be silent before its jobs are given to others; refused when that cannot work.

    Attributes:
        lease_s: After so many seconds without a word the job is rescued.
        heartbeat_s: How often the worker sends a heartbeat; None: never.
        timeout_s: The longest that one run of its jobs may take; None: no limit.

    Raises:
        JobLeaseTooShortError: a job would be rescued while it still runs: without heartbeats the lease must be longer
            than the timeout, with heartbeats at least twice their interval.
    """

    lease_s: float = DEFAULT_LEASE_S
    heartbeat_s: Optional[float] = None
    timeout_s: Optional[float] = None

    def __post_init__(self) -> None:
        check_lease(self.lease_s)
        if self.timeout_s is not None:
            check_seconds(self.timeout_s, "timeout_s", least=_SHORTEST_LEASE_S)
        if self.heartbeat_s is not None:
            check_seconds(self.heartbeat_s, "heartbeat_s", least=_SHORTEST_LEASE_S)
            if self.lease_s < _HEARTBEATS_PER_LEASE * self.heartbeat_s:
                raise JobLeaseTooShortError(
                    f"a lease of {self.lease_s:g} s is less than {_HEARTBEATS_PER_LEASE} heartbeats of "
                    f"{self.heartbeat_s:g} s: one late heartbeat would give the job to another worker"
                )
        elif self.timeout_s is None or self.lease_s <= self.timeout_s:
            limit = "no limit" if self.timeout_s is None else f"up to {self.timeout_s:g} s"
            raise JobLeaseTooShortError(
                f"a lease of {self.lease_s:g} s without heartbeats would have jobs rescued while they run ({limit}): "
                "make the lease longer than the timeout, or send heartbeats"
            )


class Options(NamedTuple):
    """What stands in a job's `options`, decoded."""

    retry: RetryPolicy
    timeout_s: Optional[float]
    keep_result_s: Optional[float]


def check_retry(retry: Any) -> RetryPolicy:
    """Return `retry` if it is a policy that can work."""
    if not isinstance(retry, RetryPolicy):
        raise InvalidValueError(f"retry must be a RetryPolicy, not {type(retry).__name__}")
    check_integer(retry.max_attempts, "retry.max_attempts", 1, _MAX_ATTEMPTS)
    check_seconds(retry.base_s, "retry.base_s")
    check_seconds(retry.cap_s, "retry.cap_s")
    for where, names in (("retry.retry_on", retry.retry_on), ("retry.give_up_on", retry.give_up_on)):
        if names is None and where == "retry.retry_on":
            continue
        if not isinstance(names, tuple) or len(names) > 100:
            raise InvalidValueError(f"{where} must be a tuple of at most 100 names of errors")
        for name in names:
            check_identifier(name, f"a name in {where}")
    return retry


@lru_cache(maxsize=1024)
def encode_options(options: Options) -> Optional[JsonText]:
    """Return what stands in the column `options`: only what differs from the defaults; None when nothing does."""
    retry, plain = options.retry, RetryPolicy()
    values: Dict[str, Any] = {}
    if (retry.base_s, retry.cap_s) != (plain.base_s, plain.cap_s):
        values["backoff"] = [float(retry.base_s), float(retry.cap_s)]
    if retry.retry_on is not None:
        values["retry_on"] = list(retry.retry_on)
    if retry.give_up_on:
        values["give_up_on"] = list(retry.give_up_on)
    if options.timeout_s is not None:
        values["timeout_s"] = float(options.timeout_s)
    if options.keep_result_s is not None:
        values["keep_result_s"] = float(options.keep_result_s)
    return encode_json(values, "options") if values else None


@lru_cache(maxsize=1024)
def decode_options(text: Optional[str], max_attempts: int) -> Options:
    """Return what `encode_options` wrote."""
    if text is None:
        return Options(RetryPolicy(max_attempts), None, None)
    values = orjson.loads(text)
    plain = RetryPolicy()
    base_s, cap_s = values.get("backoff", (plain.base_s, plain.cap_s))
    retry_on = values.get("retry_on")
    retry = RetryPolicy(
        max_attempts,
        base_s,
        cap_s,
        None if retry_on is None else tuple(retry_on),
        tuple(values.get("give_up_on", ())),
    )
    return Options(retry, values.get("timeout_s"), values.get("keep_result_s"))


def digest_of(fields: Dict[str, Any], due: Tuple[Any, ...]) -> str:
    """Return a digest of a new job's body: what an idempotency key is bound to."""
    names = ("name", "handler", "queue", "priority", "status", "max_attempts", "concurrency_key")
    body = [fields[name] for name in names] + [fields["options"], str(fields["payload"])]
    text = orjson.dumps([None if v is None else str(v) for v in (*body, *due)])
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def job_fields(job: NewJob) -> Dict[str, Any]:
    """Return the values of `job` as its statements take them, checked; ids and keys apart.

    Raises:
        InvalidValueError: names the field that breaks the contract.
    """
    if not isinstance(job, NewJob):
        raise InvalidValueError(f"a job to enqueue is a NewJob, not {type(job).__name__}")
    check_identifier(job.handler, "handler")
    check_identifier(job.queue, "queue")
    if job.name is not None:
        check_identifier(job.name, "name")
    if job.concurrency_key is not None:
        check_identifier(job.concurrency_key, "concurrency_key")
        check_integer(job.concurrency_limit, "concurrency_limit", 1, 1_000_000)
    run_at = require_utc(job.run_at, "run_at")
    if run_at is not None and job.delay_s:
        raise InvalidValueError("give run_at or delay_s, not both")
    delay_s = check_seconds(job.delay_s, "delay_s")
    retry = check_retry(job.retry)
    if job.timeout_s is not None:
        check_seconds(job.timeout_s, "timeout_s", least=0.001)
    if job.keep_result_s is not None:
        check_seconds(job.keep_result_s, "keep_result_s")
    return {
        "name": job.name,
        "handler": job.handler,
        "queue": job.queue,
        "priority": check_priority(job.priority),
        "status": "draft" if job.draft else "scheduled",
        "max_attempts": retry.max_attempts,
        "concurrency_key": job.concurrency_key,
        "concurrency_limit": None if job.concurrency_key is None else job.concurrency_limit,
        "run_at": run_at,
        "delay_us": round(delay_s * 1_000_000),
        "options": encode_options(Options(retry, job.timeout_s, job.keep_result_s)),
        "payload": encode_json(job.payload, "payload"),
    }


def check_expected(what: str, found: Union[Job, Schedule], expected: Optional[int]) -> None:
    """Refuse `what` (a job, a schedule) of another version than the `expected`; None: any.

    Raises:
        ConcurrencyError: names both.
    """
    if expected is not None and found.version != expected:
        raise ConcurrencyError(
            f"{what} {found.id!r} has version {found.version} and not the expected {expected}; read it again and decide",
            expected,
            found.version,
        )


def check_names(names: Sequence[str], where: str) -> Tuple[str, ...]:
    """Return `names` as a tuple of 1 to 1,000 different identifiers."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not 1 <= len(names) <= 1000:
        raise InvalidValueError(f"{where} must be a sequence of 1 to 1,000 names")
    return tuple(dict.fromkeys(check_identifier(name, f"a name in {where}") for name in names))
