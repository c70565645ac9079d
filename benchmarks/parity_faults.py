"""Faults planted in a served model, and whether `parity --tokens` sees and names them.

`python -m benchmarks.parity_faults` serves SmolLM2-135M-Instruct in float32 with one fault at a time and has some
hundred tokens of each judged by plain transformers over the sound model; then come 100 verdicts on the sound server,
each on requests of its own. `--only NAME` does one of them. Answers and verdicts are kept in .cache/parity_faults, so
that a run goes on where another ended; results/parity_faults.json is written once all are there.
"""

import argparse
import datetime
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, revision, table, write
from benchmarks.faulty_servers import TASK, adapter, bundle, faults
from local_runner.targets.targets import Target
from mii_azure.model.packaged import packaged_model
from mii_azure.verdict.tokens.judge import Answered, ask, askable, judge
from mii_azure.verdict.tokens.probes import NEW_TOKENS, TokenProbe, make_probes
from mii_azure.verdict.tokens.reference import ReferenceModel
from mii_azure.verdict.tokens.suspects import Suspect, named_suspects
from scoring.telemetry.versions import versions

CLEAN = "none"
_KEPT = ROOT / ".cache" / "parity_faults"
_CONTEXT = 2048
_TOKENS = 320  # of a fault's verdict
_CLEAN_RUNS = 100
_PROBES = 2  # of a clean verdict: in a longer one a false alarm would be averaged out
_PIECE = 25  # clean verdicts that are asked for at once


def clean_probes() -> list[list[TokenProbe]]:
    """Probes of each clean verdict, none of them in two."""
    every = make_probes(TASK, _CLEAN_RUNS * _PROBES * NEW_TOKENS, _CONTEXT)
    return [every[first : first + _PROBES] for first in range(0, _CLEAN_RUNS * _PROBES, _PROBES)]


def _file(name: str, what: str) -> Path:
    return _KEPT / f"{name}.{what}.json"


def keep_answers(name: str, target: Any, probes: Sequence[TokenProbe]) -> None:
    """Have a target answer what it can be judged by, and keep the texts for this run and another."""
    texts = _kept(name)
    asked = askable(probes, target.metadata()) if isinstance(target, Target) else probes
    told = ask(name, target, "float32", [probe for probe in asked if probe.name not in texts])
    texts |= {probe.name: text for probe, text in told.answers}
    _file(name, "answers").write_text(json.dumps(texts, indent=1), encoding="utf-8")


def _kept(name: str) -> dict[str, str]:
    file = _file(name, "answers")
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def answered(name: str, probes: Sequence[TokenProbe], kept: str = "") -> Answered:
    """Answers to probes that were kept, under another name if told."""
    texts = _kept(kept or name)
    pairs = tuple((probe, texts[probe.name]) for probe in probes if probe.name in texts)
    return Answered(target=name, precision="float32", asked=len(pairs), answers=pairs)


def verdict(name: str, told: Answered, reference: ReferenceModel, named: list[Suspect]) -> dict[str, Any]:
    """Verdict on answers, kept for another run."""
    file = _file(name, "verdict")
    if not file.is_file():
        began = time.process_time()
        found = judge(reference, told, named).model_dump()
        row = {**found, "answers": len(told.answers), "cpu_s": round(time.process_time() - began, 1)}
        file.write_text(json.dumps(row, indent=1), encoding="utf-8")
    row = json.loads(file.read_text(encoding="utf-8"))
    print(json.dumps(row), flush=True)
    return dict(row)


def planted(name: str, expected: str, row: dict[str, Any]) -> dict[str, Any]:
    """Row of a fault: whether it was seen, and named."""
    shown = {key: value for key, value in row.items() if key not in ("target", "agree")}
    return {"fault": name, "seen": not row["agree"], "named": expected in row["cause"]} | shown


def clean(start: Callable[[], Any], reference: ReferenceModel) -> list[dict[str, Any]]:
    """Verdicts on a sound server."""
    runs = clean_probes()
    pieces = {f"{CLEAN}-{first}": runs[first : first + _PIECE] for first in range(0, _CLEAN_RUNS, _PIECE)}
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        target = None
        for kept, piece in pieces.items():
            asked = [probe for run in piece for probe in run]
            if not all(probe.name in _kept(kept) for probe in asked):
                target = target or stack.enter_context(start())
                keep_answers(kept, target, asked)
            for probes in piece:
                name = f"{CLEAN}-{len(rows)}"
                rows.append(verdict(name, answered(name, probes, kept), reference, []))
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


def main(only: Sequence[str]) -> None:
    """Plant, judge, write and print."""
    model = packaged_model("smollm2")
    rows, sound_rows = [], []
    _KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        polite, sound = adapter(model, work / "polite"), bundle(model, work / "sound")
        reference = ReferenceModel(sound / "model", TASK)
        named = named_suspects({"polite": polite}, sound / "model", "llama")
        for name, (expected, start) in faults(model, sound, work).items():
            if only and name not in only:
                continue
            if name == CLEAN:
                sound_rows = clean(start, reference)
                continue
            probes = make_probes(TASK, _TOKENS, _CONTEXT)
            if not _file(name, "answers").is_file():
                with start() as target:
                    keep_answers(name, target, probes)
            rows.append(planted(name, expected, verdict(name, answered(name, probes), reference, named)))
    if not only:
        result = {"rows": rows, "clean": summary(sound_rows), "versions": versions(), "revision": revision()}
        write("parity_faults", result | {"date": datetime.date.today().isoformat()})
    print(table(("fault", "seen", "named", "tokens", "picked", "cause"), rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    main(parser.parse_args().only)
