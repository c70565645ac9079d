"""Models on this machine's CPU: encoders' forwards, what a service adds, and generation beside a busy process.

`python -m benchmarks.cpu [SECONDS PER ROW [OUTPUT FOLDER [PART ...]]]` prints tables and writes cpu.json; the parts are
forwards, service and neighbour. It wants an idle machine, and says how loaded it was. In front of it
`ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI` stands for a chip without bfloat16.
"""

import datetime
import os
import platform
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from scoring.limits import cpus

PARTS = ("forwards", "service", "neighbour")
_PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "nncf")


def provenance() -> dict[str, Any]:
    """Processor, its flags, versions, load, date and revision."""
    import torch

    from benchmarks.common import revision
    from scoring.encoder.cpu_autotune import cpu_flags

    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return {
        "device": names[0] if names else platform.processor(),
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
    from benchmarks.common import RESULTS, table, write

    budget_s = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS
    parts = sys.argv[3:] or PARTS
    result: dict[str, Any] = {}
    if "neighbour" in parts:  # first: it wants the cores for its own processes
        from benchmarks.cpu import neighbour

        result["neighbour"] = neighbour.run(budget_s)
        print(table([*result["neighbour"][0]], result["neighbour"]))
    if "service" in parts:
        from benchmarks.cpu import service

        result["service"] = service.run(budget_s)
        print(table([*result["service"][0]], result["service"]))
    if "forwards" in parts:
        from benchmarks.cpu import forwards

        result |= forwards.run(budget_s)
        print(table(forwards.COLUMNS, result["rows"]))
    write("cpu", result | provenance(), folder)


if __name__ == "__main__":
    main()
