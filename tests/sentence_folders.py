"""sentence-transformers folders around tiny models, and a reference for their vectors by the documented arithmetic."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

TYPES = "sentence_transformers.models"
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
PROMPTS = {"query": "Represent this question: ", "passage": "passage: "}
HIDDEN = 32


def dense(
    inputs: int, outputs: int, activation: str = "torch.nn.modules.activation.Tanh", **more: Any
) -> dict[str, Any]:
    """The settings of a Dense module."""
    return {
        "type": f"{TYPES}.Dense",
        "config": {"in_features": inputs, "out_features": outputs, "bias": True, "activation_function": activation}
        | more,
    }


NORMALIZE: dict[str, Any] = {"type": f"{TYPES}.Normalize"}


def sentence_folder(
    tiny: Path,
    folder: Path,
    pooling: Any = "mean",
    layers: Sequence[dict[str, Any]] = (),
    path: str = "",
    pickle: bool = False,
    prompts: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Write a folder around the tiny model: `pooling` is a mode, several, or its whole config.json.

    The transformer's files lie in `path`; `settings` are those of its sentence_bert_config.json.
    """
    shutil.copytree(tiny, folder / path)
    modules = [{"path": path, "type": f"{TYPES}.Transformer"}, {"path": "1_Pooling", "type": f"{TYPES}.Pooling"}]
    _write(folder / path / "sentence_bert_config.json", settings)
    config = pooling if isinstance(pooling, dict) else {"pooling_mode": pooling}
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": HIDDEN} | config)
    for at, layer in enumerate(layers, 2):
        kind = layer["type"].rpartition(".")[2]
        modules.append({"path": f"{at}_{kind}", "type": layer["type"]})
        (folder / f"{at}_{kind}").mkdir()
        if "config" in layer:
            _write(folder / f"{at}_{kind}" / "config.json", layer["config"])
            _weights(folder / f"{at}_{kind}", kind, layer["config"], pickle)
    _write(folder / "modules.json", [{"idx": n, "name": str(n), **each} for n, each in enumerate(modules)])
    if prompts is not None:
        _write(folder / "config_sentence_transformers.json", prompts)
    return folder


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _weights(folder: Path, kind: str, config: dict[str, Any], pickle: bool) -> None:
    generator = torch.Generator().manual_seed(len(folder.name))
    if kind == "LayerNorm":
        size = config["dimension"]
        made = {f"norm.{name}": torch.randn(size, generator=generator) for name in ("weight", "bias")}
    else:
        inputs, outputs = config["in_features"], config["out_features"]
        made = {"linear.weight": torch.randn(outputs, inputs, generator=generator) / inputs**0.5}
        if config["bias"]:
            made["linear.bias"] = torch.randn(outputs, generator=generator)
        if config.get("use_residual") and inputs != outputs:
            made["residual.weight"] = torch.randn(outputs, inputs, generator=generator)
    if pickle:
        torch.save(made, folder / "pytorch_model.bin")
    else:
        save_file(made, folder / "model.safetensors")


class Reference:
    """A folder's vectors, text by text and without padding, by the arithmetic that sentence-transformers documents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules = [(each["type"].rpartition(".")[2], each["path"]) for each in self._read("modules.json")]
        base = self.modules[0][1]
        self.settings = self._read(f"{base}/sentence_bert_config.json")
        self.model = AutoModel.from_pretrained(folder / base, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / base)
        self.prompts = self._read("config_sentence_transformers.json") or {}

    def encode(self, text: str, prompt: str | None = None) -> torch.Tensor:
        """One text's vector, [D]; `prompt` is by default the folder's own."""
        default = self.prompts.get("default_prompt_name")
        prompt = self.prompts["prompts"][default] if prompt is None and default else prompt or ""
        ids = self._ids(prompt + text)
        with torch.no_grad():
            states = self.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long())[0][0]
            vector = self._pooled(states, prompt)
            for kind, path in self.modules[2:]:
                vector = self._module(kind, path, vector)
        return vector

    def _read(self, name: str) -> Any:
        path = self.folder / name.lstrip("/")
        return json.loads(path.read_text()) if path.is_file() else None

    def _ids(self, text: str) -> list[int]:
        text = text.lower() if self.settings.get("do_lower_case") else text
        most = self.settings.get("max_seq_length") or min(self.tokenizer.model_max_length, 128)
        ids: list[int] = self.tokenizer(text, truncation=True, max_length=most)["input_ids"]
        return ids

    def _pooled(self, states: torch.Tensor, prompt: str) -> torch.Tensor:
        config = self._read(f"{self.modules[1][1]}/config.json")
        positions = torch.arange(1, len(states) + 1)[:, None]
        if prompt and not config.get("include_prompt", True):
            given = self._ids(prompt)
            skipped = len(given) - (given[-1] in self.tokenizer.all_special_ids)
            states, positions = states[skipped:], positions[skipped:]
        modes = config.get("pooling_mode") or [
            mode for mode in MODES if any(config.get(f"pooling_mode_{mode}{end}") for end in ("", "_token", "_tokens"))
        ]
        made = {
            "cls": states[0],
            "max": states.max(0).values,
            "mean": states.sum(0) / len(states),
            "mean_sqrt_len_tokens": states.sum(0) / torch.tensor(len(states)).sqrt(),
            "weightedmean": (states * positions).sum(0) / positions.sum(),
            "lasttoken": states[-1],
        }
        return torch.cat([made[mode] for mode in ([modes] if isinstance(modes, str) else modes)])

    def _module(self, kind: str, path: str, vector: torch.Tensor) -> torch.Tensor:
        if kind == "Normalize":
            return vector / vector.norm()
        config = self._read(f"{path}/config.json")
        safe = self.folder / path / "model.safetensors"
        weights = load_file(safe) if safe.is_file() else torch.load(self.folder / path / "pytorch_model.bin")
        if kind == "LayerNorm":
            spread = ((vector - vector.mean()) ** 2).mean()
            return (vector - vector.mean()) / (spread + 1e-5).sqrt() * weights["norm.weight"] + weights["norm.bias"]
        name = config["activation_function"].rpartition(".")[2]
        made = weights["linear.weight"] @ vector + (weights["linear.bias"] if config["bias"] else 0)
        made = getattr(torch.nn, name)()(made)
        if config.get("use_residual"):
            made = made + (weights["residual.weight"] @ vector if "residual.weight" in weights else vector)
        return made
