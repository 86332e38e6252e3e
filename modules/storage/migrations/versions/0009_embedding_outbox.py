"""Messages to embed stand in the outbox: what waits is carried over, the triggers write there, the old backlog goes.

Triggers are there only where an index of meaning is registered. The order keeps every change: once the old triggers are gone
nobody else writes messages until the end (the lock of the migration on SQLite, that of the table on PostgreSQL).

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_NOW = {
    "sqlite": "(CAST((julianday('now') - 2440587.5) * 86400000.0 + 0.5 AS INTEGER) * 1000)",
    "postgresql": "statement_timestamp()",
}
_NOW_US = {
    "sqlite": _NOW["sqlite"],
    "postgresql": "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS bigint)",
}
# A row that was put off keeps its pause; one that was claimed waits for the end of the claim.
CARRY = {
    dialect: f"""\
INSERT INTO atlas_outbox (tenant_id, target, kind, key, state, version, applied, attempts, fence, staged_at, available_at)
SELECT tenant_id, 'embedding:' || collection, conversation_id, CAST(sequence AS text), 'pending', {now_us}, 0, attempts, 0,
 noted_at, coalesce(claimed_until, noted_at) FROM atlas_embedding_backlog"""
    for dialect, now_us in _NOW_US.items()
}

_INTO = {
    dialect: """\
INSERT INTO atlas_outbox (tenant_id, target, kind, key, state, version, applied, attempts, fence, staged_at, available_at,
 payload)
SELECT {row}.tenant_id, 'embedding:' || i.collection, {row}.conversation_id, CAST({row}.sequence AS text), 'pending', @US@,
 0, 0, 0, @NOW@, @NOW@, NULL FROM {source}
ON CONFLICT (tenant_id, target, kind, key) DO UPDATE SET
 version = @GREATEST@(atlas_outbox.version + 1, excluded.version), payload = excluded.payload,
 state = CASE WHEN atlas_outbox.state = 'done' THEN 'pending' ELSE atlas_outbox.state END,
 staged_at = CASE WHEN atlas_outbox.state = 'done' THEN excluded.staged_at ELSE atlas_outbox.staged_at END,
 available_at = CASE WHEN atlas_outbox.state = 'done' THEN excluded.available_at ELSE atlas_outbox.available_at END,
 error = CASE WHEN atlas_outbox.state = 'done' THEN NULL ELSE atlas_outbox.error END""".replace(
        "@US@", _NOW_US[dialect]
    )
    .replace("@NOW@", _NOW[dialect])
    .replace("@GREATEST@", greatest)
    for dialect, greatest in (("sqlite", "max"), ("postgresql", "greatest"))
}
_EACH = "atlas_embedding_indexes i"
_SHOWN = "{row}.deleted_at IS NULL AND {row}.status <> 'streaming'"
_CHANGED = f"({_SHOWN.format(row='old')}) OR ({_SHOWN.format(row='new')})"
_CHANGE = "UPDATE OF content, search_text, name, role, status, created_at, deleted_at"
_ORDER = 'ORDER BY 1, 2, 3, CAST({row}.sequence AS text) COLLATE "C"'
_SQLITE_NEW, _SQLITE_OLD = (
    _INTO["sqlite"].format(row=row, source=f"{_EACH} WHERE true") for row in ("new", "old")
)
# Name, event, into, what else the trigger says.
_POSTGRESQL = [
    (
        "add",
        "INSERT",
        _INTO["postgresql"].format(
            row="added",
            source=f"added CROSS JOIN {_EACH} WHERE {_SHOWN.format(row='added')} {_ORDER.format(row='added')}",
        ),
        "REFERENCING NEW TABLE AS added FOR EACH STATEMENT",
    ),
    (
        "change",
        _CHANGE,
        _INTO["postgresql"].format(row="new", source=_EACH),
        f"FOR EACH ROW WHEN ({_CHANGED})",
    ),
    (
        "remove",
        "DELETE",
        _INTO["postgresql"].format(
            row="removed", source=f"removed CROSS JOIN {_EACH} WHERE true {_ORDER.format(row='removed')}"
        ),
        "REFERENCING OLD TABLE AS removed FOR EACH STATEMENT",
    ),
]
DROPS = {
    "sqlite": [f"DROP TRIGGER IF EXISTS atlas_embedding_{name}" for name in ("add", "change", "remove")],
    "postgresql": [
        f"DROP FUNCTION IF EXISTS atlas_embedding_{name}() CASCADE" for name in ("add", "change", "remove")
    ],
}
TRIGGERS_SQLITE = [
    f"CREATE TRIGGER atlas_embedding_{name} AFTER {event} ON atlas_messages WHEN {when} BEGIN {into}; END"
    for name, event, when, into in (
        ("add", "INSERT", _SHOWN.format(row="new"), _SQLITE_NEW),
        ("change", _CHANGE, _CHANGED, _SQLITE_NEW),
        ("remove", "DELETE", "true", _SQLITE_OLD),
    )
]
TRIGGERS_POSTGRESQL = (
    "DO $do$\nBEGIN\nIF EXISTS (SELECT 1 FROM atlas_embedding_indexes) THEN\n"
    + "\n".join(
        f"CREATE FUNCTION atlas_embedding_{name}() RETURNS trigger LANGUAGE plpgsql AS $body$\n"
        f"BEGIN\n  {into};\n  RETURN NULL;\nEND\n$body$;\n"
        f"CREATE TRIGGER atlas_embedding_{name} AFTER {event} ON atlas_messages {more}\n"
        f"EXECUTE FUNCTION atlas_embedding_{name}();"
        for name, event, into, more in _POSTGRESQL
    )
    + "\nEND IF;\nEND\n$do$"
)


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    for statement in DROPS[dialect]:
        op.execute(statement)
    op.execute(CARRY[dialect])
    if dialect == "postgresql":
        op.execute(TRIGGERS_POSTGRESQL)
    elif _is_registered():
        for statement in TRIGGERS_SQLITE:
            op.execute(statement)
    op.drop_table("atlas_embedding_backlog")


def _is_registered() -> bool:
    if op.get_context().as_sql:
        return False  # the SQL for an administrator is for an empty database
    found = op.get_bind().exec_driver_sql("SELECT 1 FROM atlas_embedding_indexes LIMIT 1").first()
    return found is not None
