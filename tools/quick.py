"""Runs the laws and the tests of what differs from `main`: `make quick`, for the minutes between two full runs."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mii_azure", "scoring", "local_runner")
#: Held on every change.
LAWS = ("tests/test_laws.py", "tests/test_design.py")
#: Written by the code of these, and compared with it.
_PAGES = "tests/test_docs.py::test_pages_that_the_code_writes_are_current"
#: Tests of what no folder of tests mirrors, or of which more than the mirrored folder tells; the longest prefix counts.
TESTS_OF: dict[str, tuple[str, ...]] = {
    "docs/": (_PAGES,),
    "local_runner/container.py": ("tests/scenarios/parity/test_container.py",),
    "local_runner/__main__.py": ("tests/local_runner/test_lifecycle.py",),
    "local_runner/server.py": ("tests/local_runner/test_lifecycle.py",),
    "local_runner/process/": ("tests/local_runner/test_lifecycle.py",),
    "local_runner/protos/": ("tests/local_runner/test_protos.py", "tests/local_runner/grpc"),
    "mii_azure/cli/": ("tests/mii_azure/cli", _PAGES),
    "mii_azure/data/families.json": ("tests/mii_azure/model", "tests/mii_azure/planning"),
    "mii_azure/data/model_types.json": ("tests/test_families.py",),
    "mii_azure/data/seed_models.json": ("tests/mii_azure/planning",),
    "mii_azure/data/skus.json": ("tests/mii_azure/hardware", "tests/mii_azure/planning"),
    "mii_azure/data/tasks.json": ("tests/mii_azure/model", "tests/mii_azure/planning"),
    "mii_azure/operations/": ("tests/mii_azure/azure",),
    "mii_azure/preflight/": ("tests/mii_azure/azure/test_online.py",),
    "scoring/model_files/": ("tests/scoring/model", "tests/mii_azure/model"),
    "scoring/passes/": ("tests/scoring/passes", _PAGES),
    "scoring/schema/": ("tests/scoring/api", "tests/scoring/tasks", "tests/mii_azure/bundle/test_openapi.py"),
    "scoring/telemetry/": ("tests/scoring/engine", "tests/local_runner/telemetry"),
    "templates/": ("tests/mii_azure/bundle",),
    "tests/golden/": ("tests/mii_azure/bundle/test_golden.py",),
    "mii_azure/model/packaged.py": ("tests/test_packaged_models.py",),
}


def main() -> int:
    """Run pytest on what was selected, and say what no test here holds."""
    found, without = select(changed())
    for path in without:
        print(f"no tests of its own: {path}; `make unit` runs them all")
    tests = list(dict.fromkeys([*LAWS, *found]))
    print("pytest", *tests, flush=True)
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=ROOT).returncode


def changed() -> list[str]:
    """Files that differ from where this branch left `main`, those that are not committed included."""
    known = subprocess.run(["git", "rev-parse", "-q", "--verify", "main"], cwd=ROOT, capture_output=True)
    base = _git("merge-base", "main", "HEAD")[0] if known.returncode == 0 else "HEAD"
    return sorted({*_git("diff", "--name-only", base), *_git("ls-files", "--others", "--exclude-standard")})


def select(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """(files and folders of tests, sorted; package files that none of them mirrors) of changed files."""
    found: set[str] = set()
    without = []
    for path in paths:
        tests = set(tests_of(path))
        found |= tests
        if not tests and path.endswith(".py") and path.startswith((*(f"{name}/" for name in PACKAGES), "tests/")):
            without.append(path)
    inside = {test for test in found if any(parent.as_posix() in found for parent in PurePosixPath(test).parents)}
    return sorted(found - inside), without


def tests_of(path: str) -> Iterator[str]:
    """Tests of one file, of those that exist."""
    named = max((prefix for prefix in TESTS_OF if path.startswith(prefix)), key=len, default=None)
    wanted = TESTS_OF[named] if named else _mirrored(PurePosixPath(path))
    yield from (test for test in wanted if (ROOT / test.partition("::")[0]).exists())


def _mirrored(path: PurePosixPath) -> tuple[str, ...]:
    """scoring/engine/x.py → tests/scoring/engine; a module beside the rooms → its own test; a test → itself."""
    package, *below = path.parts
    if package == "tests":
        if path.name.startswith("test_"):
            return (str(path),) if path.suffix == ".py" else ()
        return (str(path.parent),) if len(below) > 2 else ()  # a helper of one room; others are used everywhere
    if package not in PACKAGES:
        return ()
    if len(below) == 1:
        return (f"tests/{package}/test_{path.name}",)
    room = PurePosixPath("tests") / path.parent
    while not (ROOT / room).is_dir():
        room = room.parent
    return (str(room),) if len(room.parts) > 2 else ()


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main())
