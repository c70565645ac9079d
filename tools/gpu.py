"""What only a GPU shows, one step after the other in one command: its tests, and benchmarks of what changed last.

`python -m tools.gpu [STEP ...] [--out FOLDER] [--seconds N]` runs every step that the machine has the GPUs for, each
within a time of its own, keeps what it printed and its JSON in the folder, and goes on after one that fails. Tests are
first, since no figure of a wrong answer counts; then what is worth most. Writes gpu.json: what ran, how it ended, on
which device, and what was left out. Its exit code is 1 where a step failed.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Step:
    """One command of Python, the seconds that it may take, and the GPUs that it needs."""

    arguments: tuple[str, ...]
    seconds: int
    gpus: int = 1

    def command(self, out: Path) -> list[str]:
        """The command, whose results go to `out` where it is a benchmark."""
        written = () if self.arguments[0] == "pytest" else ("--out", str(out))
        return [sys.executable, "-m", *self.arguments, *written]


def _tests(*folders: str) -> tuple[str, ...]:
    found = (path for folder in folders for path in sorted(ROOT.joinpath(folder).rglob("test_*_gpu.py")))
    return ("pytest", "-q", "-p", "no:cacheprovider", *(str(path.relative_to(ROOT)) for path in found))


_MIXTURES = ("qwen3-moe-small", "mixtral-small", "gpt-oss-small", "olmo2-7b")
STEPS: dict[str, Step] = {
    "tests": Step(_tests("tests/scoring/decoder", "tests/scoring/encoder", "tests/scoring/generation"), 420),
    "mixtures": Step(("benchmarks.decoders", "--only", *_MIXTURES), 240),
    "grammars": Step(("benchmarks.grammars", "--made", "--peak", "16", "--sampled"), 180),
    "http": Step(("benchmarks.over_http", "--only", "qwen3-0.6b", "--clients", "1", "256"), 240),
    "generic": Step(("benchmarks.decoders", "--tier", "generic", "--only", "qwen3-0.6b", *_MIXTURES), 240),
    "encoder": Step(("benchmarks.encoder_ways",), 120),
    "slices": Step(("benchmarks.slices",), 300, gpus=2),
    "other-tests": Step(_tests("tests/scoring/quantization", "tests/scoring/passes", "tests/scoring/sentence"), 300),
    "slice-tests": Step(_tests("tests/scoring/tensor_parallel"), 420, gpus=2),
}


def run(name: str, step: Step, out: Path, seconds: float) -> dict[str, Any]:
    """Outcome of one step, whose lines are printed and kept in NAME.log."""
    limit = min(step.seconds, seconds)
    environment = {"TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cuda", **os.environ}
    began, log = time.monotonic(), out / f"{name}.log"
    with log.open("w", encoding="utf-8") as file:
        command = ["timeout", "--kill-after=10", f"{limit:.0f}", *step.command(out)]
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode
    print(f"{name}: exit {code} after {time.monotonic() - began:.0f} s, {log}", flush=True)
    return {"step": name, "exit": code, "seconds": round(time.monotonic() - began, 1), "limit": limit}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps that were chosen, and write gpu.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}; all when absent")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu", metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=3600, help="after which no step begins")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.steps if name not in STEPS]:
        parser.error(f"no step is named {unknown[0]}; there are {', '.join(STEPS)}")
    import torch

    from benchmarks.common import provenance, write

    if not (gpus := torch.cuda.device_count()):
        parser.exit(1, "No CUDA GPU is here: run it on a machine that has one.\n")
    chosen.out.mkdir(parents=True, exist_ok=True)
    end, ran, left = time.monotonic() + chosen.seconds, [], []
    for name in chosen.steps or STEPS:
        rest = end - time.monotonic()
        if gpus < STEPS[name].gpus or rest < 1:
            left.append(name)
            continue
        ran.append(run(name, STEPS[name], chosen.out, rest))
        write("gpu", provenance() | {"gpus": gpus, "steps": ran, "left out": left}, chosen.out)
    if left:
        print("left out, for want of time or GPUs:", *left)
    return 1 if any(each["exit"] for each in ran) else 0


if __name__ == "__main__":
    sys.exit(main())
