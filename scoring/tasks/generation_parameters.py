"""Parameters of generation as settings of `generate`, checked against the prompt, the model and each other."""

import secrets
from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig

from scoring.errors import InvalidParameter, PromptTooLong
from scoring.generation.adjustments import Adjustments
from scoring.schema.requests import GenerationParameters

DEFAULT_NEW_TOKENS = 128
#: Parameters passed on to `generate` unchanged, if given.
_PASSED = (
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "use_cache",
)
#: Each of these, given without do_sample, turns sampling on.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
COOLEST = 1e-3  # a temperature below this overflows logits and picks the same token anyway


def asked_of(p: GenerationParameters, own: GenerationConfig) -> dict[str, Any]:
    """Settings of `generate` that parameters ask for, over the model's own; raises InvalidParameter."""
    asked = {name: value for name in _PASSED if (value := getattr(p, name)) is not None}
    if asked.get("top_k") == -1:
        asked["top_k"] = 0
    if asked.get("top_p") == 0:  # slots count the mass in numbers that have no room for a least one
        asked = {**asked, "top_p": 1.0, "top_k": 1}
    sampling = p.do_sample
    if sampling is None:
        sampling = p.temperature != 0 and any(getattr(p, name) is not None for name in _SAMPLING)
    if sampling and p.temperature == 0:
        raise InvalidParameter(
            "temperature 0 takes the most likely token, which is not sampling.",
            "Leave out do_sample, or raise the temperature.",
            where="parameters.temperature",
        )
    if sampling and p.temperature is not None:
        asked["temperature"] = max(p.temperature, COOLEST)
    asked["do_sample"] = sampling
    asked["num_beams"] = p.num_beams or own.num_beams or 1
    asked["num_return_sequences"] = p.num_return_sequences
    if sampling:
        asked["seed"] = secrets.randbits(63) if p.seed in (None, -1) else p.seed
    if p.top_n_tokens and not p.return_details:
        raise InvalidParameter(
            "top_n_tokens tells nothing without details.",
            'Set "return_details": true, or leave it out.',
            where="parameters.top_n_tokens",
        )
    if getattr(p, "prompt_logprobs", None) is not None and not p.return_details:
        raise InvalidParameter(
            "prompt_logprobs tells nothing without details.",
            'Set "return_details": true, or leave it out.',
            where="parameters.prompt_logprobs",
        )
    if p.num_return_sequences > asked["num_beams"] and (asked["num_beams"] > 1 or not sampling):
        raise InvalidParameter(
            f"{p.num_return_sequences} answers need sampling, or as many beams; there are {asked['num_beams']}.",
            'Set "do_sample": true with num_beams 1, or num_beams to at least num_return_sequences.',
            where="parameters.num_return_sequences",
        )
    return asked


def lengths_of(
    p: GenerationParameters, own: GenerationConfig, start: int, context: int, encoder_decoder: bool, item: int
) -> dict[str, int]:
    """Most and least new tokens; `start` is the number of tokens that the model continues, of `context` in all.

    Raises InvalidParameter, and PromptTooLong where there is no room for one token.
    """
    room = context - start
    if room < 1:
        raise PromptTooLong(
            f"The prompt has {start} tokens; the model takes {context}, the answer included.",
            "Shorten the prompt.",
            where=f"inputs[{item}]",
        )
    if p.max_new_tokens is not None:
        most = p.max_new_tokens
    elif p.max_length is not None:
        most = min(p.max_length, context) - start
    else:
        most = min(_default_new_tokens(own, encoder_decoder), room)
    if most < 1:
        raise InvalidParameter(
            f"max_length is {p.max_length}, but the prompt alone has {start} tokens.",
            "Raise it, or set max_new_tokens instead.",
            where="parameters.max_length",
        )
    if most > room:
        raise InvalidParameter(
            f"max_new_tokens is {most}, but after {start} tokens only {room} fit the model's context of {context}.",
            f"Ask for {room} or fewer.",
            where="parameters.max_new_tokens",
        )
    return {"max_new_tokens": most, "min_new_tokens": _least(p, own, start, most), "min_length": 0}


def _least(p: GenerationParameters, own: GenerationConfig, start: int, most: int) -> int:
    if p.ignore_eos:
        return most
    if p.min_new_tokens is not None and p.min_new_tokens > most:
        raise InvalidParameter(
            f"min_new_tokens is {p.min_new_tokens}, more than the {most} that may be generated.",
            f"Ask for {most} or fewer, or raise max_new_tokens.",
            where="parameters.min_new_tokens",
        )
    if p.min_new_tokens is not None:
        return p.min_new_tokens
    total = own.min_length if p.min_length is None else p.min_length
    least = own.min_new_tokens if p.min_length is None and own.min_new_tokens else (total or 0) - start
    return min(max(0, least), most)


def new_tokens_of(p: GenerationParameters, own: GenerationConfig, context: int) -> int:
    """Tokens of a decoder's context that are left to the answer: those asked for, else the usual, up to half of it."""
    return p.max_new_tokens or min(_default_new_tokens(own, encoder_decoder=False), context // 2)


def _default_new_tokens(own: GenerationConfig, encoder_decoder: bool) -> int:
    if encoder_decoder and own.max_length and not own.max_new_tokens:
        return max(1, int(own.max_length) - 1)  # the length of a decoder counts its start token
    return int(own.max_new_tokens or DEFAULT_NEW_TOKENS)


def adjustments_of(
    p: GenerationParameters, least: int, most: int, banned: Sequence[Sequence[int]], ends: Sequence[int]
) -> Adjustments:
    """Numbers that are added to the logits of `most` tokens; raises InvalidParameter for others, or if none is left.

    `banned` are the runs of tokens that may not come, and `ends` end an answer, none before it has `least` tokens.
    """
    bias = {int(token): value for token, value in (p.logit_bias or {}).items()}
    stops, allowed = p.stop_token_ids or (), p.allowed_token_ids or ()
    for name, tokens in (("logit_bias", bias), ("stop_token_ids", stops), ("allowed_token_ids", allowed)):
        if unknown := [token for token in tokens if token >= most]:
            raise InvalidParameter(
                f"The model has no token {unknown[0]}.",
                f"Its vocabulary has {most:,}, counted from 0.",
                where=f"parameters.{name}",
            )
    held = tuple(stops) if least else ()
    never = {run[0] for run in banned if len(run) == 1} | ({*ends, *held} if least else set())
    if allowed and never.issuperset(allowed):
        raise InvalidParameter(
            "None of the tokens that are allowed may come first.",
            "Allow one that neither bad_words bans nor ends an answer of so many tokens at least.",
            where="parameters.allowed_token_ids",
        )
    return Adjustments(
        p.presence_penalty or 0.0,
        p.frequency_penalty or 0.0,
        tuple(sorted(bias.items())),
        held,
        least if held else 0,
        tuple(dict.fromkeys(allowed)),
        tuple(dict.fromkeys(tuple(run) for run in banned if run)),
    )
