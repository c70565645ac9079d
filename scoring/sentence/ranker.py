"""Reads what a cross-encoder's folder says of its scores: activation, judged tokens, prompts, length; no torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scoring.config import MODULES
from scoring.sentence.folder import (
    ACTIVATIONS,
    PROMPTS,
    TRANSFORMER,
    Malformed,
    Read,
    Unserved,
    check_arguments,
    modules,
    prompts_of,
    typed_in,
)

#: Option of a deployment that ranks: which of a decoder's logits are its scores.
FORM, JUDGES = "form", "yes_no"
CAUSAL = "ForCausalLM"  # end of the names of models that do so
_SERVED = "Its task is text-classification, which takes pairs too and answers with every label."
_PURPOSES = ("sequence-classification", "text-generation")


@dataclass(frozen=True)
class Ranker:
    """Settings of a model that scores pairs of texts, from its folder."""

    activation: str = "Sigmoid"  # name in torch.nn of what turns a logit into a score
    true_token: int | None = None  # of a model that writes its judgement; None: the tokenizer's own words for it
    false_token: int | None = None  # None beside a true_token: the score is that token's logit alone
    templated: bool = False  # pairs go through the tokenizer's chat template, as a query and a document
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None  # a name among them
    max_seq_length: int | None = None  # tokens
    lower_case: bool = False

    @property
    def prompt(self) -> str:
        """Prompt that goes before every pair; empty if there is none."""
        return self.prompts[self.default_prompt] if self.default_prompt is not None else ""


def describe_ranker(read: Read, config: Mapping[str, Any]) -> Ranker:
    """Describe a folder by its files and config.json; raises Unserved, or Malformed for a file that means nothing."""
    first, judge = _modules(read)
    file = next((name for name in (first + each for each in TRANSFORMER) if read(name) is not None), TRANSFORMER[0])
    settings = typed_in(read(file) or {}, dict, "it", file)
    check_arguments(settings, file)
    if settings.get("transformer_task", _PURPOSES[0]) not in _PURPOSES and read(MODULES) is not None:
        raise Unserved(f"{file} asks for the task {str(settings['transformer_task'])[:80]}.", _SERVED)
    length = settings.get("max_seq_length")
    if length is not None and typed_in(length, int, "max_seq_length", file) < 1:
        raise Malformed(f"{file}: max_seq_length is {length}.")
    told = typed_in(read(PROMPTS) or {}, dict, "it", PROMPTS)
    prompts, default = prompts_of(read, "CrossEncoder")
    true_token, false_token = _tokens(read, judge)
    ways = typed_in(settings.get("modality_config") or {}, dict, "modality_config", file)
    lower = typed_in(settings.get("do_lower_case", False), bool, "do_lower_case", file)
    activation = _activation(told, config)
    return Ranker(activation, true_token, false_token, "message" in ways, prompts, default, length, lower)


def _modules(read: Read) -> tuple[str, str]:
    """Start of the names of the transformer's files, and the folder of what judges its logits; "" if there is none."""
    listed = read(MODULES)
    if listed is None:
        return "", ""
    found = modules(listed)
    kinds = [each.kind for each in found]
    if kinds not in (["Transformer"], ["Transformer", "LogitScore"]):
        named = " and ".join(each.type or "a module without a type" for each in found) or "no module"
        raise Unserved(f"{MODULES} names {named}; served are a Transformer alone, and one with a LogitScore.", _SERVED)
    return found[0].file("") if found[0].path else "", found[1].path if len(found) > 1 else ""


def _tokens(read: Read, folder: str) -> tuple[int | None, int | None]:
    if not folder:
        return None, None
    file = f"{folder}/config.json"
    told = typed_in(read(file), dict, "it", file)
    if told.get("module_input_name", "causal_logits") != "causal_logits":
        raise Unserved(f"{file} reads {str(told['module_input_name'])[:80]}, not the logits.", _SERVED)
    true = typed_in(told.get("true_token_id"), int, "true_token_id", file)
    false = told.get("false_token_id")
    return true, None if false is None else typed_in(false, int, "false_token_id", file)


def _activation(told: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Name in torch.nn of the activation function; Sigmoid if no file says one."""
    own = config.get("sentence_transformers")
    places = (
        (PROMPTS, told.get("activation_fn")),
        ("config.json", own.get("activation_fn") if isinstance(own, dict) else None),
        ("config.json", config.get("sbert_ce_default_activation_function")),
    )
    file, named = next(((file, named) for file, named in places if named is not None), ("", "torch.nn.Sigmoid"))
    name = str(named).rpartition(".")[2]
    if not isinstance(named, str) or not named.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise Unserved(
            f"{file} names the activation {str(named)[:80]!r}; served are torch.nn's {', '.join(ACTIVATIONS)}.",
            "Name one of those there, or serve the model as text-classification and score on your side.",
        )
    return name
