"""How hard an index is asked to look: conditions that set pgvector's parameters for the statement they stand in alone.

They are set before the scan begins, which waits for the value of the subquery: PostgreSQL evaluates such a condition once,
as a one-time filter. So a search is one statement, without a transaction around it.

Source: pgvector README, "Iterative Index Scans".
"""

from __future__ import annotations

from sqlalchemy import Text, bindparam, text

__all__ = ["HNSW_EFFORT", "HNSW_FIRST", "IVFFLAT_EFFORT", "IVFFLAT_FIRST"]

_EFFORT = bindparam("effort", type_=Text())
_SCAN_LIMIT = bindparam("scan_limit", type_=Text())

HNSW_EFFORT = text(
    "(SELECT set_config('hnsw.ef_search', :effort, true) || set_config('hnsw.iterative_scan', 'relaxed_order', true)"
    " || set_config('hnsw.max_scan_tuples', :scan_limit, true)"
    " || set_config('hnsw.scan_mem_multiplier', '4', true)) IS NOT NULL"
).bindparams(_EFFORT, _SCAN_LIMIT)
IVFFLAT_EFFORT = text(
    "(SELECT set_config('ivfflat.probes', :effort, true) || set_config('ivfflat.iterative_scan', 'relaxed_order', true)"
    " || set_config('ivfflat.max_probes', :scan_limit, true)) IS NOT NULL"
).bindparams(_EFFORT, _SCAN_LIMIT)

# For the first candidates alone: an iterative scan keeps what it passes by, which was up to a third of the search at high
# effort. What the session has set already is not set again.
HNSW_FIRST = text(
    "(SELECT CASE WHEN current_setting('hnsw.ef_search', true) = CAST(:effort AS text)"
    " AND current_setting('hnsw.iterative_scan', true) = 'off' THEN ''"
    " ELSE set_config('hnsw.ef_search', :effort, true) || set_config('hnsw.iterative_scan', 'off', true) END)"
    " IS NOT NULL"
).bindparams(_EFFORT)
IVFFLAT_FIRST = text(
    "(SELECT set_config('ivfflat.probes', :effort, true) || set_config('ivfflat.iterative_scan', 'off', true))"
    " IS NOT NULL"
).bindparams(_EFFORT)
