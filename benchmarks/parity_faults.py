"""Faults planted in a served model, and whether `parity --tokens` sees and names them.

`python -m benchmarks.parity_faults` serves SmolLM2-135M-Instruct in float32 with one fault at a time and has some
hundred tokens of each judged by plain transformers over the sound model; then come 100 verdicts on the sound server,
each on requests of its own. `--only NAME` does one of them and replaces its row of results/parity_faults.json. Answers
and verdicts are kept in .cache/parity_faults by revision, so that a run goes on where another of the same code ended;
`--answers NAME` judges the answers in the folder of that name there. Each row tells which revision served and which
judged it. A tree with changes is refused, as no revision is what was measured; `--dirty` measures it all the same.
"""

import argparse
import datetime
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.command_line import RESULTS
from benchmarks.common import CHANGED, ROOT, revision, table, write
from benchmarks.faulty_servers import TASK, adapter, bundle, faults
from local_runner.targets.targets import Target
from mii_azure.model.packaged import packaged_model
from mii_azure.verdict.tokens.judge import Answered, ask, askable, judge
from mii_azure.verdict.tokens.probes import NEW_TOKENS, TokenProbe, make_probes
from mii_azure.verdict.tokens.reference import ReferenceModel
from mii_azure.verdict.tokens.suspects import Suspect, named_suspects
from scoring.telemetry.versions import versions

CLEAN = "none"
_CACHE = ROOT / ".cache" / "parity_faults"
_CONTEXT = 2048
_TOKENS = 320  # of a fault's verdict
_CLEAN_RUNS = 100
_PROBES = 2  # of a clean verdict: in a longer one a false alarm would be averaged out
_PIECE = 25  # clean verdicts that are asked for at once


def clean_probes() -> list[list[TokenProbe]]:
    """Probes of each clean verdict, none of them in two."""
    every = make_probes(TASK, _CLEAN_RUNS * _PROBES * NEW_TOKENS, _CONTEXT)
    return [every[first : first + _PROBES] for first in range(0, _CLEAN_RUNS * _PROBES, _PROBES)]


class Kept:
    """Answers and verdicts of one revision, in files; `answers` names a folder whose answers are judged instead."""

    def __init__(self, now: str, answers: str = "") -> None:
        self.judged, self.answered = now, answers or now
        if now.endswith(CHANGED):  # two trees with changes may have one name
            shutil.rmtree(_CACHE / now, ignore_errors=True)
        for each in (self.judged, self.answered):
            (_CACHE / each).mkdir(parents=True, exist_ok=True)

    def ask(self, name: str, target: Any, probes: Sequence[TokenProbe]) -> None:
        """Have a target answer what it can be judged by, and keep the texts."""
        texts = self.texts(name)
        asked = askable(probes, target.metadata()) if isinstance(target, Target) else probes
        told = ask(name, target, "float32", [probe for probe in asked if probe.name not in texts])
        texts |= {probe.name: text for probe, text in told.answers}
        self._answers(name).write_text(json.dumps(texts, indent=1), encoding="utf-8")

    def texts(self, name: str) -> dict[str, str]:
        """Texts by probe, none where nothing is kept."""
        file = self._answers(name)
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}

    def answers(self, name: str, probes: Sequence[TokenProbe], kept: str = "") -> Answered:
        """Answers to probes that were kept, under another name if told."""
        texts = self.texts(kept or name)
        pairs = tuple((probe, texts[probe.name]) for probe in probes if probe.name in texts)
        return Answered(target=name, precision="float32", asked=len(pairs), answers=pairs)

    def verdict(self, name: str, told: Answered, reference: ReferenceModel, named: list[Suspect]) -> dict[str, Any]:
        """Verdict on answers, kept for another run of the same revision over the same answers."""
        file = _CACHE / self.judged / f"{name}.of {self.answered}.verdict.json"
        if not file.is_file():
            began = time.process_time()
            found = judge(reference, told, named).model_dump()
            row = {**found, "answers": len(told.answers), "cpu_s": round(time.process_time() - began, 1)}
            row |= {"answered by": self.answered, "judged by": self.judged}
            row["date"] = datetime.date.today().isoformat()
            file.write_text(json.dumps(row, indent=1), encoding="utf-8")
        row = json.loads(file.read_text(encoding="utf-8"))
        print(json.dumps(row), flush=True)
        return dict(row)

    def _answers(self, name: str) -> Path:
        return _CACHE / self.answered / f"{name}.answers.json"


def planted(name: str, expected: str, row: dict[str, Any]) -> dict[str, Any]:
    """Row of a fault: whether it was seen, and named."""
    shown = {key: value for key, value in row.items() if key not in ("target", "agree")}
    return {"fault": name, "seen": not row["agree"], "named": expected in row["cause"]} | shown


def clean(start: Callable[[], Any], reference: ReferenceModel, store: Kept) -> list[dict[str, Any]]:
    """Verdicts on a sound server."""
    runs = clean_probes()
    pieces = {f"{CLEAN}-{first}": runs[first : first + _PIECE] for first in range(0, _CLEAN_RUNS, _PIECE)}
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        target = None
        for kept, piece in pieces.items():
            asked = [probe for run in piece for probe in run]
            if not all(probe.name in store.texts(kept) for probe in asked):
                target = target or stack.enter_context(start())
                store.ask(kept, target, asked)
            for probes in piece:
                name = f"{CLEAN}-{len(rows)}"
                rows.append(store.verdict(name, store.answers(name, probes, kept), reference, []))
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What 100 clean verdicts come to."""
    return {
        "runs": len(rows),
        "false_alarms": sum(not row["agree"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "picked": sum(row["picked"] for row in rows),
        "greatest_margin": max(max(row["margins"].values()) for row in rows),
        "bound": min(min(row["bounds"].values()) for row in rows),
    }


def merged(before: dict[str, Any], rows: Sequence[dict[str, Any]], sound: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Result with the rows of a run in place of its earlier ones."""
    new = {row["fault"]: row for row in rows}
    kept = {row["fault"]: row for row in before.get("rows", [])}
    both: dict[str, Any] = {**before, "rows": list({**kept, **new}.values())}
    if sound:
        told = {name: sorted({row[name] for row in sound}) for name in ("answered by", "judged by", "date")}
        both["clean"] = summary(sound) | {name: ", ".join(found) for name, found in told.items()}
    return both


def main(only: Sequence[str], store: Kept) -> None:
    """Plant, judge, write and print."""
    model = packaged_model("smollm2")
    rows: list[dict[str, Any]] = []
    sound_rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        polite, sound = adapter(model, work / "polite"), bundle(model, work / "sound")
        reference = ReferenceModel(sound / "model", TASK)
        named = named_suspects({"polite": polite}, sound / "model", "llama")
        for name, (expected, start) in faults(model, sound, work).items():
            if only and name not in only:
                continue
            if name == CLEAN:
                sound_rows = clean(start, reference, store)
                continue
            probes = make_probes(TASK, _TOKENS, _CONTEXT)
            if not store.texts(name):
                with start() as target:
                    store.ask(name, target, probes)
            rows.append(planted(name, expected, store.verdict(name, store.answers(name, probes), reference, named)))
    file = RESULTS / "parity_faults.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    write("parity_faults", merged(before, rows, sound_rows) | {"versions": versions()})
    print(table(("fault", "seen", "named", "tokens", "picked", "cause"), rows))


def measured_revision(dirty: bool) -> str:
    """Revision that a run measures; ends the process where the tree has changes that nobody asked to measure."""
    now = revision()
    if now.endswith(CHANGED) and not dirty:
        sys.exit(f"The tree has changes over {now.removesuffix(CHANGED)}. Commit them, or measure them with --dirty.")
    return now


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--answers", default="", metavar="NAME", help="folder of answers that were kept")
    parser.add_argument("--dirty", action="store_true", help="measure a tree that has changes")
    told = parser.parse_args()
    main(told.only, Kept(measured_revision(told.dirty), told.answers))
