"""Suspects: what commonly differs between two servers of one model, each as a change of the reference.

A target whose tokens the reference would not pick is judged again by each suspect; the one that picks them names the
cause.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mii_azure.errors import SpecError
from mii_azure.model.adapters import CONV1D, Adapter, read_adapter, require_same, targets
from mii_azure.model.folder import stored_tensors
from scoring.lora.peft_folder import WEIGHTS, LowRank
from scoring.quantization.layout import KINDS, Made, group_for, is_made

if TYPE_CHECKING:
    from torch import Tensor

    from mii_azure.verdict.tokens.reference import ReferenceModel

_GROUPS = (128, 64, 32)  # weights that share a scale in int4, as published checkpoints have them
_FP8_MAX = 448.0  # of float8_e4m3fn
_CUTS = (64, 128, 256, 512, 1024, 2048)  # lengths that a tokenizer or a server commonly cuts at, in tokens

Prompt = Callable[["ReferenceModel", Any], list[int]]
Change = Callable[["ReferenceModel"], AbstractContextManager[None]]


@dataclass(frozen=True)
class Suspect:
    """A cause, and how the reference has to change to answer as it would."""

    cause: str
    model: Change | None = None
    prompt: Prompt = lambda reference, value: reference.prompt(value)


def suspects(task: str, named: Sequence[Suspect] = ()) -> list[Suspect]:
    """Suspects that a user named, and those of a task; what changes prompts alone comes first, as it costs least."""
    return [*named, *_templates(task), *_tokenizers(), *_cuts(), *_weights(), *_dtypes()]


def named_suspects(folders: Mapping[str, Path], base: Path, family: str) -> list[Suspect]:
    """Suspects in folders of a user's, of adapters or of whole models, beside the base in a folder.

    Raises SpecError for a folder that is neither, AdapterUnusable for an adapter that is damaged or of another base.
    """
    return [_folder(name, folder, base, family) for name, folder in folders.items()]


def _templates(task: str) -> Iterator[Suspect]:
    if task != "conversational":
        return
    yield Suspect("another chat template: none, the messages alone", prompt=_joined)
    yield Suspect("another chat template: ChatML", prompt=_chatml)
    yield Suspect("another chat template: User and Assistant in words", prompt=_words)
    yield Suspect("another chat template: no turn opened for the answer", prompt=_unopened)
    for system in ("", "You are a helpful assistant."):
        told = f"a system message {system!r}" if system else "an empty system message"
        yield Suspect(f"another chat template: {told}", prompt=_with_system(system))


def _joined(reference: "ReferenceModel", value: Any) -> list[int]:
    return reference.read("\n".join(message["content"] for message in value))


def _chatml(reference: "ReferenceModel", value: Any) -> list[int]:
    turns = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in value)
    return reference.read(f"{turns}<|im_start|>assistant\n")


def _words(reference: "ReferenceModel", value: Any) -> list[int]:
    turns = "".join(f"{message['role'].capitalize()}: {message['content']}\n" for message in value)
    return reference.read(f"{turns}Assistant:")


def _unopened(reference: "ReferenceModel", value: Any) -> list[int]:
    text = reference.tokenizer.apply_chat_template(value, tokenize=False, add_generation_prompt=False)
    return reference.read(text)


def _with_system(system: str) -> Prompt:
    def prompt(reference: "ReferenceModel", value: Any) -> list[int]:
        return reference.prompt([{"role": "system", "content": system}, *value])

    return prompt


def _tokenizers() -> Iterator[Suspect]:
    yield Suspect("another tokenizer: special tokens read as plain text", prompt=_as_text(lambda token, first: True))
    yield Suspect(
        "another tokenizer: the special token that begins a prompt read as plain text",
        prompt=_as_text(lambda token, first: token == first),
    )
    yield Suspect(
        "another tokenizer: special tokens but the one that begins a prompt read as plain text",
        prompt=_as_text(lambda token, first: token != first),
    )
    yield Suspect("another tokenizer: a token that begins texts is left out or put twice", prompt=_other_start)
    yield Suspect("another tokenizer: texts in lower case", prompt=_lower)


def _as_text(lost: Callable[[int, int], bool]) -> Prompt:
    """Tokens of the prompt with special ones spelt in ordinary ones, where `lost` says so of one and the first."""

    def prompt(reference: "ReferenceModel", value: Any) -> list[int]:
        special, tokens = set(reference.tokenizer.all_special_ids), reference.prompt(value)
        first = next((token for token in tokens if token in special), -1)
        spelt: list[int] = []
        for token in tokens:
            text = reference.tokenizer.convert_ids_to_tokens(token)
            spelt += _pieces(reference, text) if token in special and lost(token, first) else [token]
        return spelt

    return prompt


def _pieces(reference: "ReferenceModel", text: str) -> list[int]:
    tokens: list[int] = reference.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return tokens


def _other_start(reference: "ReferenceModel", value: Any) -> list[int]:
    prompt, start = reference.prompt(value), reference.tokenizer.bos_token_id
    if start is None:
        return prompt
    return prompt[1:] if prompt[:1] == [start] else [start, *prompt]


def _lower(reference: "ReferenceModel", value: Any) -> list[int]:
    if isinstance(value, str):
        return reference.prompt(value.lower())
    return reference.prompt([{**message, "content": message["content"].lower()} for message in value])


def _cuts() -> Iterator[Suspect]:
    for most in _CUTS:
        yield Suspect(f"truncation: the first {most} tokens of a prompt kept", prompt=_cut(slice(0, most)))
        yield Suspect(f"truncation: the last {most} tokens of a prompt kept", prompt=_cut(slice(-most, None)))


def _cut(kept: slice) -> Prompt:
    return lambda reference, value: reference.prompt(value)[kept]


def _weights() -> Iterator[Suspect]:
    for kind in KINDS:
        yield Suspect(f"weights in {kind}, as `generate --quantise` makes them", model=_made(kind))
    for group in _GROUPS:
        yield Suspect(f"weights in int4, groups of {group}", model=_nearest(group))
    yield Suspect("KV cache in FP8", model=fp8_cache)


def _made(kind: Made) -> Change:
    def change(reference: "ReferenceModel") -> AbstractContextManager[None]:
        import torch

        from scoring.quantization import compressed_tensors

        layers = _layers(reference)
        group = group_for(layer.in_features for layer in layers)

        def rounded(weight: "Tensor") -> "Tensor":
            if not is_made(kind, "", weight.shape[1], group):
                return weight
            numbers, scale = compressed_tensors.quantize(weight, torch.bfloat16, kind, group)
            return compressed_tensors.widen(numbers, scale, torch.float32)

        return _rounded(reference, rounded)

    return change


def _nearest(group: int) -> Change:
    return lambda reference: _rounded(reference, lambda weight: _int4(weight, group))


def _dtypes() -> Iterator[Suspect]:
    yield Suspect("dtype bfloat16", model=lambda reference: _cast(reference, "bfloat16"))
    yield Suspect("dtype float16", model=lambda reference: _cast(reference, "float16"))


def _layers(reference: "ReferenceModel") -> list[Any]:
    import torch

    head = reference.model.get_output_embeddings()
    return [m for m in reference.model.modules() if isinstance(m, torch.nn.Linear) and m is not head]


@contextmanager
def _rounded(reference: "ReferenceModel", change: Callable[["Tensor"], "Tensor"]) -> Iterator[None]:
    """Round the weights of every linear layer but the head within the block."""
    layers = _layers(reference)
    kept = [layer.weight.data for layer in layers]
    for layer in layers:
        layer.weight.data = change(layer.weight.data)
    try:
        yield
    finally:
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight.data = weight


def _int4(weight: "Tensor", group: int) -> "Tensor":
    """Round to the nearest integers of [-7, 7] with one scale a group of a row; a row's rest is a group too."""
    import torch

    parts = []
    for part in torch.split(weight, group, dim=-1):
        scale = part.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 7
        parts.append((part / scale).round() * scale)
    return torch.cat(parts, -1)


@contextmanager
def fp8_cache(reference: "ReferenceModel") -> Iterator[None]:
    """Round keys and values as they enter the cache, unscaled as servers do by default."""
    import torch
    from transformers import DynamicCache

    class Rounding(DynamicCache):  # type: ignore[misc,unused-ignore]
        def update(self, key_states: "Tensor", value_states: "Tensor", *more: Any, **named: Any) -> Any:
            both = [
                each.clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn).to(each.dtype)
                for each in (key_states, value_states)
            ]
            return super().update(both[0], both[1], *more, **named)

    kept, reference.new_cache = reference.new_cache, lambda: Rounding(config=reference.model.config)
    try:
        yield
    finally:
        reference.new_cache = kept


@contextmanager
def _cast(reference: "ReferenceModel", dtype: str) -> Iterator[None]:
    """Run a copy of the model in another dtype within the block."""
    import copy

    import torch

    kept = reference.model
    reference.model = copy.deepcopy(kept).to(getattr(torch, dtype))
    try:
        yield
    finally:
        reference.model = kept


def _folder(name: str, folder: Path, base: Path, family: str) -> Suspect:
    if (folder / "adapter_config.json").is_file():
        adapter = read_adapter(name, str(folder))
        changes = targets(adapter, stored_tensors(base), family)
        return Suspect(
            f"the adapter {name}",
            model=lambda reference: _adapted(reference, adapter, changes, transposed=family in CONV1D),
        )
    if (folder / "config.json").is_file():
        return Suspect(f"the weights of {name}", model=lambda reference: _replaced(reference, folder))
    raise SpecError(
        f"The suspect {name}, {folder}, is no folder of a model or of an adapter.",
        "Name a folder with config.json or adapter_config.json.",
    )


@contextmanager
def _replaced(reference: "ReferenceModel", folder: Path) -> Iterator[None]:
    import torch
    from transformers import AutoModelForCausalLM

    kept = reference.model
    reference.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(reference.device)
    try:
        yield
    finally:
        reference.model = kept


@contextmanager
def _adapted(
    reference: "ReferenceModel", adapter: Adapter, changes: Mapping[str, LowRank | str], transposed: bool
) -> Iterator[None]:
    """Merge an adapter into the weights that it changes, within the block."""
    from safetensors.torch import load_file

    own = load_file(adapter.folder / WEIGHTS)
    parameters = {name: each for name, each in reference.model.named_parameters() if name in changes}
    kept = {name: each.data for name, each in parameters.items()}
    for name, parameter in parameters.items():
        change = changes[name]
        if isinstance(change, str):
            parameter.data = own[change].to(parameter.device, parameter.dtype)
            continue
        require_same(adapter, change, own, parameter.data)
        product = change.scaling * (own[change.up].float() @ own[change.down].float())
        parameter.data = parameter.data + (product.T if transposed else product).to(parameter.device)
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = kept[name]
