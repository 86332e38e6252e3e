"""Making a vector provider of its name: what a storage manager has to give, and how it becomes a constructor's arguments.

Our own providers take plain values and know nothing of settings; what the settings mean to each of them stands here. A
provider of somebody else says it in its own `from_context`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Type

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.registry import get_vector_provider
from modules.store_common.errors import InvalidValueError, NotConfiguredError, StorageError
from modules.store_common.tenancy import TenantPolicy

if TYPE_CHECKING:
    from modules.storage.operations import Executor
    from modules.storage.settings import VectorBackendSettings

__all__ = ["VectorContext", "make_vector_provider"]

_Arguments = Callable[["VectorContext"], Dict[str, Any]]


@dataclass(frozen=True)
class VectorContext:
    """What a storage manager gives to a provider that it makes.

    Attributes:
        settings: The section `vectors` of the settings.
        tenancy: How the tenant of a call is found; hand it to `VectorProvider.__init__`.
        executor: Of the SQL database; None: there is none. Whoever made it closes it.
        options: What whoever asked for the provider says beyond the settings.
    """

    settings: VectorBackendSettings
    tenancy: TenantPolicy
    executor: Optional[Executor] = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def require_executor(self, dialect: str, provider: str) -> Executor:
        """Return the executor (that of the options, where they name one) if it is of `dialect`.

        Raises:
            NotConfiguredError: it is of another one; says what to do.
        """
        executor: Optional[Executor] = self.options.get("executor", self.executor)
        if executor is None or executor.dialect != dialect:
            needs = {"sqlite": "a SQLite database", "postgresql": "PostgreSQL"}[dialect]
            raise NotConfiguredError(
                f"the vector store {provider} needs {needs}; change sql.url, or set vectors.backend to another one"
            )
        return executor


def make_vector_provider(name: str, context: VectorContext) -> VectorProvider:
    """Return a new provider, not open yet.

    Args:
        name: One of `available_vector_providers()`.
        context: What it is made of; its options are arguments of the constructor and win over the settings.

    Raises:
        NotConfiguredError: there is no such provider, or not on this database.
        MissingDependencyError: its package is not installed.
        InvalidValueError: an option is not one of the provider's.
    """
    provider = get_vector_provider(name)
    arguments = _ARGUMENTS.get(name)
    if arguments is None or _makes_itself(provider):
        made = provider.from_context(context)
        if not isinstance(made, VectorProvider):
            raise StorageError(f"from_context of the vector provider {name!r} returned no VectorProvider")
        return made
    given = {**arguments(context), "tenancy": context.tenancy, **context.options}
    try:
        return provider(**given)
    except TypeError as exc:
        raise InvalidValueError(
            f"the vector provider {name!r} has no such option, or not of this type, among: "
            + ", ".join(sorted(str(option)[:60] for option in context.options))
        ) from exc


def _makes_itself(provider: Type[VectorProvider]) -> bool:
    own: Any = provider.from_context
    inherited: Any = VectorProvider.from_context
    return own.__func__ is not inherited.__func__


def _in_memory(context: VectorContext) -> Dict[str, Any]:
    return {}


def _sqlite(context: VectorContext) -> Dict[str, Any]:
    executor = context.require_executor("sqlite", "sqlite")
    return {"executor": executor, "ann_rows": context.settings.sqlite_ann_rows}


def _pgvector(context: VectorContext) -> Dict[str, Any]:
    from modules.storage.vectors.pgvector_options import IndexOptions

    settings = context.settings
    index = IndexOptions(
        type=settings.pgvector_index_type.value,
        m=settings.pgvector_m,
        # pgvector takes no less than 2 * m
        ef_construction=max(settings.pgvector_ef_construction, 2 * settings.pgvector_m),
        lists=settings.pgvector_lists,
    )
    return {"executor": context.require_executor("postgresql", "pgvector"), "index": index}


def _chroma(context: VectorContext) -> Dict[str, Any]:
    settings = context.settings
    token = settings.chroma_auth_token
    return {
        "persist_directory": settings.chroma_persist_directory,
        "host": settings.chroma_host,
        "port": settings.chroma_port,
        "auth_token": None if token is None else token.get_secret_value(),
        "chroma_tenant": settings.chroma_tenant,
        "chroma_database": settings.chroma_database,
    }


def _pinecone(context: VectorContext) -> Dict[str, Any]:
    settings = context.settings
    key = settings.pinecone_api_key
    # Pinecone's word for it is another one
    metric = {"dotproduct": "dot_product"}.get(settings.pinecone_metric.value, settings.pinecone_metric.value)
    given: Dict[str, Any] = {
        "api_key": "" if key is None else key.get_secret_value(),
        "index_name": settings.pinecone_index_name,
        "dimension": settings.embedding_dimension,
        "metric": metric,
    }
    if settings.pinecone_environment is not None:
        given["region"] = settings.pinecone_environment
    if settings.pinecone_namespace is not None:
        given["namespace"] = settings.pinecone_namespace
    return given


_ARGUMENTS: Dict[str, _Arguments] = {
    "chroma": _chroma,
    "in_memory": _in_memory,
    "pgvector": _pgvector,
    "pinecone": _pinecone,
    "sqlite": _sqlite,
}
