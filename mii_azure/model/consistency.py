"""Tokenizer, config and weights that disagree: found from headers and vocabularies, before anything is loaded."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mii_azure.errors import ConfigMissing, ModelInconsistent
from mii_azure.model import configs
from mii_azure.model.families import Family, fact, find_family, first_architecture, is_known_type, nearest_type
from mii_azure.model.files import contained
from mii_azure.model.resolved import Model, read_settings
from mii_azure.model.safetensors import INPUTS, Tensor
from mii_azure.model.sizes import disagreements, has_told_size

_LABELLING = ("ForSequenceClassification", "ForTokenClassification")
_HEAD = re.compile(r"(classifier|score|classifier\.out_proj|classification_head\.out_proj)\.weight")
_USUAL_LABELS = 2  # of a config that names none
_SHOWN = 5


def is_compared(tensor: Tensor) -> bool:
    """True if config.json or the tokenizer have to agree with a size of the tensor: tokens, labels, widths, layers."""
    return len(tensor.shape) == 2 and (bool(_HEAD.fullmatch(tensor.name)) or has_told_size(tensor))


def check_consistency(model: Model, trust_remote_code: bool) -> None:
    """Raise ModelInconsistent for a type unknown to transformers, or weights of other sizes than config.json has."""
    if model.source not in ("folder", "hub"):
        return
    family = find_family(model.config)
    if family.kind == "diffusion":
        return
    _check_type(family.name, trust_remote_code)
    _check_head(model)
    if family.tested:  # others may keep more rows than tokens, under names of their own
        _check_embeddings(model, family)
        _check_sizes(model, family)


def _check_type(name: str, trust_remote_code: bool) -> None:
    if is_known_type(name) or trust_remote_code:
        return
    near = nearest_type(name) if name else ""
    raise ModelInconsistent(
        f"config.json says the model type {name!r}, which transformers does not have."
        if name
        else "config.json says no model_type, by which transformers finds the model's class.",
        f"Did you mean {near!r}?" if near else "Copy config.json again, as save_pretrained wrote it.",
    )


def _check_head(model: Model) -> None:
    if not first_architecture(model.config).endswith(_LABELLING):
        return
    told = label_count(model.config)
    for tensor in model.weights.compared:
        if _HEAD.fullmatch(tensor.name) and tensor.shape[0] != told:
            raise ModelInconsistent(
                f"{tensor.name} has {tensor.shape[0]} labels, and config.json {told}.",
                "Copy config.json and weights from the same place; id2label has a name for each label.",
            )


def label_count(config: dict[str, Any]) -> int:
    """Labels of a model with such a head, by its config.json."""
    labels = configs.value(config, "id2label", dict)
    return len(labels) if labels else configs.value(config, "num_labels", int) or _USUAL_LABELS


def _check_embeddings(model: Model, family: Family) -> None:
    told = fact(model.config, family, "vocab_size")
    for tensor in _embeddings(model):
        if told and tensor.shape[0] != told:
            raise ModelInconsistent(
                f"{tensor.name} has {tensor.shape[0]} tokens, and config.json's vocab_size is {told}.",
                "Copy config.json and weights from the same place.",
            )


def _check_sizes(model: Model, family: Family) -> None:
    if model.weights.published:  # packed numbers have shapes of their own
        return
    found = next(disagreements(model.weights.compared, model.config, family), None)
    if found:
        raise ModelInconsistent(found, "Copy config.json and weights from the same place.")


def _embeddings(model: Model) -> Iterator[Tensor]:
    return (tensor for tensor in model.weights.compared if tensor.name.endswith(INPUTS))


def tokens_without_embedding(model: Model) -> tuple[str, ...]:
    """Tokens of the tokenizer for which the model has no embedding, as "TOKEN (ID)", by id."""
    rows = max((tensor.shape[0] for tensor in _embeddings(model)), default=0)
    rows = rows or fact(model.config, find_family(model.config), "vocab_size") or 0
    if not rows:
        return ()
    found = {number: token for number, token in _tokens(model) if number >= rows}
    return tuple(f"{found[number]} ({number})" for number in sorted(found))


def shown(tokens: tuple[str, ...]) -> str:
    """The first of these tokens, and how many there are."""
    more = f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
    return ", ".join(tokens[:_SHOWN]) + more


def vocabulary(folder: Path) -> dict[int, str]:
    """Tokens of a model folder's tokenizer by their ids; empty where no file tells all of them."""
    found: dict[int, str] = {}
    if (folder / "tokenizer.json").is_file():
        found.update(_numbered(read_settings(contained(folder, "tokenizer.json"))))
    elif (folder / "vocab.json").is_file():
        for name in ("vocab.json", "added_tokens.json"):
            listed = read_settings(contained(folder, name)) if (folder / name).is_file() else {}
            found |= {number: token for token, number in listed.items() if isinstance(number, int)}
    return found


def _tokens(model: Model) -> Iterator[tuple[int, str]]:
    settings = model.settings.get("tokenizer_config.json") or {}
    decoder = settings.get("added_tokens_decoder")
    for number, token in (decoder if isinstance(decoder, dict) else {}).items():
        if number.isdigit() and isinstance(token, dict):
            yield int(number), str(token.get("content"))
    path = model.folder / "tokenizer.json" if model.folder else None
    if path is None or not path.is_file():
        return
    try:
        tokenizer = read_settings(path)
    except ConfigMissing:  # transformers will say why it cannot read it
        return
    yield from _numbered(tokenizer)


def _numbered(tokenizer: dict[str, Any]) -> Iterator[tuple[int, str]]:
    inner = tokenizer.get("model")
    vocabulary = inner.get("vocab") if isinstance(inner, dict) else None
    if isinstance(vocabulary, dict):
        yield from ((number, token) for token, number in vocabulary.items() if isinstance(number, int))
    elif isinstance(vocabulary, list):  # pairs of a token and its score
        yield from ((number, str(pair[0])) for number, pair in enumerate(vocabulary) if isinstance(pair, list) and pair)
    for token in tokenizer.get("added_tokens") or []:
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            yield token["id"], str(token.get("content"))
