"""Adapters beside a loaded model: those of its deployment, and room for others."""

from pathlib import Path
from typing import Any

from scoring.config import Deployment
from scoring.errors import LoadError
from scoring.lora.bank import AdapterBank
from scoring.lora.loading import FOLDER, AdapterRoom, load_bank
from scoring.schema.registry import task_schema

_WITHOUT = "Serve it without --adapter-root."


def bank_beside(model: Any, deployment: Deployment, folder: Path, room: AdapterRoom) -> AdapterBank | None:
    """Load the adapters in a model's folder, with room for others; None if there is neither. Raises LoadError."""
    if room.places and "adapter" not in task_schema(deployment.task).parameters.model_fields:
        raise LoadError(f"No adapter is loaded beside a model of {deployment.task}.", _WITHOUT)
    if room.places and (deployment.quantisation or getattr(model.config, "quantization_config", None)):
        raise LoadError(
            "The weights are quantised; an adapter's products were trained beside other numbers.",
            "Serve it without --adapter-root, or serve the unquantised model.",
        )
    folders = {ref.key: folder / FOLDER / ref.name for ref in deployment.served}
    return load_bank(folders, model, room) if folders or room.places else None
