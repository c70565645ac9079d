"""Log-probabilities in OpenAI's two forms, from `details`; as there, end tokens and other special ones are left out."""

from collections.abc import Iterator
from typing import Any

Entry = dict[str, Any]  # id, text, logprob, special


def chat(details: dict[str, Any]) -> dict[str, Any]:
    """`logprobs` of /v1/chat/completions."""
    content = [{**_of(token), "top_logprobs": [_of(other) for other in tops]} for token, tops in _spoken(details)]
    return {"content": content, "refusal": None}


def completion(details: dict[str, Any], offset: int = 0, echo: bool = False) -> dict[str, Any]:
    """`logprobs` of /v1/completions, with `echo` of the repeated prompt too.

    `offset` is the position of the first token's text.
    """
    spoken = [*(_prompt(details) if echo else ()), *_spoken(details)]
    starts = []
    for token, _ in spoken:
        starts.append(offset)
        offset += len(token["text"])
    tops: list[dict[str, float] | None] = []
    for token, others in spoken:
        if token["logprob"] is None:
            tops.append(None)
            continue
        found: dict[str, float] = {}
        for each in (*others, token):  # the token itself is reported even if it is not among the likeliest
            found.setdefault(each["text"], each["logprob"])
        tops.append(found)
    return {
        "tokens": [token["text"] for token, _ in spoken],
        "token_logprobs": [token["logprob"] for token, _ in spoken],
        "top_logprobs": tops if "top_tokens" in details else None,
        "text_offset": starts,
    }


def of_prompt(details: dict[str, Any]) -> list[dict[str, Any] | None]:
    """`prompt_logprobs` in vLLM's form: of each token but the first, it and the likeliest by their ids."""
    return [None if token["logprob"] is None else _by_id(token, tops) for token, tops in _prompt(details)]


def _by_id(token: Entry, tops: list[Entry]) -> dict[str, Any]:
    ranks = {each["id"]: rank for rank, each in enumerate(tops, 1)}
    found = {each["id"]: each for each in (token, *tops)}
    return {
        str(id_): {"logprob": each["logprob"], "rank": ranks.get(id_), "decoded_token": each["text"]}
        for id_, each in found.items()
    }


def _prompt(details: dict[str, Any]) -> Iterator[tuple[Entry, list[Entry]]]:
    tokens = details.get("prefill") or []
    yield from zip(tokens, details.get("prefill_top_tokens") or [[]] * len(tokens), strict=True)


def length(details: dict[str, Any] | None) -> int:
    """Characters of the tokens that are reported."""
    return sum(len(token["text"]) for token, _ in _spoken(details)) if details else 0


def _spoken(details: dict[str, Any]) -> Iterator[tuple[Entry, list[Entry]]]:
    tokens = details["tokens"]
    for token, tops in zip(tokens, details.get("top_tokens") or [[]] * len(tokens), strict=True):
        if not token["special"]:
            yield token, tops


def _of(token: Entry) -> dict[str, Any]:
    return {"token": token["text"], "logprob": token["logprob"], "bytes": list(token["text"].encode())}
