"""Which tests assert something and which sleep, read from their source; what the laws on them are held on."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef

#: Calls that fail a test by themselves, by the last part of their name.
CHECKS = {"raises", "warns", "fail"}


class Source(NamedTuple):
    """One file of tests: its functions, what it imports from other files of tests, and the modules that it names."""

    functions: list[Function]
    imported: set[str]
    modules: set[str]


def tests_without(folder: Path) -> list[str]:
    """Tests below a folder that nothing but an error can fail: file::function, sorted."""
    sources = {path.relative_to(folder).as_posix(): _read(path) for path in sorted(folder.rglob("*.py"))}
    asserting = _asserting(sources.values())
    checking = {each.name for source in sources.values() for each in source.functions if _checks_after_its_test(each)}
    return [
        f"{name}::{test.name}"
        for name, source in sources.items()
        for test in source.functions
        if Path(name).name.startswith("test_") and test.name.startswith("test_")
        if not _asserts(test, source, asserting) and not checking & {argument.arg for argument in test.args.args}
    ]


def _read(path: Path) -> Source:
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    functions = [node for node in nodes if isinstance(node, Function)]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests")]
    modules = {alias.asname or alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return Source(functions, {alias.name for node in imports for alias in node.names}, modules)


def _asserting(sources: Iterable[Source]) -> set[str]:
    """Names of which every function asserts, be it by calling another."""
    found: set[str] = set()
    while True:
        failing = {f.name for source in sources for f in source.functions if not _asserts(f, source, found)}
        more = {function.name for source in sources for function in source.functions} - failing
        if more == found:
            return found
        found = more


def _asserts(function: Function, source: Source, asserting: set[str]) -> bool:
    own = {each.name for each in source.functions if each is not function}
    return any(_is_check(node, source, own, asserting) for node in ast.walk(function))


def _is_check(node: ast.AST, source: Source, own: set[str], asserting: set[str]) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    if isinstance(called, ast.Name):
        return called.id in asserting & (own | source.imported)
    if not isinstance(called, ast.Attribute):
        return False
    of_module = isinstance(called.value, ast.Name) and called.value.id in source.modules - {"pytest"}
    return called.attr.startswith("assert") or (not of_module and called.attr in CHECKS | asserting)


def _checks_after_its_test(function: Function) -> bool:
    """Whether a fixture asserts after its yield."""
    yields = [node.lineno for node in ast.walk(function) if isinstance(node, ast.Yield)]
    asserts = [node.lineno for node in ast.walk(function) if isinstance(node, ast.Assert)]
    return bool(yields and asserts) and max(asserts) > min(yields)


def sleepers(path: Path) -> set[str]:
    """Functions of a file that sleep: the innermost one around each call of `sleep`."""
    return set(_sleepers(ast.parse(path.read_text("utf-8")), ""))


def _sleepers(node: ast.AST, inside: str) -> Iterator[str]:
    if isinstance(node, Function):
        inside = node.name
    if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "sleep":
        yield inside
    for child in ast.iter_child_nodes(node):
        yield from _sleepers(child, inside)
