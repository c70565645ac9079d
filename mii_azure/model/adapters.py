"""LoRA adapters before they are loaded: PEFT folders read, and compared with their base by headers alone."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mii_azure.errors import AdapterUnusable, PickleRefused
from mii_azure.model.files import contained
from mii_azure.model.profile import Profile
from mii_azure.model.safetensors import FLOAT_NAMES, Tensor, read_header
from mii_azure.platform.paths import expanded, is_folder
from scoring.lora.peft_folder import (
    CONFIG,
    MERGE,
    PICKLE,
    WEIGHTS,
    LowRank,
    PeftAdapter,
    UnservedAdapter,
    describe,
    digest,
    require_products,
)
from scoring.strict_json.files import read_object

CONV1D = ("gpt2", "openai-gpt")  # families whose products are stored [inputs, outputs]
_BASE = "Give the model that it was trained on: {told}."


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder and what it holds."""

    name: str
    folder: Path
    content: PeftAdapter
    base: str  # as its author called the model that it was trained on
    bytes: int  # of its tensors' file
    parameters: int
    sha256: str  # over its two files

    @property
    def files(self) -> dict[str, Path]:
        """Files of the adapter by name."""
        return {name: self.folder / name for name in (CONFIG, WEIGHTS)}


def read_adapter(name: str, path: str) -> Adapter:
    """Read an adapter's folder; raises AdapterUnusable, PickleRefused, WeightsMissing, WeightsCorrupt, OutsideFolder.

    Hashes its weights, which are small beside the base's.
    """
    folder = expanded(path)
    if not is_folder(folder) or not (folder / CONFIG).is_file():
        what = f"has no {CONFIG}" if is_folder(folder) else "is no folder"
        raise AdapterUnusable(
            f"The adapter {path} {what}.",
            f"Give the folder that peft's save_pretrained wrote: {CONFIG} and {WEIGHTS}.",
        )
    config = read_object(contained(folder, CONFIG), AdapterUnusable)
    if not (folder / WEIGHTS).is_file():
        if (folder / PICKLE).is_file():
            raise PickleRefused(
                f"The adapter {path} has pickle weights only ({PICKLE}); loading a pickle can run any code it holds.",
                "Save it with peft's save_pretrained, which writes safetensors.",
            )
        raise AdapterUnusable(f"The adapter {path} has no {WEIGHTS}.", "Copy that file too.")
    tensors = read_header(contained(folder, WEIGHTS))
    try:
        odd = next((each for each in tensors if each.dtype not in FLOAT_NAMES), None)
        if odd:
            raise UnservedAdapter(f"{odd.name} is of the type {odd.dtype}, which no adapter is served from.")
        content = describe(config, {each.name: each.shape for each in tensors})
    except UnservedAdapter as refused:
        raise AdapterUnusable(f"The adapter {path} cannot be used: {refused}", refused.hint) from refused
    hashes = {each: hashlib.sha256((folder / each).read_bytes()).hexdigest() for each in (CONFIG, WEIGHTS)}
    base = config.get("base_model_name_or_path")
    return Adapter(
        name,
        folder,
        content,
        base if isinstance(base, str) else "",
        (folder / WEIGHTS).stat().st_size,
        sum(each.elements for each in tensors),
        digest(hashes),
    )


def merged_adapter(path: str) -> Adapter:
    """The adapter of a folder that is to be merged, under the folder's name; raises as `read_adapter` does."""
    return read_adapter(expanded(path).resolve().name, path)


def served_adapter(pair: str) -> Adapter:
    """The adapter of a NAME=FOLDER that is to be served beside its base; raises as `read_adapter` does."""
    name, _, path = pair.partition("=")
    adapter = read_adapter(name, path)
    try:
        require_products(adapter.content)
    except UnservedAdapter as refused:
        told = f"The adapter {name} cannot be served beside its base: {refused}"
        raise AdapterUnusable(told, refused.hint) from refused
    return adapter


def require_base(facts: Profile, transformer: str = "") -> None:
    """Raise AdapterUnusable for a base that takes no adapter, as far as its config tells."""
    if not facts.known or facts.kind == "diffusion":
        raise AdapterUnusable(f"{facts.model} takes no adapter.", "Give the folder or hub id of a transformers model.")
    if facts.shipped or facts.published:
        raise AdapterUnusable(
            f"The weights of {facts.model} are quantised, by {facts.published or facts.shipped}; an adapter's products"
            " were trained beside other numbers.",
            "Give the unquantised model that the adapter was trained on; quantise what generate merged.",
        )
    if transformer:
        raise AdapterUnusable(
            f"{facts.model} has its transformer in {transformer}, where no adapter is merged.",
            'Move those files one up, and set that path to "" in modules.json.',
        )


def targets(adapter: Adapter, base: Mapping[str, Tensor], family: str) -> dict[str, LowRank | str]:
    """Tensors of the base that an adapter changes: by a low-rank product, or to a stored tensor of that name.

    Raises AdapterUnusable for one that the base lacks, or has in another shape.
    """
    found: dict[str, LowRank | str] = {}
    for product in adapter.content.products:
        shape = (product.outputs, product.inputs)
        tensor = _find(adapter, f"{product.module}.weight", base)
        _require_shape(adapter, tensor, shape[::-1] if family in CONV1D else shape)
        found[tensor.name] = product
    stored = {each.name: each for each in read_header(adapter.folder / WEIGHTS)} if adapter.content.whole else {}
    for name, source in adapter.content.whole.items():
        tensor = _find(adapter, name, base)
        _require_shape(adapter, tensor, stored[source].shape)
        found[tensor.name] = source
    return found


def require_same(adapter: Adapter, product: LowRank, own: Mapping[str, Any], weight: Any) -> None:
    """Raise AdapterUnusable if a copy that it holds of a weight which it changes has other numbers than the base's."""
    name = f"{product.module}.weight"
    copy = adapter.content.copies.get(name)
    if copy is not None and not own[copy].to(weight).equal(weight):
        raise AdapterUnusable(
            f"The adapter {adapter.name} holds {name} whole with other numbers than the base's, and changes it by a"
            " low-rank product too.",
            MERGE,
        )


def _find(adapter: Adapter, name: str, base: Mapping[str, Tensor]) -> Tensor:
    """Tensor of the base by the name that the model's class gives it; checkpoints may lack, or have, its first part."""
    bare = name.partition(".")[2]
    found = base.get(name) or base.get(bare)
    if found is None:
        longer = [each for each in base if each.partition(".")[2] == name]
        found = base[longer[0]] if len(longer) == 1 else None
    if found is None:
        raise AdapterUnusable(
            f"The adapter {adapter.name} changes {name}, which the base model's weights do not have.", _told(adapter)
        )
    return found


def _require_shape(adapter: Adapter, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise AdapterUnusable(
            f"The adapter {adapter.name} is for a base whose {tensor.name} is {list(shape)}; here it is"
            f" {list(tensor.shape)}.",
            _told(adapter),
        )


def _told(adapter: Adapter) -> str:
    return _BASE.format(told=adapter.base or "its adapter_config.json does not name it")
