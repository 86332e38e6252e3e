"""Room: users and sessions."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

from sqlalchemy import BigInteger, bindparam, case, update
from sqlalchemy.dialects import postgresql, sqlite

from modules.conversation_store.encoding import check_optional_id, check_optional_text, encode_metadata
from modules.conversation_store.models import SessionRow, UserRow
from modules.conversation_store.records import Session, User
from modules.conversation_store.rows import SESSION_COLUMNS, USER_COLUMNS, to_session, to_user
from modules.storage.columns import utc_now
from modules.storage.operations import Store, Transaction, write
from modules.storage.statements import Row, Statement
from modules.store_common.ids import new_id
from modules.store_common.values import check_identifier

__all__ = [
    "ADD_SESSION",
    "ADD_USER",
    "CHANGE_SESSION",
    "CHANGE_USER",
    "People",
    "ensure_profile",
    "insert_new",
    "keep_or",
]


def insert_new(table: Any, columns: List[Any], values: Mapping[Any, Any]) -> Statement:
    """Insert a row unless its key is taken; gives the row when it was inserted."""
    return Statement(
        postgresql=postgresql.insert(table).values(values).on_conflict_do_nothing().returning(*columns),
        sqlite=sqlite.insert(table).values(values).on_conflict_do_nothing().returning(*columns),
    )


def keep_or(column: Any, name: str) -> Any:
    """Return "the parameter `name`, or what is there when the parameter `keep_<name>` is 1"."""
    return case(
        (bindparam(f"keep_{name}", type_=BigInteger) == 1, column), else_=bindparam(name, type_=column.type)
    )


def _add_profile(table: Any, label: Any, columns: List[Any]) -> Statement:
    values = {
        table.tenant_id: bindparam("tenant_id"),
        table.id: bindparam("id"),
        label: bindparam("label"),
        table.metadata_: bindparam("metadata"),
        table.created_at: utc_now(),
        table.updated_at: utc_now(),
    }
    return insert_new(table, columns, values)


def _change_profile(table: Any, label: Any, columns: List[Any]) -> Statement:
    values = {
        label: keep_or(label, "label"),
        table.metadata_: keep_or(table.metadata_, "metadata"),
        table.updated_at: utc_now(),
    }
    key = (table.tenant_id == bindparam("tenant_id"), table.id == bindparam("id"))
    return Statement(update(table).where(*key).values(values).returning(*columns))


ADD_USER = _add_profile(UserRow, UserRow.name, USER_COLUMNS)
ADD_SESSION = _add_profile(SessionRow, SessionRow.user_id, SESSION_COLUMNS)
CHANGE_USER = _change_profile(UserRow, UserRow.name, USER_COLUMNS)
CHANGE_SESSION = _change_profile(SessionRow, SessionRow.user_id, SESSION_COLUMNS)


_PROFILES = {"user": (ADD_USER, CHANGE_USER), "session": (ADD_SESSION, CHANGE_SESSION)}


@write
async def ensure_profile(tx: Transaction, kind: str, values: Dict[str, Any]) -> Row:
    """Add a user or session (`kind`), or change the given parts of one that is there."""
    add, change = _PROFILES[kind]
    row = await tx.first(add, **values)
    return row if row is not None else await tx.one(change, **values)


class People(Store):
    """Users and sessions."""

    async def ensure_user(
        self,
        user_id: str,
        *,
        name: Optional[str] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        tenant_id: Optional[str] = None,
    ) -> User:
        """Return the user, made if need be.

        Args:
            user_id: The application's id of the user.
            name: What the user is called; None leaves it as it is.
            metadata: JSON object that replaces the one there is; None leaves it.
            tenant_id: Whose; see `TenantPolicy`.
        """
        values = self._profile(tenant_id, user_id, "user_id", check_optional_text(name, "name"), metadata)
        return to_user(await self._executor.run(ensure_profile, "user", values))

    async def ensure_session(
        self,
        session_id: Optional[str] = None,
        *,
        user_id: Optional[str] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        tenant_id: Optional[str] = None,
    ) -> Session:
        """Return the session, made if need be; None makes one with a new id. None for the rest leaves it as it is."""
        own = new_id() if session_id is None else session_id
        values = self._profile(tenant_id, own, "session_id", check_optional_id(user_id, "user_id"), metadata)
        return to_session(await self._executor.run(ensure_profile, "session", values))

    def _profile(
        self,
        tenant_id: Optional[str],
        entity_id: str,
        where: str,
        label: Any,
        metadata: Optional[Mapping[str, Any]],
    ) -> Dict[str, Any]:
        return {
            "tenant_id": self._tenant(tenant_id),
            "id": check_identifier(entity_id, where),
            "label": label,
            "keep_label": 1 if label is None else 0,
            "metadata": encode_metadata(metadata),
            "keep_metadata": 1 if metadata is None else 0,
        }
