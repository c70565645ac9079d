"""The modules of the packages and what each imports, read from their source; what the structural laws are held on."""

import ast
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mii_azure", "templates", "local_runner", "scoring")

#: {module: modules of the packages that it imports}, lazy imports and those for types alone included.
Graph = dict[str, set[str]]


def sources(root: Path = ROOT) -> dict[str, Path]:
    """{dotted name: file} of every Python file below the packages, generated protos left out."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if "protos" not in path.parts:
                name = ".".join(path.relative_to(root).with_suffix("").parts)
                found[name.removesuffix(".__init__")] = path
    return found


@cache
def module_graph(root: Path = ROOT) -> Graph:
    """Imports between the modules that Python can import: files whose folders are packages."""
    importable = {name: path for name, path in sources(root).items() if (path.parent / "__init__.py").is_file()}
    return {name: set(_imports(name, path, importable)) for name, path in importable.items()}


def _imports(name: str, path: Path, known: Collection[str]) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, [above, node.module]))
            wanted = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        found = (_known(module, known) for module in wanted if ".protos" not in module)
        yield from (module for module in found if module and module != name)


def _known(name: str, known: Collection[str]) -> str:
    """The module that a dotted name lies in; "" for one of no package."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def cycles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Groups of modules each of which reaches all others of its group; both lists sorted."""
    reach = {name: _reach(graph, name) for name in graph}
    groups = {frozenset(m for m in reach[name] if name in reach[m]) for name in graph if name in reach[name]}
    return sorted(sorted(group) for group in groups)


def _reach(graph: Mapping[str, Collection[str]], start: str) -> set[str]:
    found: set[str] = set()
    left = list(graph[start])
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += graph[name]
    return found


def upward(graph: Mapping[str, Collection[str]], package: str, rooms: Collection[str]) -> list[str]:
    """Imports within a package that go up, as `importer → imported`, for its rooms from the lowest to the highest.

    A room is a folder or a module, by its name below the package, and the innermost that holds a module counts. Raises
    ValueError for a module of no room.
    """
    order = {f"{package}.{room}": place for place, room in enumerate(rooms)} | {package: len(rooms)}
    modules = {name for name in graph if name == package or name.startswith(f"{package}.")}
    rooms_of = {name: _known(name, order) for name in modules}
    if homeless := sorted(name for name, room in rooms_of.items() if room == package != name):
        raise ValueError(f"in no room: {', '.join(homeless)}")
    places = {name: order[room] for name, room in rooms_of.items()}
    arrows = [(a, b) for a in modules for b in graph[a] if b in modules and places[b] > places[a]]
    return sorted(f"{a} → {b}" for a, b in arrows)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(qualified name, lines) of every function of a file, nested ones and methods included."""
    yield from _functions(ast.parse(path.read_text(encoding="utf-8")), "")


def _functions(node: ast.AST, within: str) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        name = within
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{within}.{child.name}".lstrip(".")
            if not isinstance(child, ast.ClassDef):
                yield name, (child.end_lineno or child.lineno) - child.lineno + 1
        yield from _functions(child, name)


def docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a file: of the module, and of every class and function in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from filter(None, [ast.get_docstring(node)])


def public_classes(path: Path) -> list[str]:
    """Names of the classes that a file defines at its top level, private ones left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def shared_names(modules: Collection[str]) -> set[str]:
    """`package.module` for every name that several modules of a package bear; packages' own files do not count."""
    folders = {name.rpartition(".")[0] for name in modules}
    names = Counter(
        f"{name.partition('.')[0]}.{name.rpartition('.')[2]}"
        for name in modules
        if name not in folders and name not in PACKAGES
    )
    return {name for name, count in names.items() if count > 1}
