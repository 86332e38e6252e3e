"""What MongoDB says of bulk writes, which the server of the tests cannot be brought to say."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from modules.storage.documents import DocumentForms
from modules.store_common.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    StatementError,
    UnavailableError,
)

pytest.importorskip("pymongo")
from pymongo.errors import BulkWriteError

from modules.storage.backends.mongodb_abilities import abilities_of
from modules.storage.backends.mongodb_errors import translate
from modules.storage.backends.mongodb_executor import PooledDocuments

_DUPLICATE = {"index": 0, "code": 11000}
_NO_MAJORITY = {"code": 64, "errmsg": "waiting for replication timed out"}


def _details(errors: List[Any], concerns: List[Any]) -> Dict[str, Any]:
    return {"writeErrors": errors, "writeConcernErrors": concerns}


@pytest.mark.parametrize(
    ("errors", "concerns", "expected"),
    [
        ([_DUPLICATE], [], AlreadyExistsError),
        ([_DUPLICATE], [_NO_MAJORITY], AlreadyExistsError),
        ([], [_NO_MAJORITY], DeadlineExceededError),
        ([], [{"code": 91}], UnavailableError),
        ([{"index": 0, "code": 2}], [], StatementError),
        ([], [], StatementError),
    ],
)
def test_bulk_writes(errors: List[Any], concerns: List[Any], expected: Any) -> None:
    assert type(translate(BulkWriteError(_details(errors, concerns)))) is expected


class _Pool:
    """One collection, whose bulk writes end in an error."""

    def __init__(self, details: Dict[str, Any]) -> None:
        self._details = details

    abilities = abilities_of({}, {"version": "7.0.1"})

    def collection(self, name: str) -> _Pool:
        return self

    async def bulk_write(self, steps: Any, ordered: bool) -> None:
        raise BulkWriteError(self._details)


async def _upsert(errors: List[Any], concerns: List[Any]) -> None:
    pool: Any = _Pool(_details(errors, concerns))
    documents = PooledDocuments(pool, DocumentForms("test", 1, [], []))
    await documents.upsert_each("c", [({"_id": 1}, {"$set": {"a": 1}})])


async def test_only_taken_keys_are_passed_over() -> None:
    """A write that no majority has is no success, though each document was written."""
    await _upsert([_DUPLICATE], [])
    with pytest.raises(DeadlineExceededError):
        await _upsert([], [_NO_MAJORITY])
    with pytest.raises(StatementError):
        await _upsert([_DUPLICATE, {"index": 1, "code": 2}], [])
    with pytest.raises(DeadlineExceededError):
        await _upsert([_DUPLICATE], [_NO_MAJORITY])
