"""Safetensors headers: the tensors of a weight file, and its completeness, without reading a weight."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mii_azure.errors import WeightsCorrupt, WeightsMissing
from scoring.strict_json.files import parse, typed

# Bytes of one element, by safetensors' name of the type.
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
ITEM_BYTES |= {"U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8}
ITEM_BYTES |= {"F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1}
_ITEM_BITS = {dtype: 8 * size for dtype, size in ITEM_BYTES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
FLOAT_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: Bytes of one element, by torch's name of the type.
DTYPE_BYTES = {name: ITEM_BYTES[short] for short, name in FLOAT_NAMES.items()}
# The limit of the safetensors library itself.
MAX_HEADER_BYTES = 100_000_000
_MAX_ELEMENTS, _MAX_DIMENSIONS = 2**63 - 1, 64  # torch and numpy allow no more
LFS_POINTER = b"version https://git-lfs"

# Tensors in checkpoints that are no parameters, and matrices that may be stored twice.
_BUFFERS = re.compile(r"(position_ids|token_type_ids|masked_bias|inv_freq|final_logits_bias)$")
_OUTPUTS = re.compile(
    r"(lm_head\.weight|lm_head\.decoder\.weight|predictions\.decoder\.weight|vocab_projector\.weight)$"
)
_OUTPUT_BIASES = re.compile(r"(lm_head\.decoder\.bias|predictions\.decoder\.bias)$")
INPUTS = ("word_embeddings.weight", "wte.weight", "embed_tokens.weight", "embed_in.weight", "shared.weight")
_SHARED_INPUTS = re.compile(r"(encoder|decoder)\.embed_tokens\.weight$")


class Tensor(NamedTuple):
    name: str
    dtype: str  # safetensors' name, e.g. "F32"
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * _ITEM_BITS.get(self.dtype, 8) // 8


class Weights(NamedTuple):
    """Sums over the headers of a model's weight files."""

    parameters: int  # tied matrices once, buffers not at all
    bytes: int  # on disk
    dtype: str  # the one with most bytes, e.g. "float32"; "" if not floating point
    narrow_bytes: Mapping[str, int] = {}  # on disk, by the kind of numbers that products become; {} if not known
    published: str = ""  # method by which the files' weights are quantised, e.g. "awq"; "" if they are not
    kind: str = ""  # numbers that most quantised weights are made of, e.g. "int4"
    compared: tuple[Tensor, ...] = ()  # those of which config.json and the tokenizer tell sizes
    widened: str = ""  # what the file was before its weights are widened, e.g. "GGUF Q4_K, 4,920.7 MB"


def read_header(path: Path) -> list[Tensor]:
    """Read the tensors of a safetensors file, after checking that the file is as long as its header says.

    Raises WeightsMissing for a Git LFS pointer and WeightsCorrupt for a file that is cut short or malformed.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if LFS_POINTER.startswith(prefix) and prefix:
            raise WeightsMissing(
                f"{path.name} is a Git LFS pointer, not the weights.",
                "Run `git lfs pull` in the model's folder.",
                str(path),
            )
        length = int.from_bytes(prefix, "little") if len(prefix) == 8 else -1
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise _corrupt(path, f"its header should be {length} bytes long and the file has {size}")
        raw = file.read(length)
    try:
        tensors, end = _parse(typed(parse(raw), dict, "it"))
    except (ValueError, TypeError) as error:
        raise _corrupt(path, f"its header cannot be read: {error}") from error
    if 8 + length + end != size:
        raise _corrupt(path, f"its header describes {8 + length + end} bytes and the file has {size}")
    return tensors


def _corrupt(path: Path, what: str) -> WeightsCorrupt:
    return WeightsCorrupt(f"{path.name} is damaged: {what}.", "Download or copy the file again.", str(path))


def _parse(header: dict[str, Any]) -> tuple[list[Tensor], int]:
    """Parse the tensors of a header in file order and their total bytes; raise ValueError or TypeError."""
    for key, value in typed(header.pop("__metadata__", {}), dict, "__metadata__").items():
        typed(value, str, f"__metadata__.{key}")
    entries = sorted((_span(name, fields), checked(name, fields)) for name, fields in header.items())
    end = 0
    for (start, stop), tensor in entries:
        if start != end:
            raise ValueError(f"{tensor.name} does not start where the tensor before it ends")
        if stop - start != tensor.bytes:
            raise ValueError(f"{tensor.name} has {stop - start} bytes for {tensor.elements} of {tensor.dtype}")
        end = stop
    return [tensor for _, tensor in entries], end


def checked(name: str, fields: Any) -> Tensor:
    """Parse a tensor from a header's entry; raises ValueError or TypeError with the tensor's name."""
    told = typed(fields, dict, name)
    dtype = typed(told.get("dtype"), str, f"dtype of {name}")
    if dtype not in _ITEM_BITS:
        raise ValueError(f"{name} is of the type {dtype!r}, which safetensors has not")
    shape = tuple(typed(each, int, f"shape of {name}") for each in typed(told.get("shape"), list, f"shape of {name}"))
    sizes = len(shape) <= _MAX_DIMENSIONS and all(0 <= each <= _MAX_ELEMENTS for each in shape)
    if not sizes or math.prod(shape) > _MAX_ELEMENTS:
        raise ValueError(f"{name} has the shape {list(shape)}, which no file can hold")
    return Tensor(name, dtype, shape)


def _span(name: str, fields: Any) -> tuple[int, int]:
    """Begin and end offsets of a tensor's bytes."""
    offsets = typed(typed(fields, dict, name).get("data_offsets"), list, f"data_offsets of {name}")
    whole = [typed(each, int, f"data_offsets of {name}") for each in offsets]
    if len(whole) != 2 or not 0 <= whole[0] <= whole[1]:
        raise ValueError(f"{name} begins and ends nowhere in the file: {whole}")
    return whole[0], whole[1]


def count(tensors: Iterable[Tensor], file_bytes: int, tied: bool) -> Weights:
    """Sum up headers: parameters with tied matrices once (`tied`: output embeddings are the input ones)."""
    tensors = [tensor for tensor in tensors if not _is_buffer(tensor)]
    by_type: dict[str, int] = {}
    for tensor in tensors:
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + tensor.bytes
    shapes = {tensor.shape for tensor in tensors if tensor.name.endswith(INPUTS)} if tied else set()
    shared = any(tensor.name.endswith("shared.weight") for tensor in tensors)
    parameters = sum(tensor.elements for tensor in tensors if not _is_copy(tensor, shapes, shared))
    most = max(by_type, key=lambda dtype: by_type[dtype], default="")
    return Weights(parameters, file_bytes, FLOAT_NAMES.get(most, ""))


def _is_buffer(tensor: Tensor) -> bool:
    """True if a stored tensor is recomputed at load: position ids, causal masks of GPT-2, GPT-J, GPT-Neo, GPT-NeoX."""
    if _BUFFERS.search(tensor.name):
        return True
    return len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1) and tensor.name.endswith("bias")


def _is_copy(tensor: Tensor, embedding_shapes: set[tuple[int, ...]], shared: bool) -> bool:
    """True if a stored tensor is the second copy of a tied one."""
    if shared and _SHARED_INPUTS.search(tensor.name):
        return True
    if _OUTPUT_BIASES.search(tensor.name):
        return True  # the same vector as the head's own "bias"
    return bool(_OUTPUTS.search(tensor.name)) and tensor.shape in embedding_shapes
