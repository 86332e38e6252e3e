"""House rules that no linter knows, checked on the syntax tree of every file; each is shown to be able to fail."""

from __future__ import annotations

import ast
import re
from typing import Callable, Dict, Iterable, Iterator, List, Set, Tuple

import pytest

from . import sources
from .sources import Finding, Source, dotted, everything, parse, product, report, walk

trees_are_let_go = sources.trees_are_let_go

LONGEST_FILE = 450

# What runs code when it reads bytes (P34).
UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "jsonpickle",
    "joblib",
}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"}
SAFE_YAML_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "SafeLoader", "CSafeLoader"}

# A dynamic import from a name that is no constant: (file, scope) -> why the name cannot come from data.
DYNAMIC_IMPORTS: Dict[Tuple[str, str], str] = {
    ("modules/storage/__init__.py", "__getattr__"): "the name is a value of the constant table above it",
    (
        "modules/orchestration/__init__.py",
        "__getattr__",
    ): "the name is a value of the constant table above it",
    (
        "modules/orchestration/handlers.py",
        "load_handlers",
    ): "the command line names modules of the operator's own (--import), as `python -m` does; no data does",
    (
        "modules/storage/vectors/registry.py",
        "get_vector_provider",
    ): "the name is a value of the constant table _OURS; what others bring is loaded by their entry point",
    (
        "modules/storage/embedders_local.py",
        "load",
    ): "the setting `embedder` names code of the application's own (module:callable), as an entry point does",
}

LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}
LOG_KEYS = {
    "backend", "operation", "store", "entity_id", "tenant_id", "attempt", "duration_ms", "error_type", "count", "detail",
}  # fmt: skip
EVENT = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)+")

LOOP_BOUND = {
    f"asyncio.{name}" for name in ("Lock", "Event", "Condition", "Semaphore", "BoundedSemaphore", "Queue")
}

Rule = Callable[[Source], Iterable[Finding]]


def _found(source: Source, node: ast.AST, scope: str, what: str) -> Finding:
    return Finding(source.path, scope, getattr(node, "lineno", 1), what)


def runs_code_from_bytes(source: Source) -> Iterator[Finding]:
    """No pickle and its kin, no eval, no unsafe YAML, no import by a computed name (P34)."""
    for node, scope in walk(source.tree):
        names: List[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.split(".")[0] in UNSAFE_MODULES:
                yield _found(source, node, scope, f"imports {name}")
        if isinstance(node, ast.Call):
            yield from _unsafe_call(source, node, scope)


def _unsafe_call(source: Source, node: ast.Call, scope: str) -> Iterator[Finding]:
    name = dotted(node.func)
    if name in UNSAFE_CALLS:
        yield _found(source, node, scope, f"calls {name}()")
    if re.fullmatch(r"yaml\.(unsafe_|full_)load(_all)?", name):
        yield _found(source, node, scope, f"calls {name}()")
    if name in ("yaml.load", "yaml.load_all"):
        loaders = [k.value for k in node.keywords if k.arg == "Loader"] + node.args[1:2]
        if not loaders or dotted(loaders[0]) not in SAFE_YAML_LOADERS:
            yield _found(source, node, scope, f"calls {name}() without a safe loader")
    constant = bool(node.args) and isinstance(node.args[0], ast.Constant)
    if name in ("importlib.import_module", "import_module") and not constant:
        if (source.path, scope) not in DYNAMIC_IMPORTS:
            yield _found(source, node, scope, "imports a module by a computed name")


def swallows_errors(source: Source) -> Iterator[Finding]:
    """A broad ``except`` that only passes, or ``suppress(Exception)``."""
    broad = {"Exception", "BaseException"}
    for node, scope in walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = [node.type] if not isinstance(node.type, ast.Tuple) else list(node.type.elts)
            silent = all(isinstance(s, (ast.Pass, ast.Continue)) or _is_text(s) for s in node.body)
            if silent and any(kind is None or dotted(kind) in broad for kind in kinds):
                yield _found(source, node, scope, "swallows every error")
        if isinstance(node, ast.Call) and dotted(node.func) in ("suppress", "contextlib.suppress"):
            if any(dotted(argument) in broad for argument in node.args):
                yield _found(source, node, scope, "suppresses every error")


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def binds_the_wrong_loop(source: Source) -> Iterator[Finding]:
    """An asyncio primitive that is made at import or in ``__init__``: on 3.9 it binds whatever loop is current."""
    for node, scope in walk(source.tree):
        if (
            isinstance(node, ast.keyword)
            and node.arg == "default_factory"
            and dotted(node.value) in LOOP_BOUND
        ):
            yield _found(source, node.value, scope, f"default_factory={dotted(node.value)}")
        if isinstance(node, ast.Call) and dotted(node.func) in LOOP_BOUND:
            if scope == "<module>" or scope.split(".")[-1][0].isupper() or scope.endswith("__init__"):
                yield _found(source, node, scope, f"makes {dotted(node.func)}() outside a running loop")


def logs_off_the_list(source: Source) -> Iterator[Finding]:
    """A log call whose event name is not fixed, or whose ``extra`` is not a literal with known keys."""
    for node, scope in walk(source.tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr not in LOG_METHODS or dotted(node.func.value).split(".")[-1] not in LOGGERS:
            continue
        event = node.args[0] if node.args else None
        if not (isinstance(event, ast.Constant) and EVENT.fullmatch(str(event.value))) or len(node.args) > 1:
            yield _found(
                source, node, scope, 'the message must be one fixed event name such as "storage.initialized"'
            )
        for keyword in node.keywords:
            if keyword.arg == "extra" and not _literal_keys(keyword.value, source, scope):
                yield _found(
                    source, node, scope, f"extra must be a literal dict with keys of {sorted(LOG_KEYS)}"
                )


LOGGERS = {"logger", "log", "_logger", "_log", "LOGGER", "LOG"}


def _literal_keys(value: ast.expr, source: Source, scope: str) -> bool:
    if isinstance(value, ast.Name):  # a name that is given literals only, in the same function
        given = [
            node.value
            for node, where in walk(source.tree)
            if isinstance(node, ast.Assign) and where == scope and dotted(node.targets[0]) == value.id
        ]
        return bool(given) and all(isinstance(v, ast.Dict) and _literal_keys(v, source, scope) for v in given)
    return isinstance(value, ast.Dict) and all(
        isinstance(key, ast.Constant) and key.value in LOG_KEYS for key in value.keys
    )


def hides_or_invents_names(source: Source) -> Iterator[Finding]:
    """``__all__``, where there is one, is exactly the public names of the file (of a package: at least exists)."""
    stated = _stated(source.tree)
    if stated is None:
        return
    defined = _public_definitions(source.tree)
    bound = defined | _imported(source.tree)
    lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in source.tree.body)
    for name in sorted(stated - bound - {"__version__"}):
        if not lazy:
            yield _found(source, source.tree, "<module>", f"__all__ names {name}, which is not here")
    for name in sorted(defined - stated):
        yield _found(source, source.tree, "<module>", f"{name} is public but not in __all__")


def _stated(tree: ast.Module) -> object:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            value = getattr(node, "value", None)
            if isinstance(value, (ast.List, ast.Tuple)):
                return {item.value for item in value.elts if isinstance(item, ast.Constant)}
    return None


def _public_definitions(tree: ast.Module) -> Set[str]:
    names: Set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and not _is_plumbing(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def _is_plumbing(value: object) -> bool:
    """Loggers and type variables are public by spelling only."""
    name = dotted(value.func).split(".")[-1] if isinstance(value, ast.Call) else ""
    return name in {"getLogger", "TypeVar", "ParamSpec", "TypeVarTuple", "NewType"}


def _imported(tree: ast.Module) -> Set[str]:
    return {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }


def lacks_a_docstring(source: Source) -> Iterator[Finding]:
    """A file without the docstring that tells a new reader what the room is."""
    if source.tree.body and not ast.get_docstring(source.tree):
        yield _found(source, source.tree, "<module>", "the file has no docstring")


def is_too_long(source: Source) -> Iterator[Finding]:
    """A file past the limit is two rooms in one."""
    if source.lines > LONGEST_FILE and "/migrations/versions/" not in source.path:
        yield _found(source, source.tree, "<module>", f"{source.lines} lines, {LONGEST_FILE} at most")


RULES: Dict[Rule, str] = {
    runs_code_from_bytes: "product",
    swallows_errors: "product",
    binds_the_wrong_loop: "product",
    logs_off_the_list: "product",
    hides_or_invents_names: "product",
    lacks_a_docstring: "everything",
    is_too_long: "everything",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_nothing(rule: Rule) -> None:
    files = product() if RULES[rule] == "product" else everything()

    assert files
    assert not report([finding for source in files for finding in rule(source)])


BAD = [
    (runs_code_from_bytes, "import pickle"),
    (runs_code_from_bytes, "from marshal import loads"),
    (runs_code_from_bytes, "def f(x):\n    return eval(x)"),
    (runs_code_from_bytes, "yaml.load(text)"),
    (runs_code_from_bytes, "yaml.load(text, Loader=yaml.Loader)"),
    (runs_code_from_bytes, "yaml.unsafe_load(text)"),
    (runs_code_from_bytes, "importlib.import_module(row['module'])"),
    (swallows_errors, "try:\n    f()\nexcept Exception:\n    pass"),
    (swallows_errors, "try:\n    f()\nexcept (ValueError, BaseException):\n    '''why'''"),
    (swallows_errors, "try:\n    f()\nexcept:\n    pass"),
    (swallows_errors, "with contextlib.suppress(Exception):\n    f()"),
    (binds_the_wrong_loop, "LOCK = asyncio.Lock()"),
    (binds_the_wrong_loop, "class A:\n    def __init__(self):\n        self.q = asyncio.Queue()"),
    (binds_the_wrong_loop, "class A:\n    e: object = field(default_factory=asyncio.Event)"),
    (logs_off_the_list, "logger.info(f'opened {path}')"),
    (logs_off_the_list, "logger.info('Opened the file')"),
    (logs_off_the_list, "logger.info('pool.opened %s', url)"),
    (logs_off_the_list, "self._logger.error('pool.failed', extra={'name': 1})"),
    (logs_off_the_list, "logger.error('pool.failed', extra=values)"),
    (logs_off_the_list, "def f():\n    values = {'url': 1}\n    logger.error('pool.failed', extra=values)"),
    (hides_or_invents_names, "__all__ = ['gone']"),
    (hides_or_invents_names, "__all__ = []\ndef public(): ..."),
    (hides_or_invents_names, "__all__ = []\nLIMIT: int = 3"),
    (lacks_a_docstring, "x = 1"),
    (is_too_long, "'''d'''\n" * (LONGEST_FILE + 1)),
]

GOOD = [
    (
        runs_code_from_bytes,
        "yaml.load(text, Loader=yaml.SafeLoader)\nre.compile('x')\nimportlib.import_module('asyncpg')",
    ),
    (swallows_errors, "try:\n    f()\nexcept FileNotFoundError:\n    pass"),
    (swallows_errors, "try:\n    f()\nexcept Exception:\n    logger.exception('a.b')"),
    (
        binds_the_wrong_loop,
        "async def f():\n    return asyncio.Lock()\nclass A:\n    lock = threading.Lock()",
    ),
    (
        logs_off_the_list,
        "logger.info('pool.opened', extra={'backend': 'sqlite', 'duration_ms': 3})\nmath.log('x y')",
    ),
    (
        hides_or_invents_names,
        "__all__ = ['f']\nlogger = logging.getLogger(__name__)\ndef f(): ...\ndef _g(): ...",
    ),
]


@pytest.mark.parametrize(("rule", "text"), BAD)
def test_the_rule_can_fail(rule: Rule, text: str) -> None:
    assert list(rule(parse(text)))


@pytest.mark.parametrize(("rule", "text"), GOOD)
def test_the_rule_leaves_good_code_alone(rule: Rule, text: str) -> None:
    assert not report(list(rule(parse(text))))


def test_exceptions_to_the_rules_are_still_needed() -> None:
    scopes = {(source.path, scope) for source in product() for _, scope in walk(source.tree)}

    assert not [place for place in DYNAMIC_IMPORTS if place not in scopes]
