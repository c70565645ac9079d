"""Results of a run ahead of deployment, kept in the bundle: errors of verified passes, and code compiled by Inductor.

Both hold for the machine that they name, its versions and the model, and are ignored anywhere else: there the
passes are verified at start, as usual. `mii-azure prepare` writes them; serving only reads.
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from scoring.passes.base import Hardware
from scoring.passes.runner import Record
from scoring.strict_json.files import read_object
from scoring.telemetry.versions import versions

logger = logging.getLogger("mii_azure.verification_cache")

#: Names the folder to write to, in the process that `mii-azure prepare` starts.
TARGET = "MII_AZURE_PREPARE"
VERIFIED, COMPILED = "verified.json", "compiled.inductor"
_MATTERS = ("python", "torch", "transformers", "deepspeed", "diffusers", "openvino")


def key(model: Any) -> dict[str, Any]:
    """Key of the machine, versions and model for which a verification or compiled code holds."""
    hardware, installed = Hardware.here(), versions()
    return {
        "device": hardware.name,
        "capability": list(hardware.capability),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: installed[name] for name in _MATTERS},
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def known_errors(folder: Path, model: Any) -> dict[str, float]:
    """Relative errors of passes verified on such a machine; none while a bundle is being prepared."""
    if TARGET in os.environ or not (folder / VERIFIED).is_file():
        return {}
    saved = read_object(folder / VERIFIED)
    if saved["key"] != key(model):
        logger.info("the passes were verified on another machine (%s): they are verified here", saved["key"]["device"])
        return {}
    if (folder / COMPILED).is_file():
        torch.compiler.load_cache_artifacts((folder / COMPILED).read_bytes())
    errors: dict[str, float] = saved["errors"]
    return errors


def save(model: Any, records: Sequence[Record]) -> None:
    """Save this process's verifications and compiled code, if it was started for that."""
    if TARGET not in os.environ:
        return
    folder = Path(os.environ[TARGET])
    # A start that trusted the error of a pass's second way would take the first, and not verify it.
    errors = {record.name: record.error for record in records if record.state == "applied" and not record.retried}
    saved = {"key": key(model), "errors": errors, "seconds": {r.name: round(r.seconds, 2) for r in records}}
    (folder / VERIFIED).write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    compiled = torch.compiler.save_cache_artifacts()
    if compiled is not None:
        (folder / COMPILED).write_bytes(compiled[0])
