"""What the GPU benchmarks share: timing, the card's ceilings and floors, provenance, results as JSON and a table."""

import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.command_line import RESULTS
from mii_azure.hardware.roofline import flops, forward_floor

ROOT = Path(__file__).resolve().parent.parent
CHANGED = "+"  # what a revision ends in where the tree had changes


def call_ms(call: Callable[[], Any], calls: int = 100, warm: int = 5) -> float:
    """Median milliseconds of a call, the device synchronised before and after each."""
    for _ in range(warm):
        call()
    times = []
    for _ in range(calls):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 1e3 * median(times)


def device_ms(call: Callable[[], Any], calls: int = 50) -> float:
    """Median milliseconds of a call on the device's own clock, calls queued back to back."""
    marks = []
    for _ in range(calls):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        marks.append((begin, end))
    torch.cuda.synchronize()
    return median(begin.elapsed_time(end) for begin, end in marks)


def ceilings() -> dict[str, float]:
    """Bytes per second of a large copy (read plus written) and fp16 FLOP per second of a large product, measured."""
    source = torch.empty(1 << 30, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / (device_ms(lambda: target.copy_(source), 12) / 1e3)
    a, b = (torch.randn(8192, 8192, dtype=torch.float16, device="cuda") for _ in range(2))
    peak = 2 * 8192**3 / (device_ms(lambda: a @ b, 12) / 1e3)
    return {"bandwidth": bandwidth, "peak": peak}


def encoder_floor_ms(model: Any, batch: int, length: int, card: Mapping[str, float]) -> float:
    """Milliseconds below which no forward can be: matrices read once, or the arithmetic at the card's rate."""
    config = model.config
    matrices = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)}
    size = sum(matrices.values())
    work = flops(size, config.num_hidden_layers, config.hidden_size, batch * length, length)
    return 1e3 * forward_floor(size * model.dtype.itemsize, work, card["bandwidth"], card["peak"])


def provenance() -> dict[str, Any]:
    """Device, versions, date and revision; `revision` ends in + where the tree has changes."""
    versions = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for package in ("torch", "triton", "transformers", "deepspeed"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else processor(),
        "versions": versions,
        "date": datetime.date.today().isoformat(),
        "revision": revision(),
    }


def processor() -> str:
    """Name of the processor, as the kernel has it."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def revision() -> str:
    """The commit measured, which REVISION names where only the files were copied; "unknown" outside a checkout."""
    if told := os.environ.get("REVISION"):
        return told
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (CHANGED if changed.stdout.strip() else "")


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table; floats with two decimals, missing values as a dash."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write(name: str, result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Write one benchmark's result as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
