"""The statements on one collection's table, made once for each collection and shape of filter, and kept."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Callable, FrozenSet, List, Optional, Tuple

from sqlalchemy import (
    ARRAY,
    Column,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal_column,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import UserDefinedType

from modules.storage.columns import FreeText, JsonValue, UtcDateTime
from modules.storage.schema import Identifier
from modules.storage.statements import Statement
from modules.storage.vectors.filters import Filter
from modules.storage.vectors.models import DistanceMetric
from modules.storage.vectors.pgvector_effort import HNSW_EFFORT, HNSW_FIRST, IVFFLAT_EFFORT, IVFFLAT_FIRST
from modules.storage.vectors.pgvector_filters import BoundFilter, filter_clause
from modules.storage.vectors.pgvector_options import IndexOptions, quote_identifier
from modules.storage.vectors.pgvector_schema import REGISTRY

__all__ = ["CollectionStatements"]

_KEPT = 200
_TENANT = bindparam("tenant", type_=Text())
_SPACE = bindparam("space", type_=Text())
_LIMIT = bindparam("row_limit", type_=Integer())
_BOUND = bindparam("bound", type_=Integer())
_ONE_IN_TEN: ColumnElement[Any] = literal_column("hashtext(id) % 10 = 0")


class _Vector(UserDefinedType[Any]):
    """pgvector's type; values are in its binary form."""

    cache_ok = True

    def __init__(self, kind: str, dimension: int) -> None:
        self.kind = kind
        self.dimension = dimension

    def get_col_spec(self, **kw: Any) -> str:
        return f"{self.kind}({self.dimension})"


class CollectionStatements:
    """The statements of one table.

    Args:
        physical: Its name.
        dimension: Of the vectors.
        metric: Of the collection.
        options: How it was made.
    """

    def __init__(self, physical: str, dimension: int, metric: DistanceMetric, options: IndexOptions) -> None:
        self.physical = physical
        self.dimension = dimension
        self.metric = metric
        self.options = options
        self.indexed: FrozenSet[str] = frozenset(options.index_metadata)
        self._column = _Vector(options.column_type(), dimension)
        self._index = _Vector(options.indexed_type(dimension), dimension)
        quote_identifier(physical)
        self._table = Table(
            physical,
            MetaData(),
            Column("tenant_id", Identifier),
            Column("namespace", Identifier),
            Column("id", Identifier),
            Column("embedding", self._column),
            Column("content", FreeText),
            Column("metadata", JsonValue),
            Column("search", JSONB),
            Column("created_at", UtcDateTime),
        )
        self._made: OrderedDict[Tuple[Any, ...], Statement] = OrderedDict()

    def _kept(self, key: Tuple[Any, ...], make: Callable[[], Statement]) -> Statement:
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = make()
            if len(self._made) > _KEPT:
                self._made.popitem(last=False)
        else:
            self._made.move_to_end(key)
        return found

    # --- parts ------------------------------------------------------------------------------------------------------

    def _where(self, tree: Optional[Filter], *, space: bool = True) -> List[Any]:
        c = self._table.c
        conditions: List[Any] = [c.tenant_id == _TENANT]
        if space:
            conditions.append(c.namespace == _SPACE)
        if tree is not None:
            conditions.append(filter_clause(tree, c.search, self.indexed))
        return conditions

    def _query(self, kind: _Vector) -> ColumnElement[Any]:
        given = cast(
            bindparam("query", type_=_Vector("vector", self.dimension)), _Vector("vector", self.dimension)
        )
        return given if kind.kind == "vector" else cast(given, kind)

    def _distance(self, embedding: ColumnElement[Any], kind: _Vector) -> ColumnElement[Any]:
        return embedding.op(self.options.operator(self.metric), return_type=Double())(self._query(kind))

    @property
    def _exact_distance(self) -> ColumnElement[Any]:
        return self._distance(self._table.c.embedding, self._column)

    @property
    def _indexed_distance(self) -> ColumnElement[Any]:
        """The expression that the index was made for."""
        c = self._table.c
        embedding: ColumnElement[Any] = c.embedding
        if self._index.kind != self._column.kind:
            embedding = cast(c.embedding, self._index)
        return self._distance(embedding, self._index)

    @property
    def _unindexed_distance(self) -> ColumnElement[Any]:
        """The same distance as an expression that no index was made for."""
        zero: ColumnElement[Any] = literal_column("0.0::float8", Double())
        return zero + self._exact_distance

    def _document(self, *, metadata: bool = True, vector: bool = True) -> List[Any]:
        c = self._table.c
        parts: List[Any] = [c.id, c.namespace, c.created_at]
        if metadata:
            parts += [c.content, c.metadata]
        if vector:
            whole = (
                cast(c.embedding, _Vector("vector", self.dimension)) if self.options.halfvec else c.embedding
            )
            parts.append(func.vector_send(whole, type_=LargeBinary()).label("vector"))
        return parts

    # --- writing ----------------------------------------------------------------------------------------------------

    @property
    def upsert(self) -> Statement:
        """Store arrays of documents while the collection is registered; changes no row when it is not."""
        return self._kept(("upsert",), self._make_upsert)

    def _make_upsert(self) -> Statement:
        return Statement(
            text(
                f"WITH known AS (SELECT 1 FROM {REGISTRY} WHERE tenant_id = CAST(:tenant AS text)"
                " AND name = CAST(:name AS text) AND physical = CAST(:physical AS text) FOR KEY SHARE)"
                f" INSERT INTO {quote_identifier(self.physical)} AS t"
                " (tenant_id, namespace, id, embedding, content, metadata, search, created_at)"
                " SELECT CAST(:tenant AS text), coalesce(d.namespace, CAST(:space AS text)), d.id,"
                f" CAST(d.embedding AS {quote_identifier(self.options.column_type())}({int(self.dimension)})),"
                " d.content, d.metadata::json, coalesce(d.search, d.metadata)::jsonb,"
                " coalesce(d.created_at, statement_timestamp())"
                " FROM known, unnest(CAST(:namespaces AS text[]), CAST(:ids AS text[]), CAST(:vectors AS vector[]),"
                " CAST(:contents AS text[]), CAST(:metadata AS text[]), CAST(:searches AS text[]),"
                " CAST(:created AS timestamptz[]))"
                " AS d(namespace, id, embedding, content, metadata, search, created_at)"
                " ON CONFLICT (tenant_id, namespace, id) DO UPDATE SET embedding = excluded.embedding,"
                " content = excluded.content, metadata = excluded.metadata, search = excluded.search,"
                # no time given: the statement's own stands in the row, and the one that is there stays
                " created_at = CASE WHEN excluded.created_at = statement_timestamp() THEN t.created_at"
                " ELSE excluded.created_at END"
            )
        )

    @property
    def delete_ids(self) -> Statement:
        """Delete by id."""
        ids = bindparam("ids", type_=ARRAY(Text))
        return self._kept(
            ("delete_ids",),
            lambda: Statement(
                delete(self._table).where(*self._where(None), self._table.c.id == func.any(ids))
            ),
        )

    def delete_where(self, bound: Optional[BoundFilter]) -> Statement:
        """Delete what passes a filter."""
        return self._kept(
            ("delete", _shape(bound)),
            lambda: Statement(delete(self._table).where(*self._where(_tree(bound)))),
        )

    @property
    def delete_older(self) -> Statement:
        """Look at the next rows and delete the old ones: how many went, how many were looked at, and the last of them."""
        return self._kept(("older",), self._make_delete_older)

    def _make_delete_older(self) -> Statement:
        c = self._table.c
        start = tuple_(_SPACE, bindparam("after", type_=Text()))
        part = (
            select(c.namespace, c.id)
            .where(c.tenant_id == _TENANT, tuple_(c.namespace, c.id) > start)
            .order_by(c.namespace, c.id)
            .limit(_LIMIT)
            .cte("part")
        )
        gone = (
            delete(self._table)
            .where(
                c.tenant_id == _TENANT,
                c.namespace == part.c.namespace,
                c.id == part.c.id,
                c.created_at < bindparam("before", type_=UtcDateTime()),
            )
            .returning(c.id)
            .cte("gone")
        )
        counts: List[Any] = [
            select(func.count(type_=Integer())).select_from(cte).scalar_subquery() for cte in (gone, part)
        ]
        last = select(*counts, part.c.namespace, part.c.id).order_by(
            part.c.namespace.desc(), part.c.id.desc()
        )
        return Statement(last.limit(1))

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def get(self) -> Statement:
        """Read documents by id."""
        ids = bindparam("ids", type_=ARRAY(Text))
        return self._kept(
            ("get",),
            lambda: Statement(
                select(*self._document()).where(*self._where(None), self._table.c.id == func.any(ids))
            ),
        )

    def count(self, bound: Optional[BoundFilter], *, space: bool) -> Statement:
        """Count in one namespace or in all."""
        return self._kept(
            ("count", _shape(bound), space),
            lambda: Statement(
                select(func.count(type_=Integer()))
                .select_from(self._table)
                .where(*self._where(_tree(bound), space=space))
            ),
        )

    def scroll(self, bound: Optional[BoundFilter], *, after: bool) -> Statement:
        """Read documents in the order of their ids."""
        c = self._table.c
        more = [c.id > bindparam("after", type_=Text())] if after else []
        return self._kept(
            ("scroll", _shape(bound), after),
            lambda: Statement(
                select(*self._document())
                .where(*self._where(_tree(bound)), *more)
                .order_by(c.id)
                .limit(_LIMIT)
            ),
        )

    def exact(
        self, bound: Optional[BoundFilter], *, metadata: bool, vector: bool, bounded: bool, recall: str = ""
    ) -> Statement:
        """The nearest by looking at every row that passes.

        Rows are (seen, distance, document columns). When `bounded`, at most `bound` rows are looked at and `seen` says
        how many there were: the answer counts only when it is below the bound.
        """
        key = ("exact", _shape(bound), metadata, vector, bounded, recall)
        return self._kept(
            key, lambda: Statement(self._exact(_tree(bound), metadata, vector, bounded, recall))
        )

    def _exact(self, tree: Optional[Filter], metadata: bool, vector: bool, bounded: bool, recall: str) -> Any:
        c = self._table.c
        matched = select(c.namespace, c.id, self._unindexed_distance.label("distance")).where(
            *self._where(tree, space=not recall), *([_ONE_IN_TEN] if recall == "filtered" else [])
        )
        if bounded:
            # asked twice, so PostgreSQL computes it once
            all_of = matched.limit(_BOUND).cte("matched")
            seen: Any = select(func.count(type_=Integer())).select_from(all_of).scalar_subquery()
            near = (
                select(all_of.c.namespace, all_of.c.id, all_of.c.distance)
                .order_by(all_of.c.distance, all_of.c.id)
                .limit(_LIMIT)
                .cte("near")
            )
        else:
            seen = literal_column("0", Integer())
            near = matched.order_by(literal_column("distance"), c.id).limit(_LIMIT).cte("near")
        return (
            select(seen.label("seen"), near.c.distance, *self._document(metadata=metadata, vector=vector))
            .select_from(
                near.join(
                    self._table,
                    and_(c.tenant_id == _TENANT, c.namespace == near.c.namespace, c.id == near.c.id),
                )
            )
            .order_by(near.c.distance, c.id)
        )

    def indexed_search(
        self, bound: Optional[BoundFilter], *, metadata: bool, vector: bool, recall: str = ""
    ) -> Statement:
        """The nearest by the index, more of them than wanted (`row_limit`), each with its exact distance."""
        key = ("ann", _shape(bound), metadata, vector, recall)
        return self._kept(key, lambda: Statement(self._indexed(_tree(bound), metadata, vector, recall)))

    def first_look(self, top_k: int, *, metadata: bool, vector: bool) -> Statement:
        """The nearest among the index's first candidates: fewer than `top_k` where too few of them are in the scope.

        PostgreSQL keeps its plan (a new one costs a quarter of the search): with the limit in the text, the plan for all
        parameters is no dearer than one for these. And it always scans the index: where one tenant has most of the table
        and many have a row each, the plan for all would else sort whatever the tenant has.
        """
        key = ("first", top_k, metadata, vector)
        return self._kept(key, lambda: Statement(self._first(top_k, metadata, vector)))

    def _first(self, top_k: int, metadata: bool, vector: bool) -> Any:
        c = self._table.c
        effort = IVFFLAT_FIRST if self.options.type == "ivfflat" else HNSW_FIRST
        # a condition that no other index serves, and of whose rarity PostgreSQL knows nothing
        scope = case((and_(c.tenant_id == _TENANT, c.namespace == _SPACE), true()))
        limit = literal_column(str(int(top_k)), Integer())
        return self._scan([effort, scope], metadata, vector, limit)

    def _scan(self, conditions: List[Any], metadata: bool, vector: bool, limit: ColumnElement[int]) -> Any:
        """No more rows than wanted, and the caller sorts them: nothing is left to do around the scan."""
        columns = [self._exact_distance.label("distance"), *self._document(metadata=metadata, vector=vector)]
        return (
            select(literal_column("0", Integer()).label("seen"), *columns)
            .where(*conditions)
            .order_by(self._indexed_distance)
            .limit(limit)
        )

    def _indexed(self, tree: Optional[Filter], metadata: bool, vector: bool, recall: str) -> Any:
        effort = IVFFLAT_EFFORT if self.options.type == "ivfflat" else HNSW_EFFORT
        if tree is None and not recall:
            return self._scan([effort, *self._where(None)], metadata, vector, _LIMIT)
        near = (
            select(self._exact_distance.label("distance"), *self._document(metadata=metadata, vector=vector))
            .where(
                effort,
                *self._where(tree, space=not recall),
                *([_ONE_IN_TEN] if recall == "filtered" else []),
            )
            .order_by(self._indexed_distance)
            .limit(_LIMIT)
            .cte("near")
        )
        columns = [column for column in near.c if column.name != "distance"]
        order = [near.c.distance, near.c.id]
        return (
            select(literal_column("0", Integer()).label("seen"), near.c.distance, *columns)
            .order_by(*order)
            .limit(_BOUND)
        )


def _shape(bound: Optional[BoundFilter]) -> Optional[str]:
    return None if bound is None else bound.shape


def _tree(bound: Optional[BoundFilter]) -> Optional[Filter]:
    return None if bound is None else bound.tree
