"""GGUF files as models: their header read and checked, without reading a weight that is quantised.

data/gguf.json has every name, shape and setting that is carried over; what has no place there is refused, not dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from mii_azure.errors import ModelInconsistent, NotAvailable, TokenizerMissing, WeightsCorrupt, WeightsMissing
from mii_azure.model import configs
from mii_azure.model.files import contained
from mii_azure.model.folder import pickle_files, weigh
from mii_azure.model.gguf_architectures import Architecture, TensorPlace, architecture_of, architectures, places
from mii_azure.model.gguf_config import LONG, ROTARY, SHORT, config_of, layers_of, number, sizes_of
from mii_azure.model.gguf_header import COPY, ORIGINAL, Entry, Header, TextList
from mii_azure.model.gguf_parts import only_file, read_whole
from mii_azure.model.gguf_tokenizer import refuse_unknown
from mii_azure.model.resolved import WEIGHTS, Model, read_settings
from mii_azure.model.safetensors import Tensor

_SIZES = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv")
_SHORT = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class GgufFile(NamedTuple):
    """GGUF file whose every tensor has its place in a model of transformers."""

    header: Header
    found: Architecture
    placed: list[tuple[Entry, TensorPlace]]  # in the file's order
    config: dict[str, Any]  # as config.json has it
    settings: dict[str, Any]  # as tokenizer_config.json has it, as far as planning reads it
    kind: str  # type that most bytes have, e.g. "Q4_K"
    dtype: str  # that it is widened to

    @property
    def file(self) -> Path:
        """The file itself."""
        return self.header.file

    @property
    def bytes(self) -> int:
        """Size of the file, of all its parts together."""
        return sum(each.stat().st_size for each in self.header.files)

    @property
    def wide(self) -> list[Tensor]:
        """Tensors as a safetensors file of the widened model has them."""
        return [each for _, place in self.placed for each in self.widened(place)]

    def widened(self, place: TensorPlace) -> list[Tensor]:
        """Tensors that one becomes: many where it holds experts."""
        return [Tensor(name, _SHORT[self.dtype], shape) for name, shape in place.wide]


def gguf_file(path: Path) -> Path | None:
    """GGUF file that a path stands for: itself, or the only one of a folder without other weights; None without one.

    Of several parts it is the first. Raises NotAvailable for a folder of several models.
    """
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    found = sorted(each for each in path.glob("*.gguf") if not each.name.startswith("mmproj"))
    if not found or any(path.glob("*.safetensors")) or pickle_files(path):
        return None
    return only_file(path, found)


def read_gguf(file: Path, name: str, folder: Path | None = None) -> Model:
    """Read a GGUF file's facts; raises NotAvailable and the ModelError branch for one that cannot be served.

    Where a folder was given, a config.json there may tell no other sizes: it is not read otherwise.
    """
    found = read_checkpoint(file)
    if folder is not None and (folder / "config.json").is_file():
        _refuse_other_sizes(found, read_settings(contained(folder, "config.json")))
    wide = found.wide
    weights = weigh(found.config, wide, sum(each.bytes for each in wide))
    widened = f"GGUF {found.kind}, {found.bytes / 1e6:,.1f} MB"
    names = frozenset({"config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"})
    settings = {"tokenizer_config.json": found.settings}
    return Model(name, "folder", found.config, weights._replace(widened=widened), None, None, settings, names)


def read_checkpoint(file: Path) -> GgufFile:
    """Read and check a GGUF file's header.

    Raises NotAvailable for what is not converted, WeightsCorrupt for a damaged file, and WeightsMissing, ConfigMissing
    or TokenizerMissing for a part that it lacks.
    """
    _require_package()
    header = read_whole(file)
    found = _architecture(header)
    _require_parts(header)
    kinds: dict[str, int] = {}
    for tensor in header.tensors:
        kinds[tensor.kind.name] = kinds.get(tensor.kind.name, 0) + tensor.bytes
    kind = max(kinds, key=lambda each: kinds[each])
    dtype = {"F32": "float32", "F16": "float16"}.get(kind, "bfloat16")
    config = config_of(header, found) | {"dtype": dtype}
    settings = {"model_max_length": number(header, "context_length")}
    if template := header.fields.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    return GgufFile(header, found, _placed(header, found, config), config, settings, kind, dtype)


def _refuse_other_sizes(found: GgufFile, beside: dict[str, Any]) -> None:
    """Raise ModelInconsistent for a config.json of another model."""
    text = configs.value(beside, "text_config", dict) or beside
    for key in _SIZES:
        name = found.found.settings.get(key, "")
        told = text.get(name, found.config.get(name))
        if told != found.config.get(name):
            raise ModelInconsistent(
                f"{found.file.name} has {name} {found.config[name]}, and config.json beside it {told}.",
                f"Give the file itself, {found.file}, if config.json is another model's.",
            )


def _require_package() -> None:
    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError as error:
        raise NotAvailable(
            "Reading GGUF needs the package 'gguf'.", "pip install 'mii-azure[models]' brings it."
        ) from error


def _architecture(header: Header) -> Architecture:
    """Architecture of a file; raises NotAvailable for one that holds no whole language model of a known one."""
    name, kind = header.file.name, header.fields.get("general.type")
    if header.architecture == "clip" or kind == "mmproj":
        raise NotAvailable(f"{name} holds the eyes or ears of a model (mmproj).", "Give its text model's file.")
    if kind == "adapter":
        raise NotAvailable(f"{name} is an adapter in GGUF.", "Give it as PEFT saved it, by --adapter.")
    if kind == "imatrix" or header.architecture == "imatrix":
        raise NotAvailable(f"{name} is an importance matrix, of which a model is quantised.", "Give the model's file.")
    found = architecture_of(header)
    if found is None:
        raise NotAvailable(
            f"{name} is GGUF of the architecture {header.architecture!r}; converted are {', '.join(architectures())}.",
            ORIGINAL,
        )
    return found


def _require_parts(header: Header) -> None:
    """Raise for a file without weights or vocabulary, and for types that cannot be undone."""
    name = header.file.name
    if not header.tensors:
        raise WeightsMissing(f"{name} holds no tensors, only a vocabulary.", "Give the model's own file.")
    tokenizer = header.fields.get("tokenizer.ggml.model")
    tokens = header.fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, TextList) or tokenizer in (None, "none", "no_vocab"):
        raise TokenizerMissing(f"{name} has no vocabulary.", "Convert it again without --no-vocab.")
    refuse_unknown(header)
    for kind in {each.kind for each in header.tensors}:
        if not _undone(kind):
            raise NotAvailable(f"{name} has tensors in {kind.name}, which gguf does not undo.", ORIGINAL)
    blocks = header.get("block_count")
    if not isinstance(blocks, int | list) or (isinstance(blocks, int) and not 0 < blocks <= len(header.tensors)):
        raise WeightsCorrupt(
            f"{name} says {blocks!r} blocks and has {len(header.tensors)} tensors.", COPY, str(header.file)
        )


def _undone(kind: Any) -> bool:
    """True if gguf makes floats of a type: asked with one block of zeros."""
    import numpy as np
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    block = np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8)
    plain = {"F32": np.float32, "F16": np.float16}.get(kind.name)
    try:
        dequantize(block.view(plain) if plain else block, kind)
    except NotImplementedError:
        return False
    return True


def _placed(header: Header, found: Architecture, config: dict[str, Any]) -> list[tuple[Entry, TensorPlace]]:
    """Tensors with their places, all of which fit; raises the ModelError branch."""
    file = header.file
    layers = layers_of(header)
    every = places(found, config, sizes_of(header, config), layers)
    left = (ROTARY, LONG, SHORT, *(f"blk.{each}." for each in range(layers, number(header, "block_count"))))
    held = [each for each in header.tensors if not each.name.startswith(left)]
    unplaced = [each.name for each in held if each.name not in every]
    if unplaced:
        raise NotAvailable(
            f"transformers' {found.model_class} has no place for {len(unplaced)} of {len(header.tensors)} tensors of"
            f" {file.name}, {unplaced[0]} first.",
            ORIGINAL,
        )
    lost = every.keys() - {each.name for each in held}
    if lost:
        raise WeightsCorrupt(f"{file.name} lacks {len(lost)} tensors, {min(lost)} first.", COPY, str(file))
    for each in held:
        if not every[each.name].fits(each.shape):
            raise WeightsCorrupt(
                f"{each.name} of {file.name} is {list(each.shape)}, and its metadata say"
                f" {list(every[each.name].stored)}.",
                COPY,
                str(file),
            )
    return [(each, every[each.name]) for each in held]
