"""How long a user waits before anything heavy starts: `import mii_azure`, `--help`, generating a local model's bundle.

`python -m benchmarks.startup` prints medians of several fresh processes beside their budgets; copying weights is timed
apart, by copying the same files once more.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mii_azure.model.packaged import packaged_model

ROUNDS = 5
IMPORT_BUDGET_S, GENERATE_BUDGET_S = 0.150, 1.5


def median_seconds(command: list[str]) -> float:
    """Median wall time of `command` in fresh processes."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Print the table."""
    model = packaged_model("minilm")
    python = [sys.executable, "-c"]
    bare = median_seconds([*python, "pass"])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mii_azure.cli.app", "generate", "--task", "sentence-embeddings"]
        command += ["--model", str(model), "--name", "startup", "--output", f"{folder}/bundle", "--force"]
        generate = median_seconds(command)
        began = time.perf_counter()
        shutil.copytree(model, Path(folder) / "copy")
        copying = time.perf_counter() - began
    imports = median_seconds([*python, "import mii_azure"]) - bare
    helped = median_seconds([sys.executable, "-m", "mii_azure.cli.app", "--help"])
    show("import mii_azure", imports, f"budget {IMPORT_BUDGET_S * 1e3:.0f} ms, over a bare interpreter")
    show("mii-azure --help", helped)
    show(
        "mii-azure generate, MiniLM",
        generate,
        f"budget {GENERATE_BUDGET_S * 1e3:.0f} ms and copying, which alone takes {copying * 1e3:.0f} ms",
    )


def show(what: str, seconds: float, note: str = "") -> None:
    """One line of the table."""
    print(f"{what:30}{seconds * 1e3:7.0f} ms   {note}".rstrip())


if __name__ == "__main__":
    main()
