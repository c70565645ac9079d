"""What gRPC, HTTP and azmlinfsrv add over in-process: MiniLM sentence embeddings, all hosts in one run.

`python -m benchmarks.hosts` prints the table, writes benchmarks/results/hosts.json, and puts it into
docs/performance.md.
"""

import datetime
import json
import os
import platform
import tempfile
from pathlib import Path

import mii_azure
from benchmarks import tables
from benchmarks.common import revision
from benchmarks.echo import Echo
from mii_azure.model.packaged import packaged_model

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "hosts.json"


def measure() -> dict[str, object]:
    """Generate the bundle, measure every host, and return the report with its provenance."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = mii_azure.generate(
            task="sentence-embeddings",
            model=str(packaged_model("minilm")),
            deployment_name="minilm",
            instance_type="Standard_F8s_v2",
            passes_off=("cpu",),  # it times this machine at every start: hosts could run different models
            output=Path(folder) / "minilm",
        )
        report = mii_azure.bench(bundle, count=200, clients=8, progress=print, beside=[Echo(bundle)])
    fields = report.model_dump(mode="json", exclude={"bundle"})
    return {
        **fields,
        "model": "all-MiniLM-L6-v2, fp32",
        **here(),
    }


def here() -> dict[str, str]:
    """This machine's processor, the date, and the commit measured."""
    return {
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "date": datetime.date.today().isoformat(),
        "revision": revision(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    result = measure()
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    tables.write()
    print(tables.hosts(result))
