"""What gRPC, HTTP and azmlinfsrv add over in-process: MiniLM sentence embeddings, all hosts in one run.

`python -m benchmarks.hosts` prints the table, writes benchmarks/results/hosts.json, and puts the table into README.md.
"""

import datetime
import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path

import mii_azure
from tools.packaged_models import packaged_model

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "hosts.json"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def measure() -> dict[str, object]:
    """Generate the bundle, measure every host, and return the report with its provenance."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = mii_azure.generate(
            task="sentence-embeddings",
            model=str(packaged_model("minilm")),
            deployment_name="minilm",
            instance_type="Standard_F8s_v2",
            output=Path(folder) / "minilm",
        )
        report = mii_azure.bench(bundle, requests=200, clients=8, on_progress=print)
    fields = report.model_dump(mode="json", exclude={"bundle"})
    return {
        **fields,
        "model": "all-MiniLM-L6-v2, fp32",
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "date": datetime.date.today().isoformat(),
        "revision": _git("rev-parse", "--short", "HEAD"),
    }


def table(result: dict[str, object]) -> str:
    """The README's table, from the JSON alone."""
    rows = [
        "| host | p50 ms | p90 ms | p99 ms | added p50 ms | requests/s, 8 clients |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:  # type: ignore[attr-defined]
        added = "" if row["added_p50_ms"] is None else f"{row['added_p50_ms']:.2f}"
        figures = [f"{row[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")]
        rows.append(f"| {row['target']} | {' | '.join(figures)} | {added} | {row['requests_per_s']:.0f} |")
    rows.append("")
    rows.append(
        f"{result['model']}, two sentences a request, {result['machine']}, {result['date']}, revision "
        f"{result['revision']}. One client for the latencies; the client shares the cores."
    )
    return "\n".join(rows)


def write_readme(result: dict[str, object], readme: Path = ROOT / "README.md") -> None:
    """Replace what stands between the markers."""
    text = readme.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    readme.write_text(f"{head}{BEGIN}\n{table(result)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    result = measure()
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_readme(result)
    print(table(result))
