"""Settings of a generation config: what ends a text, and how rows run under the settings.

Every setting of transformers' `GenerationConfig` that is not named here means one row at a time through `generate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StopStringCriteria

from scoring.generation.adjustments import Adjustments
from scoring.generation.detokenizer import special_tokens
from scoring.generation.replies import ReplyForm
from scoring.schema.structured import Constraint

#: Settings that slots follow, whatever their values.
_FOLLOWED = {
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "min_new_tokens"),
    *("max_length", "min_length", "eos_token_id", "stop_strings"),
}
#: Settings that change no token of a decoder without beams and without an assistant.
_IDLE = {
    *("pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version", "length_penalty"),
    *("early_stopping", "output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "cache_config", "max_cache_len", "compile_config", "disable_compile"),
    *("prefill_chunk_size", "low_memory", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind"),
    *("assistant_ensemble_weight", "max_matching_ngram_size", "continuous_batching_config"),
}
#: Settings that `generate` reads only where it samples.
_SAMPLED = {"min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
#: Further settings under which `generate` treats each row of a batch as it treats one row.
_BATCHED = _SAMPLED | {
    *("num_beams", "num_return_sequences", "no_repeat_ngram_size", "use_cache", "bad_words_ids", "suppress_tokens"),
    *("begin_suppress_tokens", "forced_eos_token_id", "sequence_bias"),
    *("exponential_decay_length_penalty", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size"),
    *("renormalize_logits", "remove_invalid_values"),
}
#: The same of models whose answers begin a sequence of their own; a decoder's follow a prompt, and its padding.
_FROM_THE_START = {"forced_bos_token_id"}
#: What `generate` may return beside tokens.
_TOLD = ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states")
#: Values that turn a setting off, beside None and transformers' own defaults.
_OFF: dict[str, tuple[Any, ...]] = {
    "min_p": (0,),
    "guidance_scale": (1,),
    "cache_implementation": ("dynamic", "static", "hybrid", "hybrid_chunked", "sliding_window", "offloaded"),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    **dict.fromkeys(("renormalize_logits", "remove_invalid_values", "token_healing", "use_mtp"), (False,)),
}
#: Values that `generate` takes for settings that are None.
_DEFAULTS: dict[str, Any] = GenerationConfig._get_default_generation_params()
#: Settings that `generate` knows; it ignores any other entry of a generation config.
_KNOWN = frozenset(name for name in vars(GenerationConfig()) if not name.startswith("_"))


@dataclass(frozen=True)
class Bound:
    """Constraint on a row's answer, and the kinds of content that it may hold beside text."""

    constraint: Constraint | None = None
    reply: ReplyForm = field(default_factory=ReplyForm)


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of `generate` for one row; rows with equal settings may share a batch."""

    overrides: tuple[tuple[str, Any], ...]  # of the model's generation config
    stop: tuple[str, ...] = ()
    length: int | None = None  # of the prompt, if padding would change the answer
    details: int | None = None  # number of likeliest tokens to report for each token; None: no details
    adapter: str = ""  # of the row, by its key; empty: the model alone
    salt: str = ""  # rows with different salts share no prefix
    constraint: Constraint | None = None  # what the answer has to be
    reply: ReplyForm = field(default_factory=ReplyForm)  # what it may hold beside text
    adjustments: Adjustments = field(default_factory=Adjustments)
    stop_ids: tuple[int, ...] = ()  # tokens that end the text beside the model's own
    prompt_logprobs: int | None = None  # number of likeliest tokens to report for each token of the prompt
    tells_stop: bool = False  # the stop text is part of the answer
    tells_ids: bool = False  # the answer comes with its tokens' ids and the prompt's
    counts: bool = False  # a stream's events count the tokens so far

    def __getitem__(self, name: str) -> Any:
        return dict(self.overrides)[name]


def value_of(config: Any, name: str) -> Any:
    """Value that `generate` takes for a setting."""
    own = getattr(config, name, None)
    return _DEFAULTS.get(name) if own is None else own


def suits_slots(config: Any) -> bool:
    """Return True if slots follow every setting of a config."""
    return not _set(config) - _FOLLOWED - _IDLE


def suits_batches(config: Any, encoder_decoder: bool) -> bool:
    """Return True if `generate` answers rows of a batch as it answers each of them alone, padding aside."""
    return not _set(config) - _FOLLOWED - _IDLE - (_BATCHED | _FROM_THE_START if encoder_decoder else _BATCHED)


def answer_tokens_alone(config: Any) -> None:
    """Have `generate` return tokens under a config, whatever else that asks for."""
    for name in _TOLD:
        setattr(config, name, False)


def _set(config: Any) -> set[str]:
    """Names of the settings that a config turns on."""
    read = _KNOWN if config.do_sample else _KNOWN - _SAMPLED
    return {
        name
        for name in read
        if (value := getattr(config, name, None)) is not None
        and value != _DEFAULTS.get(name)
        and value not in _OFF.get(name, ())
    }


def end_tokens(model: Any, tokenizer: Any, vocabulary: int) -> list[int]:
    """Tokens that end a text: those of the generation config, of the model's config and of the tokenizer.

    A config's own counts if the tokenizer knows it as special: classes of configs have one where the file names none.
    """
    special = special_tokens(tokenizer)
    own = [each for config in (model.config, model.config.get_text_config()) for each in _ids(config)]
    found = [*_ids(model.generation_config), *(each for each in own if each in special), tokenizer.eos_token_id]
    return list(dict.fromkeys(each for each in found if each is not None and 0 <= each < vocabulary))


def _ids(config: Any) -> list[int]:
    own = getattr(config, "eos_token_id", None)
    return [] if own is None else [own] if isinstance(own, int) else list(own)


class ModelStops:
    """Stop strings of a generation config, found as `generate` finds them; they stay in the answer.

    They are looked for in the text of all tokens, those of the prompt and special ones included.
    """

    def __init__(self, tokenizer: Any, strings: str | Sequence[str]) -> None:
        self._criteria = StopStringCriteria(tokenizer, [strings] if isinstance(strings, str) else list(strings))
        self._most = int(self._criteria.maximum_token_len)

    def found(self, ids: Tensor) -> Tensor:
        """Bool [B]: rows of ids [B, S] whose last token completes a stop string."""
        return torch.as_tensor(self._criteria(ids, None))

    def ends(self, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        """Return True if the last token after a prompt completes a stop string."""
        tail = list(tokens[-self._most :])
        before = self._most - len(tail)
        return bool(self.found(torch.tensor([[*(prompt[-before:] if before else ()), *tail]]))[0])
