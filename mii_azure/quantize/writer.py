"""Writes a model folder with quantised products: tensor by tensor, in the form of `scoring.quantization.layout`.

Imports torch and transformers; only quantising does.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mii_azure.errors import NotAvailable, WeightsCorrupt
from mii_azure.model import safetensors
from mii_azure.model.files import contained, shards
from mii_azure.model.quantizable import LEFT_OUT
from mii_azure.model.resolved import INDEX, WEIGHTS
from scoring.quantization import compressed_tensors
from scoring.quantization.layout import (
    PACKED,
    SCALE,
    SHAPE,
    WEIGHT,
    Made,
    config_of,
    group_for,
    is_made,
    parts_of,
)

_AT_ONCE = 1 << 20  # numbers, in rows, that are held in float32 and float64 at a time
_RENAMED = {"embed_out": "lm_head"}  # GPT-NeoX's, renamed by transformers at load


@dataclass
class Losses:
    """Error of quantisation in the weights: sums of squares over all products."""

    products: int = 0
    weights: float = 0.0
    errors: float = 0.0

    @property
    def relative(self) -> float:
        """2-norm of the error over that of the weights."""
        return float((self.errors / self.weights) ** 0.5) if self.weights else 0.0


@dataclass(frozen=True)
class Products:
    """Products of a model: modules that are quantised with their inputs, and names of the other linear ones."""

    inputs: dict[str, int]
    others: frozenset[str]
    prefix: str  # of the body's names; a checkpoint may lack it, or have it though the model does not

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.inputs)

    @property
    def group(self) -> int:
        """Inputs that share a scale in int4."""
        return group_for(self.inputs.values())

    def made(self, kind: Made) -> "Products":
        """Products that are quantised to a kind."""
        able = {name: size for name, size in self.inputs.items() if is_made(kind, name, size, self.group)}
        return Products(able, self.others | (self.names - able.keys()), self.prefix)

    def module(self, key: str) -> str:
        """Name of the product whose weight a checkpoint calls `key`; empty if there is none."""
        name = key.removesuffix(WEIGHT)
        name = _RENAMED.get(name, name)
        known = (name, f"{self.prefix}.{name}", name.removeprefix(f"{self.prefix}."))
        return next((each for each in known if key.endswith(WEIGHT) and each in self.names), "")


def products_of(folder: Path) -> Products:
    """Read the products from the model's class, without weights; raises NotAvailable if it cannot be quantised."""
    model = _outline(folder)
    body = model.base_model
    if any(isinstance(module, Conv1D) for module in body.modules()):
        raise NotAvailable(
            f"{type(model).__name__} keeps its products as Conv1D, which no shared format of quantised weights has.",
            LEFT_OUT,
        )
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linear = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    inside = {id(module) for module in body.modules()} | {id(_own_outputs(model))}
    able = {name: each for name, each in linear.items() if id(each) in inside and id(each.weight) not in tables}
    inputs = {name: each.in_features for name, each in able.items()}
    return Products(inputs, frozenset(linear.keys() - inputs.keys()), model.base_model_prefix)


def _outline(folder: Path) -> Any:
    """Model without weights, of the class that config.json names."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return getattr(transformers, config.architectures[0])(config)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise NotAvailable(f"The model's products are not known to transformers: {reason}.", LEFT_OUT) from error


def _own_outputs(model: Any) -> Any:
    """Output matrix of a model that generates."""
    return model.get_output_embeddings() if model.can_generate() else None


def weight_files(folder: Path) -> list[Path]:
    """Safetensors files of a folder, in name order."""
    if (folder / WEIGHTS).is_file():
        return [contained(folder, WEIGHTS)]
    index = json.loads(contained(folder, INDEX).read_text(encoding="utf-8"))
    return [contained(folder, name) for name in shards(index, INDEX)]


@dataclass
class Writer:
    """Quantises the files of one folder into another; `hashes` and `losses` fill along the way."""

    source: Path
    target: Path
    dtype: torch.dtype  # type that the weights will be widened to
    kind: Made = "int8"
    progress: Callable[[int, int], None] = lambda done, total: None
    losses: Losses = field(default_factory=Losses)
    hashes: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Write weights, index and config.json; raises NotAvailable, WeightsCorrupt."""
        products = self._products = products_of(self.source).made(self.kind)
        quantized: set[str] = set()
        total = 0
        where: dict[str, str] = {}
        files = weight_files(self.source)
        for number, path in enumerate(files):
            tensors = safetensors.read_header(path)
            able = {t.name: module for t in tensors if _may_be(t) and (module := products.module(t.name))}
            quantized |= set(able.values())
            entries = self._entries(tensors, able)
            total += sum(entry.bytes for entry in entries)
            where |= {entry.name: path.name for entry in entries}
            self.progress(*_bytes_of(files, number))
            self._file(path, entries, able)
        self.progress(*_bytes_of(files, len(files)))
        if not quantized:
            raise NotAvailable(f"The model has no product whose weights could be {self.kind}.", LEFT_OUT)
        self.losses.products = len(quantized)
        if not (self.source / WEIGHTS).is_file():
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
            self._text(INDEX, index)
        left = sorted(products.others | (products.names - quantized))
        told = config_of(self.kind, products.group) | {"ignore": left}
        self._text("config.json", _config(self.source) | {"quantization_config": told})

    def _file(self, path: Path, entries: list[safetensors.Tensor], able: dict[str, str]) -> None:
        """Write one file, tensor by tensor; only the scales and shapes of its products are held, which precede them."""
        digest = hashlib.sha256()
        with safe_open(path, framework="pt", device="cpu") as reader, (self.target / path.name).open("wb") as file:

            def put(content: bytes | memoryview) -> None:
                digest.update(content)
                file.write(content)

            parameters = {}
            for name in sorted(able):
                weight = reader.get_tensor(name)
                parameters[_part(name, SCALE)] = self._scales(weight, name)
                parameters[_part(name, SHAPE)] = torch.tensor(weight.shape)
            packed = {_part(name, part): name for name in able for part in (PACKED, WEIGHT)}
            put(_header(entries))
            for entry in entries:
                if entry.name in parameters:
                    put(_bytes(parameters[entry.name]))
                    continue
                tensor = reader.get_tensor(packed.get(entry.name, entry.name))
                put(_bytes(self._packed(tensor) if entry.name in packed else tensor))
        self.hashes[path.name] = digest.hexdigest()

    def _quantize(self, block: Tensor) -> tuple[Tensor, Tensor]:
        return compressed_tensors.quantize(block, self.dtype, self.kind, self._products.group)

    def _entries(self, tensors: Iterable[safetensors.Tensor], able: dict[str, str]) -> list[safetensors.Tensor]:
        """Tensors of the new file; wide items first, so that each lies at a multiple of its size."""
        entries = []
        for tensor in tensors:
            if tensor.name not in able:
                entries.append(tensor)
                continue
            rows, columns = tensor.shape
            parts = parts_of(self.kind, rows, columns, self._products.group)
            entries += [safetensors.Tensor(_part(tensor.name, part), dtype, shape) for part, dtype, shape in parts]
        return sorted(entries, key=lambda tensor: (-safetensors.ITEM_BYTES[tensor.dtype], tensor.name))

    def _scales(self, weight: Tensor, name: str) -> Tensor:
        for block in blocks(weight):
            if not torch.isfinite(block.to(self.dtype)).all():
                dtype = str(self.dtype).removeprefix("torch.")
                raise WeightsCorrupt(
                    f"{name} holds a number that is not finite in {dtype}, which no scale can cover.",
                    "Copy the weights again, or generate without --quantise.",
                )
        return torch.cat([self._quantize(block)[1] for block in blocks(weight)])

    def _packed(self, weight: Tensor) -> Tensor:
        parts = []
        for block in blocks(weight):
            narrow, scale = self._quantize(block)
            wide = block.double()
            self.losses.weights += float((wide**2).sum())
            found = compressed_tensors.widen(narrow, scale, torch.float32).double()
            self.losses.errors += float(((found - wide) ** 2).sum())
            parts.append(compressed_tensors.pack(narrow, self.kind))
        return torch.cat(parts)

    def _text(self, name: str, value: Any) -> None:
        content = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
        (self.target / name).write_bytes(content)
        self.hashes[name] = hashlib.sha256(content).hexdigest()


def _bytes_of(files: list[Path], count: int) -> tuple[int, int]:
    """Total bytes of the first `count` files, and of all."""
    sizes = [path.stat().st_size for path in files]
    return sum(sizes[:count]), sum(sizes)


def blocks(weight: Tensor) -> tuple[Tensor, ...]:
    """Split a weight into blocks of as many rows as are held in float32 at a time."""
    return torch.split(weight, max(1, _AT_ONCE // weight.shape[1]))


def _may_be(tensor: safetensors.Tensor) -> bool:
    return len(tensor.shape) == 2 and tensor.dtype in safetensors.FLOAT_NAMES


def _part(weight: str, part: str) -> str:
    return weight.removesuffix(WEIGHT) + part


def _header(entries: Iterable[safetensors.Tensor]) -> bytes:
    """Safetensors header of tensors that follow it in that order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        span = [end, end + entry.bytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": span}
        end = span[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    flat: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _config(source: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    return config
