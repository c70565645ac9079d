"""The map is of this country: files that DESIGN.md and CONTRIBUTING.md name exist, and every room is on it."""

import re
from pathlib import Path

import pytest

from tests.test_laws import ROOMS
from tools import quick

ROOT = Path(__file__).resolve().parent.parent
MAPS = ("DESIGN.md", "CONTRIBUTING.md")
_TOPS = ("mii_azure", "scoring", "templates", "local_runner", "tests", "tools", "docs", "benchmarks")
#: A path from the root: below one of its folders, or a file that stands there.
_PATH = re.compile(rf"(?:{'|'.join(_TOPS)})/[\w./*<>-]*|[A-Z]+\.md|pyproject\.toml|constraints\.txt|Makefile")


def named(text: str) -> list[str]:
    """Paths in backticks, `<x>` for what a reader is to write."""
    return [each for each in re.findall(r"`([^`\n]+)`", text) if _PATH.fullmatch(each)]


def there(path: str, root: Path = ROOT) -> bool:
    """Whether a path exists; of one that a reader is to write, whether its folder does."""
    known = path.partition("<")[0].rpartition("/")[0] if "<" in path else path.rstrip("/")
    return any(each.is_dir() or not path.endswith("/") for each in root.glob(known))


@pytest.mark.parametrize("document", MAPS)
def test_files_that_a_map_names_exist(document: str) -> None:
    paths = named((ROOT / document).read_text(encoding="utf-8"))
    assert len(paths) > 40
    assert [path for path in paths if not there(path)] == []


def test_what_is_not_there_is_noticed() -> None:
    told = ("scoring/nothing.py", "scoring/tasks/<x>.py", "scoring/nowhere/<x>.py", "a/b", "scoring/entry.py/", "docs/")
    paths = named(", ".join(f"`{each}`" for each in told))
    assert [path for path in paths if not there(path)] == [
        "scoring/nothing.py",
        "scoring/nowhere/<x>.py",
        "scoring/entry.py/",
    ]
    assert len(paths) == 5


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_exists_and_is_on_the_map_in_its_place(package: str) -> None:
    text = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
    rooms = [f"{package}/{room.replace('.', '/')}" for room in ROOMS[package]]
    paths = [f"{room}/" if (ROOT / room).is_dir() else f"{room}.py" for room in rooms]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert re.findall(rf"^\| `({package}/[^`]+)` \|", text, re.MULTILINE) == paths


def test_every_room_of_tests_is_on_the_map() -> None:
    text = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
    scenarios = [path.name for path in (ROOT / "tests" / "scenarios").iterdir() if (path / "__init__.py").is_file()]
    folders = ["scoring", "mii_azure", "local_runner", "golden", *(f"scenarios/{name}" for name in scenarios)]
    assert [folder for folder in folders if f"`tests/{folder}/`" not in text] == []


def test_every_target_of_make_is_told() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE)
    assert targets == re.findall(r"^([a-z][a-z-]*):.*## ", makefile, re.MULTILINE)
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [target for target in targets if f"`make {target}`" not in told] == []


@pytest.mark.parametrize(
    ("path", "tests"),
    [
        ("scoring/engine/engine.py", ["tests/scoring/engine"]),
        ("scoring/decoder/adapters/llama.py", ["tests/scoring/decoder"]),
        ("mii_azure/spec.py", ["tests/mii_azure/test_spec.py"]),
        ("templates/deployment.yml.j2", ["tests/mii_azure/bundle"]),
        ("tests/scoring/engine/test_engine.py", ["tests/scoring/engine/test_engine.py"]),
        ("tests/scenarios/fuzz/payloads.py", ["tests/scenarios/fuzz"]),
        ("tests/scoring/engine/test_that_was_removed.py", []),
        ("scoring/errors.py", []),
        ("README.md", []),
    ],
)
def test_quick_finds_the_tests_of_a_file(path: str, tests: list[str]) -> None:
    assert quick.select([path])[0] == tests


def test_quick_names_each_test_once_and_what_has_none() -> None:
    found, without = quick.select(["scoring/errors.py", "tests/scoring/engine/test_engine.py", "scoring/engine/row.py"])
    assert (found, without) == (["tests/scoring/engine"], ["scoring/errors.py"])


@pytest.mark.parametrize("package", ROOMS)
def test_quick_knows_tests_of_every_room(package: str) -> None:
    rooms = [ROOT / package / room for room in ROOMS[package] if (ROOT / package / room).is_dir()]
    files = [path.relative_to(ROOT).as_posix() for room in rooms for path in sorted(room.rglob("*.py"))]
    assert len(files) > 20
    assert quick.select(files)[1] == []


def test_what_quick_is_told_of_tests_exists() -> None:
    named_tests = [test for tests in quick.TESTS_OF.values() for test in tests]
    assert [test for test in named_tests if not there(test.partition("::")[0])] == []
    assert [path for path in quick.TESTS_OF if not there(path)] == []
