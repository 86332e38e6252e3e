"""The project's own files as syntax trees: what the rules in this directory are checked on."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Finding(NamedTuple):
    """One place that breaks a rule."""

    path: str
    scope: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} in {self.scope}: {self.what}"


class Source(NamedTuple):
    """One parsed file; ``path`` is relative to the root and is what allowlists name."""

    path: str
    tree: ast.Module
    lines: int

    @property
    def module(self) -> str:
        """The dotted name, a package's ``__init__`` being the package."""
        return self.path[: -len(".py")].replace("/", ".").replace(".__init__", "")


def parse(text: str, path: str = "modules/example.py") -> Source:
    """Return ``text`` as a source, for the tests that show that a rule can fail."""
    return Source(path, ast.parse(text), text.count("\n") + 1)


def product() -> List[Source]:
    """Return every Python file of ``modules`` and ``ATLAS``."""
    return [source for top in ("modules", "ATLAS") for source in _under(top)]


def everything() -> List[Source]:
    """Return the product and what is around it: tests, benchmarks, examples, scripts."""
    return product() + [s for top in ("tests", "benchmarks", "examples", "scripts") for s in _under(top)]


@functools.cache
def _under(top: str) -> Tuple[Source, ...]:
    """Read and parse what is under a directory, once: every rule looks at the same trees, and changes none."""
    return tuple(_parsed(file) for file in sorted((ROOT / top).rglob("*.py")))


def _parsed(file: Path) -> Source:
    text = file.read_text(encoding="utf-8")
    return Source(file.relative_to(ROOT).as_posix(), ast.parse(text), len(text.splitlines()))


def walk(tree: ast.AST) -> List[Tuple[ast.AST, str]]:
    """Return every node with the dotted name of the class or function that it stands in."""
    known = _walked.get(tree)
    if known is None:
        known = _walked[tree] = list(_walk(tree, ""))
    return known


#: What was walked before: the trees of the files are looked at by one rule after the other.
_walked: Dict[ast.AST, List[Tuple[ast.AST, str]]] = {}


@pytest.fixture(scope="module", autouse=True)
def trees_are_let_go() -> Iterator[None]:
    """Forget the trees with a module's last test: with a million nodes more, the collector would hold up later ones."""
    yield
    _under.cache_clear()
    _walked.clear()


def _walk(tree: ast.AST, scope: str) -> Iterator[Tuple[ast.AST, str]]:
    for child in ast.iter_child_nodes(tree):
        yield child, scope or "<module>"
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _walk(child, f"{scope}.{child.name}" if scope else child.name)
        else:
            yield from _walk(child, scope)


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for a name or attribute, with ``?`` for what is computed."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def report(findings: List[Finding]) -> str:
    """Return the findings as lines; empty when there are none, so that ``assert not report(...)`` prints them."""
    return "\n".join(str(finding) for finding in findings)
