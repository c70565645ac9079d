"""Tiny LoRA adapters in PEFT's form, wide enough for answers to depend on them, written without peft."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from scoring.schema.registry import task_class


def tiny_adapter(
    base: Path, task: str, folder: Path, targets: Sequence[str], rank: int = 4, seed: int = 0, **config: Any
) -> Path:
    """Write an adapter of the products of a base whose names end with one of `targets`; the same bytes each time.

    `config` adds to, or replaces, fields of adapter_config.json.
    """
    auto = getattr(transformers, task_class(task).auto_class)
    with torch.device("meta"):
        model = auto.from_config(transformers.AutoConfig.from_pretrained(base))
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in targets and hasattr(module, "weight"):
            outputs, inputs = module.weight.shape
            if type(module).__name__ == "Conv1D":
                outputs, inputs = inputs, outputs
            tensors[f"base_model.model.{name}.lora_A.weight"] = 0.3 * torch.randn(rank, inputs, generator=random)
            tensors[f"base_model.model.{name}.lora_B.weight"] = 0.3 * torch.randn(outputs, rank, generator=random)
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": sorted(targets)}
    told |= {"base_model_name_or_path": "tiny/base", "fan_in_fan_out": False, "bias": "none"} | config
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(told), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder
