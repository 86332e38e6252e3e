"""The SQL of the outbox; see `outbox_models` for its tables, `outbox_queue` and `outbox_upkeep` for what runs it."""

from __future__ import annotations

from typing import Any, Dict, Sequence

from sqlalchemy import BigInteger, Double, String, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY

from modules.storage.columns import NOW_SQLITE, UtcDateTime
from modules.storage.statements import Statement

__all__ = [
    "AGAIN",
    "ANNOUNCE",
    "APPLIED",
    "CLAIM",
    "DISCARD",
    "DUE",
    "FAIL",
    "FINISH",
    "LIST",
    "PURGE",
    "REDRIVE",
    "RELEASE",
    "REMOVE",
    "RENEW",
    "SHOW",
    "STAGE",
    "STAGE_ROWS",
    "STATS",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "UNSUBSCRIBE_ROWS",
]

# The database's clock: an instant, the same in whole microseconds, and that many seconds later.
_CLOCK: Dict[str, Dict[str, str]] = {
    "sqlite": {
        "now": NOW_SQLITE,
        "after": " + CAST({} * 1000000 AS INTEGER)",
        "greatest": "max",
    },
    "postgresql": {
        "now": "statement_timestamp()",
        "after": " + make_interval(secs => {})",
        "greatest": "greatest",
    },
}
_CLOCK["sqlite"]["now_us"] = _CLOCK["sqlite"]["now"]
_CLOCK["postgresql"]["now_us"] = "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS bigint)"
_S, _P = _CLOCK["sqlite"], _CLOCK["postgresql"]

_KEY = "tenant_id, target, kind, key"
_TENANT = bindparam("tenant_id", type_=String())
_TARGET = bindparam("target", type_=String())
_KIND = bindparam("kind", type_=String())
_NAME = bindparam("key", type_=String())
_THIS = (_TENANT, _TARGET, _KIND, _NAME)
_CLAIM = bindparam("claim", type_=String())
_SECONDS: Any = bindparam("seconds", type_=Double())
_LIMIT = bindparam("limit", type_=BigInteger)
_IS_THIS = "tenant_id = :tenant_id AND target = :target AND kind = :kind AND key = :key"

# A key that was clean becomes dirty as of now; one that is dirty keeps its place, its lease, its pause or its parking.
_DIRTY_AGAIN = (
    " ON CONFLICT (tenant_id, target, kind, key) DO UPDATE SET version = {greatest}(atlas_outbox.version + {step},"
    " excluded.version), payload = excluded.payload,"
    " state = CASE WHEN atlas_outbox.state = 'done' THEN 'pending' ELSE atlas_outbox.state END,"
    " staged_at = CASE WHEN atlas_outbox.state = 'done' THEN excluded.staged_at ELSE atlas_outbox.staged_at END,"
    " available_at = CASE WHEN atlas_outbox.state = 'done' THEN excluded.available_at ELSE atlas_outbox.available_at END,"
    " error = CASE WHEN atlas_outbox.state = 'done' THEN NULL ELSE atlas_outbox.error END"
)
_INTO = (
    "INSERT INTO atlas_outbox (tenant_id, target, kind, key, state, version, applied, attempts, fence, staged_at,"
    " available_at, payload)"
)
_STAGE = (
    _INTO
    + " VALUES (:tenant_id, :target, :kind, :key, 'pending', {now_us}, 0, 0, 0, {now}, {now}, :payload)"
    + _DIRTY_AGAIN
    + " RETURNING version"
)
#: Parameters: the key and `payload` (JSON text or None). Gives the version.
STAGE = Statement(
    sqlite=text(_STAGE.format(**_S, step=1))
    .bindparams(*_THIS, bindparam("payload", type_=Text()))
    .columns(version=BigInteger),
    postgresql=text(_STAGE.format(**_P, step=1))
    .bindparams(*_THIS, bindparam("payload", type_=Text()))
    .columns(version=BigInteger),
)
#: By dialect, what a trigger, or a statement over many rows, marks keys dirty with: `{key}` is SQL of tenant, target, kind
#: and key, with commas between; `{source}` what stands after FROM, with a WHERE (SQLite needs one) and the order of the keys.
STAGE_ROWS: Dict[str, str] = {
    dialect: (
        _INTO
        + " SELECT {key}, 'pending', "
        + f"{clock['now_us']}, 0, 0, 0, {clock['now']}, {clock['now']}, NULL FROM "
        + "{source}"
        + _DIRTY_AGAIN.format(**clock, step=1)
    )
    for dialect, clock in _CLOCK.items()
}
_ANNOUNCE = (
    _INTO
    + " SELECT :tenant_id, s.target, s.topic, :key, 'pending', :version, :version - 1, 0, 0, {now}, {now}, NULL"
    " FROM atlas_outbox_subscribers AS s WHERE s.topic = :topic{order}" + _DIRTY_AGAIN
)
_ANNOUNCED = (
    _TENANT,
    _NAME,
    bindparam("topic", type_=String()),
    bindparam("version", type_=BigInteger),
)
#: Parameters: `topic`, the key, and its `version`, which has grown by at least 1.
ANNOUNCE = Statement(
    sqlite=text(_ANNOUNCE.format(**_S, step=0, order=" AND true")).bindparams(*_ANNOUNCED),
    postgresql=text(_ANNOUNCE.format(**_P, step=0, order=" ORDER BY s.target")).bindparams(*_ANNOUNCED),
)

_SUBSCRIBE = (
    "INSERT INTO atlas_outbox_subscribers (topic, target, created_at) VALUES (:topic, :target, {now})"
    " ON CONFLICT (topic, target) DO NOTHING"
)
_SUBSCRIPTION = (bindparam("topic", type_=String()), _TARGET)
SUBSCRIBE = Statement(
    sqlite=text(_SUBSCRIBE.format(**_S)).bindparams(*_SUBSCRIPTION),
    postgresql=text(_SUBSCRIBE.format(**_P)).bindparams(*_SUBSCRIPTION),
)
UNSUBSCRIBE = Statement(
    text("DELETE FROM atlas_outbox_subscribers WHERE topic = :topic AND target = :target").bindparams(
        *_SUBSCRIPTION
    )
)
UNSUBSCRIBE_ROWS = Statement(text("DELETE FROM atlas_outbox WHERE target = :target").bindparams(_TARGET))

_CLAIMED: Dict[str, Any] = {
    "tenant_id": String,
    "target": String,
    "kind": String,
    "key": String,
    "version": BigInteger,
    "applied": BigInteger,
    "attempts": BigInteger,
    "fence": BigInteger,
    "staged_at": UtcDateTime,
    "payload": Text,
}
_CLAIM_SET = (
    "UPDATE atlas_outbox SET fence = fence + 1, claimed_by = :claim, available_at = {now}{after}"
    " WHERE (tenant_id, target, kind, key) IN (SELECT tenant_id, target, kind, key FROM {source})"
    " RETURNING tenant_id, target, kind, key, version, applied, attempts, fence, staged_at, payload"
)
_FREE = (
    "(SELECT tenant_id, target, kind, key FROM atlas_outbox WHERE target = :target AND state = 'pending'"
    " AND available_at <= {now} ORDER BY available_at LIMIT :limit{lock})"
)
_CLAIMING = (_TARGET, _CLAIM, _SECONDS, _LIMIT)
CLAIM = Statement(
    sqlite=text(
        _CLAIM_SET.format(
            now=_S["now"],
            after=_S["after"].format(":seconds"),
            source=_FREE.format(now=_S["now"], lock="") + " AS free",
        )
    )
    .bindparams(*_CLAIMING)
    .columns(**_CLAIMED),
    postgresql=text(
        "WITH free AS MATERIALIZED "
        + _FREE.format(now=_P["now"], lock=" FOR UPDATE SKIP LOCKED")
        + " "
        + _CLAIM_SET.format(now=_P["now"], after=_P["after"].format(":seconds"), source="free")
    )
    .bindparams(*_CLAIMING)
    .columns(**_CLAIMED),
)

_FINISH_SET = (
    " SET applied = {k}version, attempts = 0, error = NULL, claimed_by = NULL, available_at = {now},"
    " state = CASE WHEN {o}version > {k}version THEN 'pending' ELSE 'done' END,"
    " staged_at = CASE WHEN {o}version > {k}version THEN {now} ELSE {o}staged_at END"
)
_ACKNOWLEDGED: Sequence[Any] = (_TARGET, _CLAIM)
_DONE_COLUMNS: Dict[str, Any] = {"tenant_id": String, "kind": String, "key": String}
# The acknowledged keys as `k`: JSON [[tenant, kind, key, version, fence], ...] on SQLite, arrays on PostgreSQL.
_K_SQLITE = (
    "(SELECT json_extract(value, '$[0]') AS tenant_id, json_extract(value, '$[1]') AS kind,"
    " json_extract(value, '$[2]') AS key, json_extract(value, '$[3]') AS version,"
    " json_extract(value, '$[4]') AS fence FROM json_each(:keys)) AS k"
)
# the rows are locked in the order of their keys, as units of work stage them: nobody waits in a circle
_K_POSTGRESQL = (
    "WITH k AS MATERIALIZED (SELECT o.tenant_id, o.target, o.kind, o.key, w.version, o.fence FROM"
    " unnest(:tenants, :kinds, :keys, :versions, :fences) AS w (tenant_id, kind, key, version, fence)"
    " JOIN atlas_outbox AS o ON o.tenant_id = w.tenant_id AND o.target = :target AND o.kind = w.kind"
    " AND o.key = w.key AND o.fence = w.fence AND o.claimed_by = :claim"
    " ORDER BY o.tenant_id, o.target, o.kind, o.key FOR UPDATE OF o) "
)
_IS_K = " WHERE o.tenant_id = k.tenant_id AND o.target = k.target AND o.kind = k.kind AND o.key = k.key"
_ACKNOWLEDGED_SQLITE: Sequence[Any] = (*_ACKNOWLEDGED, bindparam("keys", type_=Text()))
_ACKNOWLEDGED_POSTGRESQL: Sequence[Any] = (
    *_ACKNOWLEDGED,
    *(bindparam(name, type_=ARRAY(Text())) for name in ("tenants", "kinds", "keys")),
    *(bindparam(name, type_=ARRAY(BigInteger())) for name in ("versions", "fences")),
)
#: Parameters: `target`, `claim`, and the keys. Gives those that were held.
FINISH = Statement(
    sqlite=text(
        "UPDATE atlas_outbox"
        + _FINISH_SET.format(k="k.", o="atlas_outbox.", now=_S["now"])
        + " FROM "
        + _K_SQLITE
        + " WHERE atlas_outbox.tenant_id = k.tenant_id AND atlas_outbox.target = :target AND atlas_outbox.kind = k.kind"
        " AND atlas_outbox.key = k.key AND atlas_outbox.fence = k.fence AND atlas_outbox.claimed_by = :claim"
        " RETURNING tenant_id, kind, key"
    )
    .bindparams(*_ACKNOWLEDGED_SQLITE)
    .columns(**_DONE_COLUMNS),
    postgresql=text(
        _K_POSTGRESQL
        + "UPDATE atlas_outbox AS o"
        + _FINISH_SET.format(k="k.", o="o.", now=_P["now"])
        + " FROM k"
        + _IS_K
        + " RETURNING o.tenant_id, o.kind, o.key"
    )
    .bindparams(*_ACKNOWLEDGED_POSTGRESQL)
    .columns(**_DONE_COLUMNS),
)
#: As `FINISH`, for those that did not change meanwhile: their rows go. Gives them.
REMOVE = Statement(
    sqlite=text(
        "DELETE FROM atlas_outbox WHERE claimed_by = :claim AND (tenant_id, target, kind, key, version, fence) IN"
        " (SELECT k.tenant_id, :target, k.kind, k.key, k.version, k.fence FROM "
        + _K_SQLITE
        + ") RETURNING tenant_id, kind, key"
    )
    .bindparams(*_ACKNOWLEDGED_SQLITE)
    .columns(**_DONE_COLUMNS),
    postgresql=text(
        _K_POSTGRESQL
        + "DELETE FROM atlas_outbox AS o USING k"
        + _IS_K
        + " AND o.version = k.version RETURNING o.tenant_id, o.kind, o.key"
    )
    .bindparams(*_ACKNOWLEDGED_POSTGRESQL)
    .columns(**_DONE_COLUMNS),
)
_FAIL = (
    "UPDATE atlas_outbox SET attempts = attempts + 1, error = :error, claimed_by = NULL, available_at = {now}{after},"
    " state = CASE WHEN attempts + 1 >= :most THEN 'parked' ELSE 'pending' END"
    " WHERE " + _IS_THIS + " AND fence = :fence AND claimed_by = :claim"
)
_FAILING = (
    *_THIS,
    _CLAIM,
    _SECONDS,
    bindparam("error", type_=Text()),
    bindparam("most", type_=BigInteger),
    bindparam("fence", type_=BigInteger),
)
#: After a failed attempt: the key waits for `seconds`, or is parked when it was the `most`-th.
FAIL = Statement(
    sqlite=text(_FAIL.format(now=_S["now"], after=_S["after"].format(":seconds"))).bindparams(*_FAILING),
    postgresql=text(_FAIL.format(now=_P["now"], after=_P["after"].format(":seconds"))).bindparams(*_FAILING),
)
_RELEASE = (
    "UPDATE atlas_outbox SET claimed_by = NULL, available_at = staged_at WHERE "
    + _IS_THIS
    + " AND fence = :fence AND claimed_by = :claim AND state = 'pending'"
)
#: Gives a claim back that nothing was done with.
RELEASE = Statement(text(_RELEASE).bindparams(*_THIS, _CLAIM, bindparam("fence", type_=BigInteger)))
_AGAIN = (
    "UPDATE atlas_outbox SET version = {greatest}(version + 1, {now_us}),"
    " state = CASE WHEN state = 'done' THEN 'pending' ELSE state END,"
    " staged_at = CASE WHEN state = 'done' THEN {now} ELSE staged_at END,"
    " available_at = CASE WHEN state = 'done' THEN {now} ELSE available_at END WHERE " + _IS_THIS
)
#: For who was overtaken: what it wrote may be older than what is there now, so the key is dirty once more.
AGAIN = Statement(
    sqlite=text(_AGAIN.format(**_S)).bindparams(*_THIS),
    postgresql=text(_AGAIN.format(**_P)).bindparams(*_THIS),
)

APPLIED = Statement(
    text("SELECT applied, state FROM atlas_outbox WHERE " + _IS_THIS)
    .bindparams(*_THIS)
    .columns(applied=BigInteger, state=String)
)
_PURGE = (
    "DELETE FROM atlas_outbox WHERE (tenant_id, target, kind, key) IN (SELECT tenant_id, target, kind, key"
    " FROM atlas_outbox WHERE state = 'done' AND available_at <= {now}{after} ORDER BY available_at LIMIT :limit{lock})"
)
#: Removes up to `limit` rows that have been done for -`seconds`.
PURGE = Statement(
    sqlite=text(
        _PURGE.format(now=_S["now"], after=_S["after"].format(":seconds"), lock="") + " AND state = 'done'"
    ).bindparams(_SECONDS, _LIMIT),
    postgresql=text(
        _PURGE.format(now=_P["now"], after=_P["after"].format(":seconds"), lock=" FOR UPDATE SKIP LOCKED")
    ).bindparams(_SECONDS, _LIMIT),
)
_STATS = (
    "SELECT target, state, count(*) AS n, min(staged_at) AS oldest, {now} AS clock FROM atlas_outbox"
    " WHERE state IN ('pending', 'parked') GROUP BY target, state ORDER BY target, state"
)
_STATS_COLUMNS: Dict[str, Any] = {
    "target": String,
    "state": String,
    "n": BigInteger,
    "oldest": UtcDateTime,
    "clock": UtcDateTime,
}
STATS = Statement(
    sqlite=text(_STATS.format(**_S)).columns(**_STATS_COLUMNS),
    postgresql=text(_STATS.format(**_P)).columns(**_STATS_COLUMNS),
)
_ROW: Dict[str, Any] = {
    **_CLAIMED,
    "state": String,
    "available_at": UtcDateTime,
    "claimed_by": String,
    "error": Text,
}
_ROW_COLUMNS = (
    "SELECT tenant_id, target, kind, key, version, applied, attempts, fence, staged_at, payload, state, available_at,"
    " claimed_by, error FROM atlas_outbox WHERE "
)
SHOW = Statement(text(_ROW_COLUMNS + _IS_THIS).bindparams(*_THIS).columns(**_ROW))
#: Parameters: `state`; `target` ("" for all); the key after which to go on (four times "" to begin); `limit`.
LIST = Statement(
    text(
        _ROW_COLUMNS
        + "state = :state AND (:target = '' OR target = :target)"
        + " AND (tenant_id, target, kind, key) > (:tenant_id, :after_target, :kind, :key)"
        + " ORDER BY tenant_id, target, kind, key LIMIT :limit"
    )
    .bindparams(*_THIS, bindparam("after_target", type_=String()), bindparam("state", type_=String()), _LIMIT)
    .columns(**_ROW)
)
_REDRIVE = (
    "UPDATE atlas_outbox SET state = 'pending', attempts = 0, available_at = {now} WHERE "
    + _IS_THIS
    + " AND state = 'parked'"
)
REDRIVE = Statement(
    sqlite=text(_REDRIVE.format(**_S)).bindparams(*_THIS),
    postgresql=text(_REDRIVE.format(**_P)).bindparams(*_THIS),
)
_DISCARD = (
    "UPDATE atlas_outbox SET state = 'done', applied = version, attempts = 0, fence = fence + 1, claimed_by = NULL,"
    " available_at = {now} WHERE " + _IS_THIS + " AND state <> 'done'"
)
DISCARD = Statement(
    sqlite=text(_DISCARD.format(**_S)).bindparams(*_THIS),
    postgresql=text(_DISCARD.format(**_P)).bindparams(*_THIS),
)
_DUE = "SELECT min(available_at) AS due, {now} AS clock FROM atlas_outbox WHERE target = :target AND state = 'pending'"
#: When the next key of a target is due (None: none is waiting), and the time now.
DUE = Statement(
    sqlite=text(_DUE.format(**_S)).bindparams(_TARGET).columns(due=UtcDateTime, clock=UtcDateTime),
    postgresql=text(_DUE.format(**_P)).bindparams(_TARGET).columns(due=UtcDateTime, clock=UtcDateTime),
)
_RENEW = (
    "UPDATE atlas_outbox SET available_at = {now}{after} WHERE "
    + _IS_THIS
    + " AND fence = :fence AND claimed_by = :claim AND state = 'pending'"
)
_RENEWING = (*_THIS, _CLAIM, _SECONDS, bindparam("fence", type_=BigInteger))
RENEW = Statement(
    sqlite=text(_RENEW.format(now=_S["now"], after=_S["after"].format(":seconds"))).bindparams(*_RENEWING),
    postgresql=text(_RENEW.format(now=_P["now"], after=_P["after"].format(":seconds"))).bindparams(
        *_RENEWING
    ),
)
