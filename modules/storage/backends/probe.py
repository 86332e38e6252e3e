"""The smallest operation there is: does the database answer?"""

from __future__ import annotations

from sqlalchemy import literal, select

from modules.storage.operations import Transaction, read
from modules.storage.statements import Statement

__all__ = ["ping"]

_PING = Statement(select(literal(1)))


@read(urgent=True)
async def ping(tx: Transaction) -> None:
    """Ask the database for the number 1."""
    await tx.one(_PING)
