"""JSON files of any size are read within the memory that they take."""

import tracemalloc
from pathlib import Path

from scoring.strict_json.files import LARGEST_FILE, read_file


def test_a_small_file_sets_aside_little_memory(tmp_path: Path) -> None:
    """A start within a limit on its memory reads its settings with what is left."""
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}', encoding="utf-8")
    tracemalloc.start()
    try:
        assert read_file(path) == {"a": 1}
        assert tracemalloc.get_traced_memory()[1] < LARGEST_FILE / 16
    finally:
        tracemalloc.stop()
