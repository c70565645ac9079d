"""Loads folders of quantised weights into transformers models: each tensor is read, widened and placed by itself."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from scoring.errors import WeightsUnreadable
from scoring.model_files.shards import read_shard_names
from scoring.model_files.text_part import RENAMED, text_options
from scoring.quantization.dequantize import Grid, Parts, grid, widen
from scoring.quantization.headers import Packed, Stored, Unrecognised
from scoring.quantization.layout import quantization_of
from scoring.quantization.recognised import method_of, recognise
from scoring.strict_json.files import read_object


def from_pretrained(cls: Any, folder: Path, **options: Any) -> Any:
    """Call `cls.from_pretrained` on a folder, auto class or not; quantised weights are widened on their target device.

    The model is like one loaded from wide weights, and its config does not mention quantisation. Raises what
    transformers raises, and WeightsUnreadable for a method that is not read and for parts that do not fit together.
    """
    told = quantization_of(folder)
    if not told and read_object(folder / "config.json").get("model_type") not in RENAMED:
        return cls.from_pretrained(folder, **options)
    import transformers

    trusted = bool(options.get("trust_remote_code"))
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted)
    options |= text_options(config)
    if not told:
        return cls.from_pretrained(folder, **options)
    stored = Checkpoint(folder, told)
    del config.quantization_config
    config = options.pop("config", config)
    if hasattr(cls, "from_config"):
        with torch.device("meta"):
            cls = type(cls.from_config(config, trust_remote_code=trusted))
    where = options.get("device_map", {}).get("", "cpu")
    weights = stored.tensors(torch.device(where), options["dtype"])
    loaded = cls.from_pretrained(None, config=config, state_dict=weights, **options)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.name_or_path = model.config._name_or_path = str(folder)
    if model.can_generate():
        named = {} if (folder / "generation_config.json").is_file() else {"config_file_name": "config.json"}
        read = transformers.GenerationConfig.from_pretrained
        model.generation_config = read(folder, local_files_only=True, _from_model_config=bool(named), **named)
    return loaded


class InFile:
    """A tensor in a file, read when transformers takes all of it by `[...]`, like a slice of safetensors."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name

    def __getitem__(self, _: Any) -> Tensor:
        tensor: Tensor = self._file.get_tensor(self._name)
        return tensor

    @property
    def stored(self) -> Stored:
        """Type and shape, without reading it."""
        told = self._file.get_slice(self._name)
        return Stored(told.get_dtype(), tuple(told.get_shape()))


class Quantised:
    """A quantised weight in files, copied to a device as it is and widened there."""

    def __init__(self, weight: Packed, found: Mapping[str, InFile], device: torch.device, dtype: torch.dtype) -> None:
        self.weight, self._device, self._dtype = weight, device, dtype
        self._parts = {role: found[name] for role, name in weight.parts.items()}

    def __getitem__(self, _: Any) -> Tensor:
        return widen(self.weight, self.parts(), self._dtype)

    def grid(self) -> Grid:
        """Numbers and scales of the tensor, on the device."""
        return grid(self.weight, self.parts())

    def parts(self) -> Parts:
        """Stored tensors of the weight, on the device."""
        return {role: part[...].to(self._device) for role, part in self._parts.items()}


class Checkpoint:
    """A folder's quantised weights; raises WeightsUnreadable for those that are not read."""

    def __init__(self, folder: Path, told: Mapping[str, Any]) -> None:
        try:
            method_of(told)
            self._found = dict(_in_files(folder))
            self._told = recognise(told, {name: each.stored for name, each in self._found.items()})
        except Unrecognised as error:
            raise WeightsUnreadable(str(error), error.hint) from error

    def tensors(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Map from names of a wide checkpoint to what reads each tensor by `[...]`."""
        wide: dict[str, Any] = {name: each for name, each in self._found.items() if name not in self._told.dropped}
        return wide | self.quantised(device, dtype)

    def quantised(self, device: torch.device, dtype: torch.dtype) -> dict[str, Quantised]:
        """Quantised weights by the names of their wide forms."""
        return {each.name: Quantised(each, self._found, device, dtype) for each in self._told.weights}


def _in_files(folder: Path) -> Iterator[tuple[str, InFile]]:
    for path in _files(folder):
        file = safe_open(path, framework="pt", device="cpu")
        names: list[str] = file.keys()  # type: ignore[no-untyped-call]
        yield from ((name, InFile(file, name)) for name in names)


def _files(folder: Path) -> Iterator[Path]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        yield folder / "model.safetensors"
        return
    yield from (folder / name for name in read_shard_names(index))
