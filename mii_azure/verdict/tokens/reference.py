"""Reference model: plain transformers over a model folder, which scores the tokens of other servers' answers."""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mii_azure.verdict.tokens.margins import margins, pick_scores
from mii_azure.verdict.tokens.probes import NEW_TOKENS, TokenProbe

if TYPE_CHECKING:
    from torch import Tensor

_MOST_CUTS = 8  # of one answer into tokens, beside the tokenizer's own
_WORTH_KEEPING = 128  # tokens that prompts share; the keys and values of fewer are computed again sooner than copied
_SHORT = 2  # tokens that a text may lose or gain when it is cut again


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of tokens that both begin with."""
    unlike = (place for place, (one, other) in enumerate(zip(left, right, strict=False)) if one != other)
    return next(unlike, min(len(left), len(right)))


@dataclass(frozen=True)
class Scored:
    """Margins of one answer's tokens."""

    probe: TokenProbe
    answer: str
    margins: tuple[float, ...]
    length: int  # tokens of the prompt and of the answer

    @property
    def total(self) -> float:
        """Sum of the margins."""
        return sum(self.margins)


@dataclass(frozen=True)
class _Reading:
    """Tokens that a text may have been, the model's picks in their places, and their margins."""

    tokens: list[int]
    picks: list[int]
    margins: list[float]

    @property
    def mean(self) -> float:
        return sum(self.margins) / max(1, len(self.margins))


class ReferenceModel:
    """Model and tokenizer of a folder, in float32, on a GPU if there is one."""

    def __init__(self, folder: Path, task: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.task = task
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(self.device)
        ends = self.model.generation_config.eos_token_id
        every = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id}
        self.ends = {end for end in every if end is not None}
        self._end = min(self.ends, default=0)
        self._keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.new_cache: Callable[[], Any] | None = None  # of keys and values, instead of the model's own
        self._latest: list[int] = []  # long prompt
        self._kept: tuple[list[int], Any] = ([], None)  # tokens that prompts begin with, and their cache

    @contextmanager
    def changed(self, change: Callable[["ReferenceModel"], AbstractContextManager[None]]) -> Iterator[None]:
        """Have a suspect change the model within the block; caches that one of them computed are not the other's."""
        self._forget()
        with change(self):
            yield
        self._forget()

    def _forget(self) -> None:
        self._latest, self._kept = [], ([], None)

    @property
    def greedy_by_default(self) -> bool:
        """True if a request without parameters takes the likeliest token, as the scoring script reads the config."""
        config = self.model.generation_config
        return (config.repetition_penalty or 1.0) == 1.0 and (config.num_beams or 1) == 1

    def prompt(self, value: Any) -> list[int]:
        """Tokens of a prompt or of a conversation, through the chat template."""
        if self.task != "conversational":
            tokens: list[int] = self.tokenizer(value)["input_ids"]
            return tokens
        text = self.tokenizer.apply_chat_template(value, tokenize=False, add_generation_prompt=True)
        return self.read(text)

    def read(self, text: str) -> list[int]:
        """Tokens of a text, with no special ones added."""
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def score(self, probe: TokenProbe, answer: str, prompt: Sequence[int] | None = None) -> Scored:
        """Score the tokens of an answer to a probe; with `prompt`, as if that had been the prompt's tokens.

        An answer shorter than was asked for has its end scored, too: the model should have ended there.
        """
        prompt = self.prompt(probe.value) if prompt is None else list(prompt)
        seed = probe.seed if probe.kind == "seeded" else None
        best = self._judged(prompt, self._tokens(prompt, answer), seed)
        tried = {tuple(best.tokens)}
        for _ in range(_MOST_CUTS):
            cut = next((each for each in self._cuts(best, answer) if tuple(each) not in tried), None)
            if cut is None:
                break
            tried.add(tuple(cut))
            other = self._judged(prompt, cut, seed)
            best = other if other.mean < best.mean else best
        return Scored(probe, answer, tuple(best.margins), len(prompt) + len(best.tokens))

    def _judged(self, prompt: Sequence[int], tokens: Sequence[int], seed: int | None) -> "_Reading":
        scores = pick_scores(self.logits(prompt, [*tokens, self._end]), seed, len(prompt))
        judged = [*tokens]
        if len(tokens) < NEW_TOKENS - _SHORT and self.ends:
            ends = sorted(self.ends)
            judged.append(ends[int(scores[-1, ends].argmax())])
        rows = scores[: len(judged)]
        return _Reading(list(tokens), rows.argmax(1).tolist(), margins(rows, judged))

    def logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> "Tensor":
        """Logits [tokens, vocabulary] in whose places the tokens stand, on the CPU."""
        import torch

        began, cache = self._begun(list(prompt))
        ids = torch.tensor([[*prompt[began:], *tokens]], device=self.device)
        more: dict[str, Any] = {"past_key_values": cache, "use_cache": True} if cache else {"use_cache": False}
        if self._keeps:  # a long prompt's own logits take longer than the rest
            more["logits_to_keep"] = len(tokens) + 1
        with torch.inference_mode():
            logits: Tensor = self.model(ids, **more).logits[0, -len(tokens) - 1 : -1]
        return logits.cpu()

    def _begun(self, prompt: list[int]) -> tuple[int, Any]:
        """Number of the prompt's tokens that are computed already, and a cache of their keys and values.

        The cache is None where nothing needs one. What a long prompt shares with the last long one is computed once.
        """
        kept, cache = self._kept
        own = prompt[:-1]  # the last token is always computed: its logits are read
        shared = _shared(self._latest, own)
        self._latest = prompt if len(prompt) > _WORTH_KEEPING else self._latest
        if kept != own[: len(kept)] or not kept:
            found = self._computed(own[:shared]) if shared >= _WORTH_KEEPING else None
            if found is None:
                return 0, self.new_cache and self.new_cache()
            kept, cache = self._kept = own[:shared], found
        return len(kept), copy.deepcopy(cache)

    def _computed(self, tokens: list[int]) -> Any:
        """Keys and values of tokens; None of a model that keeps its state in another form, as state spaces do."""
        import torch

        more = {"past_key_values": self.new_cache()} if self.new_cache else {}
        if self._keeps:
            more["logits_to_keep"] = 1
        with torch.inference_mode():
            out = self.model(torch.tensor([tokens], device=self.device), use_cache=True, **more)
        return getattr(out, "past_key_values", None)

    def _tokens(self, prompt: Sequence[int], answer: str) -> list[int]:
        """Tokens of the answer as it follows the prompt: some tokenizers put a space before a text that begins."""
        if self.task == "conversational":
            return self.read(answer)[:NEW_TOKENS]
        before = self.tokenizer.decode(prompt, skip_special_tokens=True)
        held, joined = self.read(before), self.read(before + answer)
        return (joined[len(held) :] if joined[: len(held)] == held else self.read(answer))[:NEW_TOKENS]

    def _cuts(self, reading: "_Reading", answer: str) -> Iterator[list[int]]:
        """Other tokens of the same text: at each that the model would not pick, the one that it would, if it fits.

        A text is cut in more ways than one, and special tokens show nowhere in it.
        """
        tokens = reading.tokens
        for place, (token, pick) in enumerate(zip(tokens, reading.picks, strict=False)):
            if token == pick or pick in self.ends:
                continue
            before, said = self._said(tokens[:place]), self._said([*tokens[:place], pick])
            if answer.startswith(said) and (said != before or pick in self.tokenizer.all_special_ids):
                yield [*tokens[:place], pick, *self.read(answer[len(said) :])][:NEW_TOKENS]

    def _said(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
