"""Writes the pages that say what the code says: docs/cli.md, passes.md and parameters.md; a test compares them."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from scoring.config import Limits
from scoring.passes import families, registry
from scoring.passes.base import OWN_ERRORS, TOLERANCE, Pass
from tools import parameters

DOCS = Path(__file__).resolve().parent.parent / "docs"

KINDS = {
    "encoders": registry.encoder_passes,
    "decoders": lambda: registry.decoder_passes(Limits()),
    "text to image": registry.diffusion_passes,
}
FAMILIES = {
    "deepspeed_kernels": families.DEEPSPEED_KERNELS,
    "fused_encoder": families.FUSED_ENCODER,
    "static_decode": families.STATIC_DECODE._replace(refused=families.GENERIC_DECODE.refused),
    "tensor_slicing": families.TENSOR_SLICING,
}
SLICED = {"static_decode": families.SLICED_DECODERS}

PASSES = f"""# The passes

What may be done to a model before it serves. `mii-azure plan` says which would be taken on an instance type and
why; at start each pass that is taken is applied, compared with plain transformers in float32 (rows as they are alone;
prompts and cached steps of decoders), and dropped, with its reason on record, beyond its bound of error; one that
raises anything is left out the same way. The record is in the log, in the metadata that `mii-azure query` and every
host give, and in what `mii-azure parity` tells of two environments.

Nothing has to be chosen: `--objective latency` (the default) or `cost` decides, with the model, the hardware and
the batch. `--passes-on` and `--passes-off` force passes; one that cannot be served is then an error that names the
reason. `--optimisations public` limits the choice to DeepSpeed's own open passes and torch's.

A relative error of {TOLERANCE:g} is served where the table has no other bound. Decoders in 16 bits may differ by
{OWN_ERRORS:g} times what 16 bits cost plain transformers themselves.
"""


def cli() -> str:
    """The reference of every verb as Markdown, by typer's own documentation command."""
    command = [sys.executable, "-m", "typer", "mii_azure.cli.app", "utils", "docs", "--name", "mii-azure"]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=_environment()).stdout


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


def passes() -> str:
    """Every pass, whom it serves, its bound and what it does; then the families, and those that are refused."""
    found: dict[str, tuple[Pass, list[str]]] = {}
    for kind, made in KINDS.items():
        for each in made():
            found.setdefault(each.name, (each, []))[1].append(kind)
    lines = [PASSES, "| pass | of | public | bound | what it does |", "|---|---|---|---|---|"]
    for name, (each, kinds) in found.items():
        bound = "" if each.tolerance == TOLERANCE else f"{each.tolerance:g}"
        what = inspect.cleandoc(type(each).__doc__ or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"| `{name}` | {', '.join(kinds)} | {'yes' if each.public else ''} | {bound} | {what} |")
    lines += ["", "## Families"]
    for name, (served, refused) in FAMILIES.items():
        lines += ["", f"`{name}`: {', '.join(sorted(served))}."]
        if name in SLICED:
            lines[-1] += f" Over slices: {', '.join(sorted(SLICED[name]))}."
            lines[-1] += f" The text part of {', '.join(sorted(families.WRAPPED))}."
            lines[-1] += (
                " Any other family whose attention is standard: in the generic tier ([decoders.md](decoders.md))."
            )
        lines += ["", *(f"- not {family}: {reason}" for family, reason in sorted(refused.items()))] if refused else []
    return "\n".join(lines) + "\n"


PAGES: dict[Path, Callable[[], str]] = {
    DOCS / "cli.md": cli,
    DOCS / "passes.md": passes,
    DOCS / "parameters.md": parameters.page,
}


if __name__ == "__main__":
    DOCS.mkdir(exist_ok=True)
    for page, render in PAGES.items():
        page.write_text(render(), encoding="utf-8")
        print(f"wrote {page}")
