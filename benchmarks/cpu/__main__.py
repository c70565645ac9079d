"""Models on this machine's CPU: encoders' forwards, what a service adds, and generation beside a busy process.

`python -m benchmarks.cpu [SECONDS PER ROW [OUTPUT FOLDER [PART ...]]]` prints tables and writes cpu.json; the parts are
MiniLM, BGE-small, BERT-base, service and neighbour, each some minutes at most. Parts of one revision on one machine may
run one by one: each replaces its own rows and leaves the others'. It wants an idle machine, and says how loaded it was.
In front of it `ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI` stands for a chip without bfloat16, and writes cpu-vnni.json.
"""

import datetime
import json
import os
import platform
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from scoring.limits import cpus

MODELS = ("MiniLM", "BGE-small", "BERT-base")
PARTS = ("neighbour", "service", *MODELS)  # the neighbour first: it wants the cores for its own processes
#: What parts of one result must agree in.
SAME = ("device", "threads", "oneDNN may use", "versions", "revision")
_PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "nncf")


def provenance() -> dict[str, Any]:
    """Processor, its flags, versions, load, date and revision."""
    import torch

    from benchmarks.common import processor, revision
    from scoring.encoder.cpu_autotune import cpu_flags

    return {
        "device": processor(),
        "cores": cpus.cores(),
        "threads": torch.get_num_threads(),
        "flags": sorted(flag for flag in cpu_flags() if flag.startswith(("avx", "amx"))),
        "oneDNN may use": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
        "load": os.getloadavg(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "date": datetime.date.today().isoformat(),
        "revision": revision(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def main() -> None:
    """Measure, print, write."""
    warnings.simplefilter("ignore")
    cpus.settle()  # as a server does, before torch is imported
    from benchmarks.command_line import RESULTS
    from benchmarks.common import table, write
    from benchmarks.cpu import forwards, neighbour, service

    budget_s = float(sys.argv[1]) if len(sys.argv) > 1 else 8.0
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS
    parts = sys.argv[3:] or PARTS
    made = provenance()
    name = "cpu" if made["oneDNN may use"] == "all" else "cpu-vnni"

    def keep(found: dict[str, Any]) -> None:
        write(name, merged(folder / f"{name}.json", found, made), folder)

    for part in sorted(parts, key=PARTS.index):
        if part in MODELS:
            found = forwards.run(part, budget_s, keep)
            print(table(forwards.COLUMNS, found["rows"]), flush=True)
        else:
            keep({part: (rows := {"neighbour": neighbour, "service": service}[part].run(budget_s))})
            print(table(list(rows[0]), rows), flush=True)


def merged(path: Path, found: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """A part's result beside the others of the same machine and revision; what is measured again is replaced."""
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if any(before.get(name) != made[name] for name in SAME):
        before = {}
    both = {**before, **found, **made}
    if "peaks" in both:  # ceilings: the best that was seen
        seen = [each.get("peaks", {}) for each in (before, found)]
        both["peaks"] = {name: max(peak.get(name, 0.0) for peak in seen) for name in {*seen[0], *seen[1]}}
    for name in ("rows", "starts"):
        new = found.get(name, [])
        kept = [row for row in before.get(name, []) if row["work"] not in {row["work"] for row in new}]
        both[name] = sorted([*kept, *new], key=lambda row: MODELS.index(row["work"].split(",")[0]))
    return both


if __name__ == "__main__":
    main()
