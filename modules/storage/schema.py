"""The one declarative base and metadata that the tables of all stores share, so that Alembic sees one schema."""

from __future__ import annotations

from sqlalchemy import MetaData, String
from sqlalchemy.orm import DeclarativeBase

__all__ = ["Base", "Identifier"]

# Fixed names, so that a migration can name the constraint it changes on either dialect.
_NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

#: The type of ids, names and keys. PostgreSQL compares it by code point ("C"), as SQLite does by bytes, so that order
#: and prefixes are the same on both whatever the database's locale.
Identifier = String().with_variant(String(collation="C"), "postgresql")


class Base(DeclarativeBase):
    """Parent of every table of ours."""

    metadata = MetaData(naming_convention=_NAMES)
