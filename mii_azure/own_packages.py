"""The packages that come with this one, found beside it whatever of their names lies elsewhere.

A notebook's folder is first on the import path, and may hold a scoring.py, a templates/ or a local_runner.py of the
user's own. Standard library only: it runs before everything else.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

#: A file that each of the packages has, in a bundle's copy too.
_MARKS = {"local_runner": "errors.py", "scoring": "host_api.py", "templates": "images.json"}
_ROOT = str(Path(__file__).resolve().parents[1])


class OwnPackages(MetaPathFinder):
    """Finder of these packages; of nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find one of the packages where this one lies."""
        return PathFinder.find_spec(fullname, [_ROOT]) if fullname in _MARKS and path is None else None


def put_first() -> None:
    """Have the packages found, and modules of their names that were imported from elsewhere set aside.

    Whoever imported those keeps them; a later import of such a name gives ours.
    """
    for name in _MARKS:
        loaded = sys.modules.get(name)
        if loaded is not None and not _is_ours(loaded, name):
            for each in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
                del sys.modules[each]
    if not any(isinstance(finder, OwnPackages) for finder in sys.meta_path):
        sys.meta_path.insert(0, OwnPackages())


def _is_ours(module: ModuleType, name: str) -> bool:
    """True for a package of that name that could be ours: this one's sibling, or a bundle's copy of it."""
    places = [Path(place) for place in getattr(module, "__path__", [])]
    return any((place / _MARKS[name]).is_file() for place in places)
