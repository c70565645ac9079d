"""Reads folders whose weights were quantised when the bundle was generated, in the form of `quantization.layout`.

Quantising a widened weight gives the same int8 numbers again, in every dtype that is served: a row's largest number is
rounded to bfloat16, so that 127 times its scale is read back exactly, and no other number is off by half a step.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from scoring.errors import WeightsUnreadable
from scoring.model_files.shards import read_shard_names
from scoring.quantization.int8 import LEAST
from scoring.quantization.layout import PACKED, SCALE, SHAPE, WEIGHT, is_shipped, quantization_of

_AT_ONCE = 1 << 22  # numbers widened at once, which bounds the float32 copy


def scales(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales, float32 [N, 1], one per row, of a weight that will be widened to `dtype`."""
    largest = _told_apart(weight, dtype).abs().amax(1, keepdim=True).bfloat16().float()
    return largest.clamp(min=LEAST, max=torch.finfo(dtype).max) / 127


def quantize(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantize a weight that will be widened to `dtype`: int8 [N, K], symmetric, and its `scales`."""
    scale = scales(weight, dtype)
    return (_told_apart(weight, dtype) / scale).round().clamp(-127, 127).to(torch.int8), scale


def _told_apart(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Weight in float32, for float16 rounded to it first: in rows of tiny numbers it has fewer steps than int8."""
    return (weight.half() if dtype == torch.float16 else weight).float()


def pack(narrow: Tensor) -> Tensor:
    """Pack int8 [N, K] into int32 [N, ceil(K / 4)]."""
    padded = torch.zeros(narrow.shape[0], -(-narrow.shape[1] // 4) * 4, dtype=torch.uint8)
    padded[:, : narrow.shape[1]] = narrow.view(torch.uint8) ^ 128
    return padded.view(torch.int32)


def unpack(packed: Tensor, columns: int) -> Tensor:
    """Unpack int32 [N, ceil(columns / 4)] to int8 [N, columns], on its device."""
    return (packed.view(torch.uint8)[:, :columns] ^ 128).view(torch.int8)


def widen(narrow: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Widen int8 [N, K] with scales [N, 1] to the weight [N, K] in `dtype`, on their device."""
    wide = torch.empty(narrow.shape, dtype=dtype, device=narrow.device)
    count = max(1, _AT_ONCE // narrow.shape[1])
    for start in range(0, narrow.shape[0], count):
        rows = slice(start, start + count)
        wide[rows] = narrow[rows].float() * scale[rows].float()
    return wide


def from_pretrained(cls: Any, folder: Path, **options: Any) -> Any:
    """Call `cls.from_pretrained` on a folder, auto class or not; int8 weights are widened on their target device.

    The model is like one loaded from wide weights, and its config does not mention int8. Raises what transformers
    raises, and WeightsUnreadable for weights quantised in another way or for a missing scale.
    """
    told = quantization_of(folder)
    if not told:
        return cls.from_pretrained(folder, **options)
    if not is_shipped(told):
        raise WeightsUnreadable(
            f"The weights are quantised ({told.get('quant_method')}, {told.get('format')}), which is not read here.",
            "Generate the bundle again from the unquantised model, with --quantise int8 if you like.",
        )
    import transformers

    trusted = bool(options.get("trust_remote_code"))
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    del config.quantization_config
    if hasattr(cls, "from_config"):
        with torch.device("meta"):
            cls = type(cls.from_config(config, trust_remote_code=trusted))
    where = options.get("device_map", {}).get("", "cpu")
    weights = _weights(folder, torch.device(where), options["dtype"])
    loaded = cls.from_pretrained(None, config=config, state_dict=weights, **options)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.name_or_path = model.config._name_or_path = str(folder)
    if model.can_generate():
        named = {} if (folder / "generation_config.json").is_file() else {"config_file_name": "config.json"}
        read = transformers.GenerationConfig.from_pretrained
        model.generation_config = read(folder, local_files_only=True, _from_model_config=bool(named), **named)
    return loaded


class _Stored:
    """A tensor in a file, read when transformers takes all of it by `[...]`, like a slice of safetensors."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name

    def __getitem__(self, _: Any) -> Tensor:
        tensor: Tensor = self._file.get_tensor(self._name)
        return tensor


class _Rows(_Stored):
    """An int8 weight in a file, copied to a device as int8 and widened there."""

    def __init__(self, packed: _Stored, scale: _Stored, columns: int, device: torch.device, dtype: torch.dtype) -> None:
        self._packed, self._scale, self._columns, self._device, self._dtype = packed, scale, columns, device, dtype

    def __getitem__(self, _: Any) -> Tensor:
        narrow = unpack(self._packed[...].to(self._device), self._columns)
        return widen(narrow, self._scale[...].to(self._device), self._dtype)


def _weights(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, _Stored]:
    """Map from names in the checkpoint to tensors in files; an int8 weight has the name of its wide form."""
    stored: dict[str, _Stored] = {}
    for path in _files(folder):
        file = safe_open(path, framework="pt", device="cpu")
        names: list[str] = file.keys()  # type: ignore[no-untyped-call]
        stored |= {name: _Stored(file, name) for name in names}
    for name in [name for name in stored if name.endswith(PACKED)]:
        product = name.removesuffix(PACKED)
        packed, scale, shape = (stored.pop(product + part, None) for part in (PACKED, SCALE, SHAPE))
        if packed is None or scale is None or shape is None:
            raise WeightsUnreadable(f"The int8 weight {name} has no scale or shape.", "Generate the bundle again.")
        stored[product + WEIGHT] = _Rows(packed, scale, int(shape[...][1]), device, dtype)
    return stored


def _files(folder: Path) -> Iterator[Path]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        yield folder / "model.safetensors"
        return
    yield from (folder / name for name in read_shard_names(index))
