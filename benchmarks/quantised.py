"""What `generate --quantise int8` saves and costs on real models: bytes, errors, seconds.

`python -m benchmarks.quantised [--out FOLDER]` generates a bundle of each model with and without it, in processes of
their own. Errors are what generation measured: relative, answers against the original in float32. It writes
quantised.json.
"""

import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.command_line import Parser
from benchmarks.common import revision, table, write
from mii_azure.model.packaged import packaged_model

MODELS = (
    ("SmolLM2-135M-Instruct", "smollm2", "text-generation"),
    ("all-MiniLM-L6-v2", "minilm", "sentence-embeddings"),
    ("flan-t5-small, fine-tuned", "flan-t5", "summarization"),
)


def measure(name: str, package: str, task: str, folder: Path) -> dict[str, Any]:
    """One model's row."""
    source = packaged_model(package)
    row: dict[str, Any] = {"model": name}
    for scheme in ("none", "int8"):
        bundle = folder / f"{package}-{scheme}"
        command = [sys.executable, "-m", "mii_azure.cli.app", "generate", "--task", task, "--model", str(source)]
        command += ["--name", "measured", "--output", str(bundle), "--quantise", scheme, "--json"]
        began = time.perf_counter()
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        row[f"{scheme} s"] = time.perf_counter() - began
        row[f"{scheme} bytes"] = sum(path.stat().st_size for path in (bundle / "model").glob("*.safetensors"))
    return row | told["quantisation"]


def main() -> None:
    """Measure, write and print."""
    out = Parser(__doc__).parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(*model, Path(folder)) for model in MODELS]
    from scoring.telemetry.versions import versions

    result = {
        "rows": rows,
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "revision": revision(),
    }
    write("quantised", result, out)
    print(table(("model", "none bytes", "int8 bytes", "weight_error", "output_error", "none s", "int8 s"), rows))


if __name__ == "__main__":
    main()
