"""Forms of vectors that a folder makes: one a text, sparse ones (SPLADE), or one for each token (ColBERT); no torch."""

import string
from collections.abc import Mapping, Sequence
from typing import Any

from scoring.config import MODULES
from scoring.sentence.folder import (
    PROMPTS,
    Layer,
    Malformed,
    Module,
    Read,
    SentenceModel,
    Unserved,
    check_transformer,
    describe_dense,
    layer_of,
    length_of,
    modules,
    prompts_of,
    settings_of,
    size_of,
    typed_in,
)
from scoring.sentence.vectors import Expansion, LateInteraction, Splade

#: Settings of a ColBERT folder that has no modules.json, and the class that its config.json names.
COLBERT_FILE, COLBERT = "artifact.metadata", "HF_ColBERT"
#: The projection of such a folder: its tensor among the transformer's own.
PROJECTION = "linear.weight"
_SPLADE, _MASK = "SpladePooling", "MultiVectorMask"
_LATE = ("ColBERT", "MultiVectorEncoder")
_SIMILARITIES = {"dot": "dot", "cosine": "cosine"}
_TOKENS = "token_embeddings"
_ROLES = ("query", "document")
_QUERY_LENGTH, _PROJECTED = 32, 128  # ColBERT's own defaults


def is_colbert(config: Mapping[str, Any]) -> bool:
    """Return True for the config.json of a ColBERT with its projection among its weights."""
    named = config.get("architectures")
    return isinstance(named, list) and COLBERT in named


def describe(read: Read) -> SentenceModel:
    """Describe a folder with a modules.json, or of a ColBERT; raises Unserved, or Malformed for a senseless file."""
    listed = read(MODULES)
    if listed is None:
        return _colbert(read)
    kinds = [each.kind for each in modules(listed)]
    told = typed_in(read(PROMPTS) or {}, dict, "it", PROMPTS)
    if _MASK in kinds or told.get("model_type") in _LATE:
        return _late(read, told)
    return _sparse(read, told) if _SPLADE in kinds else describe_dense(read)


def _sparse(read: Read, told: Mapping[str, Any]) -> SentenceModel:
    found = modules(read(MODULES))
    if [each.kind for each in found] != ["Transformer", _SPLADE]:
        named = " and ".join(each.type or "a module without a type" for each in found)
        raise Unserved(f"{MODULES} names {named}; sparse vectors are served of a Transformer with a {_SPLADE} alone.")
    first, pool = found
    settings, file = settings_of(first, read)
    check_transformer(settings, file, "fill-mask")
    prompts, default = prompts_of(read, "SparseEncoder")
    return SentenceModel(
        first.path,
        (),
        max_seq_length=length_of(settings, "max_seq_length", file),
        lower_case=typed_in(settings.get("do_lower_case", False), bool, "do_lower_case", file),
        prompts=prompts,
        default_prompt=default,
        splade=_splade(pool, read, told),
    )


def _splade(module: Module, read: Read, model: Mapping[str, Any]) -> Splade:
    file = module.file("config.json")
    told = typed_in(read(file) or {}, dict, "it", file)
    pooling, activation = told.get("pooling_strategy", "max"), told.get("activation_function", "relu")
    if pooling not in ("max", "sum"):
        raise Unserved(f"{file} pools by {str(pooling)[:80]}; served are max and sum.")
    if activation not in ("relu", "log1p_relu"):
        raise Unserved(f"{file} activates by {str(activation)[:80]}; served are relu and log1p_relu.")
    similarity = model.get("similarity_fn_name") or "dot"
    if not isinstance(similarity, str) or similarity not in _SIMILARITIES:
        raise Unserved(f"{PROMPTS} compares by {str(similarity)[:80]}; served are dot and cosine.")
    return Splade(pooling, 2 if activation == "log1p_relu" else 1, similarity)


def _late(read: Read, told: Mapping[str, Any]) -> SentenceModel:
    found = modules(read(MODULES))
    if not found:
        raise Malformed(f"{MODULES} names no modules.")
    first, *rest = found
    if first.kind != "Transformer":
        raise Unserved(f"{MODULES} has {first.type or 'a module without a type'} first, where a Transformer is served.")
    settings, file = settings_of(first, read)
    check_transformer(settings, file)
    layers, mask = _projection(rest, read)
    listed = told.get("model_type") != _LATE[0]  # PyLate's folders name neither the mask nor the last norm
    if not listed:
        layers = [*layers, Layer(Module("Normalize", "", ""))]
    prompts, default, markers = _marked(read, told)
    skipped, tasks = _skipped(mask, read) if mask is not None else (_words(told, PROMPTS), ("document",))
    similarity = told.get("similarity_fn_name")
    return SentenceModel(
        first.path,
        ("none",),
        tuple(layers),
        max_seq_length=length_of(settings, "max_seq_length", file),
        lower_case=typed_in(settings.get("do_lower_case", False), bool, "do_lower_case", file),
        prompts=prompts,
        default_prompt=default,
        late=LateInteraction(
            length_of(settings, "query_length", file) or length_of(told, "query_length", PROMPTS),
            length_of(settings, "document_length", file) or length_of(told, "document_length", PROMPTS),
            _expansion(settings, told, file),
            skipped,
            tasks,
            markers,
            similarity == "meanmaxsim",
        ),
    )


def _projection(rest: Sequence[Module], read: Read) -> tuple[list[Layer], Module | None]:
    """Layers over the tokens' vectors, and the module that says which of them are compared."""
    layers, mask = [], None
    for each in rest:
        if each.kind == _MASK:
            mask = each
        elif each.kind in ("Dense", "Normalize", "LayerNorm"):
            if each.kind != "Normalize" and not each.path:
                raise Malformed(f"{MODULES} says no path for {each.type}.")
            layers.append(layer_of(each, read, _TOKENS))
        elif each.kind != "Dropout":
            raise Unserved(
                f"{MODULES} has {each.type or 'a module without a type'}; behind the transformer of a model with a "
                f"vector for each token, Dense, LayerNorm, Normalize and {_MASK} are served."
            )
    return layers, mask


def _marked(read: Read, told: Mapping[str, Any]) -> tuple[dict[str, str], str | None, tuple[str, ...]]:
    """Prompts by role, the default one's name, and the markers that PyLate's folders put in front of them."""
    prompts, default = prompts_of(read, *reversed(_LATE))
    markers = []
    for role in _ROLES:
        marker = told.get(f"{role}_prefix")
        if marker is not None:
            marker = typed_in(marker, str, f"{role}_prefix", PROMPTS)
            prompts[role] = marker + prompts.get(role, "").removeprefix(marker)
            markers.append(marker)
    return prompts, default, tuple(markers)


def _skipped(mask: Module, read: Read) -> tuple[tuple[str, ...], tuple[str, ...]]:
    file = mask.file("config.json")
    told = typed_in(read(file) or {}, dict, "it", file)
    if told.get("keep_only_token_ids"):
        raise Unserved(f"{file} keeps the vectors of some tokens only, which is for images.")
    tasks = told.get("skiplist_tasks") or ["document"]
    tasks = [tasks] if isinstance(tasks, str) else typed_in(tasks, list, "skiplist_tasks", file)
    return _texts(told.get("skiplist_words") or [], file), tuple(map(str, tasks))


def _words(told: Mapping[str, Any], file: str) -> tuple[str, ...]:
    """Tokens that PyLate's folders leave out: punctuation, unless they list others."""
    words = told.get("skiplist_words")
    return tuple(string.punctuation) if words is None else _texts(words, file)


def _texts(words: Any, file: str) -> tuple[str, ...]:
    listed = typed_in(words, list, "skiplist_words", file)
    return tuple(typed_in(word, str, "a word of skiplist_words", file) for word in listed)


def _expansion(settings: Mapping[str, Any], told: Mapping[str, Any], file: str) -> Expansion | None:
    if "query_expansion" not in settings and "query_expansion" not in told:
        older = ("query_length", "document_length", "do_query_expansion", "attend_to_expansion_tokens",
                 "query_prefix", "document_prefix", "skiplist_words")  # fmt: skip
        if not set(older) & set(told) or told.get("do_query_expansion") is False:
            return None
        length = length_of(told, "query_length", PROMPTS) or _QUERY_LENGTH
        return Expansion(length, bool(told.get("attend_to_expansion_tokens")))
    given = settings.get("query_expansion", told.get("query_expansion"))
    if given is None:
        return None
    given = typed_in(given, dict, "query_expansion", file)
    if given.get("strategy") not in ("fixed", "min"):
        raise Unserved(f"{file} expands queries by {str(given.get('strategy'))[:80]}; served are fixed and min.")
    length = size_of(given, "length", file)
    token = given.get("token")
    token = None if token is None else typed_in(token, str, "token", file)
    return Expansion(length, bool(given.get("attend")), given["strategy"] == "fixed", token)


def _colbert(read: Read) -> SentenceModel:
    """Describe a ColBERT whose projection lies among its weights."""
    told = typed_in(read(COLBERT_FILE) or {}, dict, "it", COLBERT_FILE)
    config = typed_in(read("config.json") or {}, dict, "it", "config.json")
    out = length_of(told, "dim", COLBERT_FILE) or _PROJECTED
    dense = Layer(Module("Dense", COLBERT, ""), size_of(config, "hidden_size", "config.json"), out, bias=False)
    marks = {"query": told.get("query_token_id") or "[unused0]", "document": told.get("doc_token_id") or "[unused1]"}
    prompts = {role: f"{typed_in(mark, str, role, COLBERT_FILE)} " for role, mark in marks.items()}
    skipped = tuple(string.punctuation) if told.get("mask_punctuation", True) else ()
    length = length_of(told, "query_maxlen", COLBERT_FILE) or _QUERY_LENGTH
    late = LateInteraction(
        None,
        length_of(told, "doc_maxlen", COLBERT_FILE),
        Expansion(length, bool(told.get("attend_to_mask_tokens"))),
        skipped,
        markers=tuple(prompts.values()),
    )
    return SentenceModel("", ("none",), (dense, Layer(Module("Normalize", "", ""))), prompts=prompts, late=late)
