"""The memory that `plan` says a model needs, against what was measured on a GPU: `benchmarks/results/memory.json`."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.memory import BAR, replan

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results" / "memory.json"
ROWS: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]


def test_five_models_or_more_were_measured() -> None:
    assert len({row["model"] for row in ROWS}) >= 5


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["model"]))
def test_planned_within_a_tenth_of_what_was_measured(row: dict[str, Any]) -> None:
    now = replan(row)
    assert abs(now["planned/measured"] - 1) <= BAR
    assert now["planned GB"] == pytest.approx(row["planned GB"])  # the results tell today's plan
