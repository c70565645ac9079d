"""The benchmark of planted faults: what it keeps is of one revision, and its table tells what fewer bits hide."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import faulty_servers, parity_faults, parity_tables
from benchmarks.cpu import neighbour
from mii_azure.verdict.tokens.judge import ROUNDING, Answered


def test_a_tree_with_changes_is_refused_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_faults, "revision", lambda: "abc1234+")
    with pytest.raises(SystemExit, match="changes over abc1234"):
        parity_faults.measured_revision(dirty=False)
    assert parity_faults.measured_revision(dirty=True) == "abc1234+"
    monkeypatch.setattr(parity_faults, "revision", lambda: "abc1234")
    assert parity_faults.measured_revision(dirty=False) == "abc1234"


class Judged:
    """What a judge returns, as a model."""

    def model_dump(self) -> dict[str, object]:
        return {"agree": True}


def test_verdicts_of_another_revision_are_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    monkeypatch.setattr(parity_faults, "_CACHE", tmp_path)

    def judge(reference: object, told: Answered, named: object) -> Judged:
        judged.append(told.target)
        return Judged()

    monkeypatch.setattr(parity_faults, "judge", judge)
    told = Answered(target="seed", precision="float32", asked=0, answers=())
    for now, answers in (("a", ""), ("a", ""), ("b", ""), ("b", "a"), ("b+", ""), ("b+", "")):
        row = parity_faults.Kept(now, answers).verdict("seed", told, None, [])  # type: ignore[arg-type]
        assert (row["judged by"], row["answered by"]) == (now, answers or now)
    assert len(judged) == 5  # but the second: a tree with changes has no name of its own


def test_answers_are_found_where_they_were_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_faults, "_CACHE", tmp_path)
    parity_faults.Kept("a")
    (tmp_path / "a" / "seed.answers.json").write_text(json.dumps({"one": "text"}), encoding="utf-8")
    assert parity_faults.Kept("a").texts("seed") == parity_faults.Kept("b", "a").texts("seed") == {"one": "text"}
    assert parity_faults.Kept("b").texts("seed") == {}


def test_a_row_replaces_its_own_alone() -> None:
    before = {"rows": [{"fault": "one", "seen": 1}, {"fault": "two", "seen": 1}], "clean": {"runs": 3}}
    after = parity_faults.merged(before, [{"fault": "one", "seen": 2}], [])
    assert after == {"rows": [{"fault": "one", "seen": 2}, {"fault": "two", "seen": 1}], "clean": {"runs": 3}}


def test_each_fault_is_served_from_a_bundle_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run serves them all."""
    served: list[Path] = []
    monkeypatch.setattr(faulty_servers, "make_target", lambda kind, folder: None)
    monkeypatch.setattr(faulty_servers, "bundle", lambda model, folder, **options: served.append(folder))
    planted = faulty_servers.faults(tmp_path / "model", tmp_path / "sound", tmp_path)
    for name in ("int4 weights", "dtype"):
        planted[name][1]()
    assert len(set(served)) == len(served) == 2


def test_no_bundle_lets_a_start_round_to_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rounding would be taken for a fault of float32."""
    made: list[dict[str, object]] = []
    monkeypatch.setattr(faulty_servers.mii_azure, "generate", lambda **options: made.append(options))
    faulty_servers.bundle(tmp_path, tmp_path / "sound")
    assert (made[0]["dtype"], made[0]["passes_off"]) == ("float32", ("weight_only",))


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_the_table_tells_from_how_many_tokens_a_format_shows_a_fault(name: str) -> None:
    rounding = ROUNDING[name]
    assert parity_tables.shows_from(rounding.bound(64) + 1e-6, rounding) == "yes"
    assert parity_tables.shows_from(2 * rounding.mean, rounding) == "no"
    told = parity_tables.shows_from(3 * rounding.mean, rounding)
    least = int("".join(sign for sign in told if sign.isdigit()))
    assert rounding.bound(least) <= 3 * rounding.mean < rounding.bound(math.floor(0.9 * least))


def test_a_busy_machine_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (6.6, 11.0, 14.3))
    with pytest.raises(SystemExit, match="Others use the cores"):
        neighbour.run(0.0)
