"""Weights behind a sentence-transformers folder's vectors, compared with its settings by their headers alone."""

import re
from collections.abc import Mapping
from pathlib import PurePath

from mii_azure.errors import ModelInconsistent
from mii_azure.model import configs
from mii_azure.model.files import contained
from mii_azure.model.resolved import WEIGHTS, Model
from mii_azure.model.safetensors import read_header
from scoring.sentence.folder import Layer, SentenceModel
from scoring.sentence.forms import COLBERT, PROJECTION

_AGAIN = "Copy settings and weights from the same place, as the library that trained the model saved them."
#: First product of a masked language model's head, by transformers' families; others' heads are found at load.
_HEADS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "mpnet"), ("cls.predictions.transform", "lm_head")),
    "distilbert": ("vocab_transform",),
    "modernbert": ("head",),
}
_ROWS = re.compile(r"(cls\.predictions|lm_head|vocab_projector|decoder)\.(decoder\.)?bias$")
Shapes = Mapping[str, tuple[int, ...]]


def check_weights(model: Model, told: SentenceModel) -> None:
    """Raise ModelInconsistent for weights of a projection or of a head over the vocabulary that settings do not fit.

    A model that is not on disk yet, and pickles, are left to the load.
    """
    if model.folder is None:
        return
    for layer in told.layers:
        if layer.inputs:
            _check_layer(model, layer)
    if told.splade:
        _check_vocabulary_head(model)


def _check_layer(model: Model, layer: Layer) -> None:
    inline = layer.module.type == COLBERT
    file = layer.module.file(WEIGHTS)
    found = _shapes(model, file)
    if not found:
        return
    wanted = {PROJECTION: (layer.outputs, layer.inputs)} if inline else _wanted(layer)
    for name, shape in wanted.items():
        if name not in found:
            raise ModelInconsistent(f"{file} of {model.name} has no {name}, which its settings lead to.", _AGAIN)
        if found[name] != shape:
            raise ModelInconsistent(
                f"{name} in {file} of {model.name} is {_told(found[name])}, and by its settings {_told(shape)}.", _AGAIN
            )
    if strange := [] if inline else sorted(found.keys() - wanted.keys()):
        raise ModelInconsistent(f"{file} of {model.name} has {strange[0]}, which its settings do not know.", _AGAIN)


def _wanted(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Tensors of a module, as sentence-transformers names them."""
    if layer.module.kind == "LayerNorm":
        return {"norm.weight": (layer.inputs,), "norm.bias": (layer.inputs,)}
    both = (layer.outputs, layer.inputs)
    found: dict[str, tuple[int, ...]] = {"linear.weight": both}
    found |= {"linear.bias": (layer.outputs,)} if layer.bias else {}
    return found | ({"residual.weight": both} if layer.residual and layer.inputs != layer.outputs else {})


def _check_vocabulary_head(model: Model) -> None:
    found: dict[str, tuple[int, ...]] = {}
    inner = PurePath(model.transformer)
    for name in model.names:
        if name.endswith(".safetensors") and PurePath(name).parent == inner:
            found |= _shapes(model, name)
    heads = _HEADS.get(configs.value(model.config, "model_type", str) or "")
    if not found or heads is None:
        return
    if not any(f"{head}.dense.weight" in found or f"{head}.weight" in found for head in heads):
        raise ModelInconsistent(
            f"{model.name} has no weights of its head over the vocabulary, of which sparse vectors are made.", _AGAIN
        )
    size = configs.value(model.config, "vocab_size", int)
    for name, shape in found.items():
        if size and _ROWS.search(name) and shape != (size,):
            raise ModelInconsistent(
                f"{name} of {model.name} is for {_told(shape)} tokens, and config.json's vocab_size is {size}.", _AGAIN
            )


def _shapes(model: Model, name: str) -> Shapes:
    if model.folder is None or name not in model.names:
        return {}
    return {tensor.name: tensor.shape for tensor in read_header(contained(model.folder, name))}


def _told(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
