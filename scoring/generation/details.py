"""Token details of an answer, on request, in text-generation-inference's form."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from scoring.decoder.logprobs import ScoredTokens, TokenLogprob
from scoring.engine.row import Row
from scoring.generation.detokenizer import Detokenizer, special_tokens, stop_at, text_of
from scoring.generation.text_generator import TextGenerator
from scoring.limits.deadline import check

_CONTEXT = 8  # preceding tokens on which a token's text may depend
_REASONS = {"length": "length", "eos": "eos_token", "stop": "stop_sequence"}


class Details:
    """Collects the tokens of one answer as they come."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self.tokens: list[dict[str, Any]] = []
        self.tops: list[list[dict[str, Any]]] = []
        self.starts: list[int] = []  # character of the answer at which each token's text begins
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._before = list(prompt[-_CONTEXT:])
        self._length = 0

    def push(self, token: int, text: str, chance: TokenLogprob) -> None:
        """Take the next token and the text that it added."""
        own = self._entry(token, text, chance.logprob)
        self.tokens.append(own)
        self.tops.append([own if other == token else self._other(other, value) for other, value in chance.top])
        self.starts.append(self._length)
        self._length += len(text)
        self._before = [*self._before[1 - _CONTEXT :], token]

    def close(self, text: str) -> None:
        """Append the text that appears only at the end of the answer to the last token that has text."""
        rest = text[self._length :]
        if rest and self.tokens:
            spoken = [entry for entry in self.tokens if not entry["special"]]
            (spoken or self.tokens)[-1]["text"] += rest

    def within(self, length: int) -> int:
        """Number of tokens that begin before this length of the text."""
        return bisect_left(self.starts, length)

    def to_dict(self, first: int, last: int) -> dict[str, Any]:
        """Return the tokens from `first` to `last`; `top_tokens` only if asked for."""
        tops = self.tops[first:last]
        return {"tokens": self.tokens[first:last], **({"top_tokens": tops} if any(self.tops) else {})}

    def _other(self, token: int, logprob: float) -> dict[str, Any]:
        before = self._tokenizer.decode(self._before)
        text = self._tokenizer.decode([*self._before, token])[len(before) :]
        return self._entry(token, text, logprob)

    def _entry(self, token: int, text: str, logprob: float) -> dict[str, Any]:
        return {"id": token, "text": text, "logprob": logprob, "special": token in self._special}


def describe(task: TextGenerator, row: Row, answer: ScoredTokens) -> tuple[Details, int]:
    """Details of a whole answer, and the number of its tokens without those of a stop text."""
    details = Details(task.tokenizer, row.features["input_ids"] if not task.encoder_decoder else [])
    detokenizer = Detokenizer(task.tokenizer)
    for token, chance in zip(answer, answer.logprobs, strict=True):
        check()
        details.push(token, detokenizer.push(token), chance)
    text = text_of(task.tokenizer, answer)
    details.close(text)
    cut = stop_at(text, row.parameters.stop, row.parameters.tells_stop)
    return details, len(answer) if cut is None else details.within(cut)


def token_details(task: TextGenerator, row: Row, answer: ScoredTokens) -> dict[str, Any]:
    """Return the `details` of one answer."""
    details, count = describe(task, row, answer)
    cut = count < len(answer) or stop_at(text_of(task.tokenizer, answer), row.parameters.stop) is not None
    short = len(answer) < row.new_tokens  # ended by a text of the model's own
    short |= bool(answer) and answer[-1] in row.parameters.stop_ids
    reason = "eos" if answer and answer[-1] in task.eos else "stop" if cut or short else "length"
    return {
        "finish_reason": _REASONS[reason],
        "generated_tokens": len(answer),
        "seed": dict(row.parameters.overrides).get("seed"),
        **_prefill(task, row, answer),
        **details.to_dict(0, count),
    }


def _prefill(task: TextGenerator, row: Row, answer: ScoredTokens) -> dict[str, Any]:
    """The prompt's tokens with their logprobs, if asked for; the first has none."""
    if answer.prompt is None:
        return {"prefill": []}
    first, *others = row.features["input_ids"]
    details, detokenizer = Details(task.tokenizer, []), Detokenizer(task.tokenizer)
    details.push(first, detokenizer.push(first), TokenLogprob(0.0, []))
    for token, chance in zip(others, answer.prompt, strict=True):
        check()
        details.push(token, detokenizer.push(token), chance)
    details.close(text_of(task.tokenizer, row.features["input_ids"]))
    details.tokens[0]["logprob"] = None
    tops = {"prefill_top_tokens": details.tops} if row.parameters.prompt_logprobs else {}
    return {"prefill": details.tokens, **tops}
