"""Sequences on a `Decoder`'s slots: the check that a row may have one, and its state as tokens are generated."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scoring.config import Limits
from scoring.decoder.decoder import Decoder
from scoring.decoder.kv_cache import FORBIDDEN, SamplingParams
from scoring.decoder.logprobs import ScoredTokens, TokenLogprob
from scoring.engine.row import Done, Row
from scoring.errors import PromptTooLong
from scoring.generation.adjustments import Adjustments, Taken
from scoring.generation.grammars import Grammar
from scoring.generation.prompt_lookup import PromptLookup
from scoring.generation.settings import suits_slots, value_of
from scoring.generation.streaming import SequenceStreamer
from scoring.generation.text_generator import TextGenerator


def supports(config: Any, ends: Sequence[int], tokens: int, decoder: Decoder) -> bool:
    """Return True if slots generate what `generate` would under a config, for a row of at most `tokens` tokens.

    Raises PromptTooLong if only the cache is too small for it, because there is no memory for `generate` then either.
    """
    if not suits_slots(config) or len(ends) > FORBIDDEN:
        return False
    if decoder.max_length < tokens <= decoder.full_length:
        raise PromptTooLong(
            f"Prompt and answer may have {tokens} tokens; the KV cache has room for {decoder.max_length} in all.",
            "Send a shorter prompt, or ask for fewer new tokens.",
        )
    return tokens <= decoder.max_length


@dataclass(eq=False)
class RunningSequence:
    """State of one row in its slot."""

    slot: int
    row: Row
    done: Done
    most: int  # tokens to generate
    follower: SequenceStreamer | None
    sampling: SamplingParams
    number: int  # of its arrival
    grammar: Grammar | None
    ids: list[int]  # to prefill: the prompt, and after preemption the generated tokens too
    filled: int = 0  # of these, tokens that the slot holds
    begun: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of the tokens, if the row asks for details
    enqueued: int = 0  # tokens generated or being computed, drafted ones left out
    drafted: int = 0  # drafted tokens being computed
    lookup: PromptLookup | None = None  # once the row was in a step that may have drafts
    ended: bool = False
    failure: Exception | None = None
    taken: Taken = field(default_factory=Taken)  # the tokens, if numbers are added to the row's logits

    @property
    def token_ids(self) -> list[int]:
        """Tokens of the prompt and those generated."""
        return [*self.row.features["input_ids"], *self.tokens]

    @property
    def details(self) -> int | None:
        """Number of likeliest tokens that the row wants for each token; None for no details at all."""
        asked: int | None = self.row.parameters.details
        return asked

    @property
    def open(self) -> bool:
        """True if each of its tokens is picked only once those before it are known."""
        return self.sampling.constrained

    @property
    def over(self) -> bool:
        """True if nothing is to be picked for it any more, as far as is known."""
        return self.ended or self.failure is not None or (self.grammar is not None and self.grammar.ended)

    @property
    def added(self) -> dict[int, float]:
        """Numbers to add to its next logits, by token."""
        adjustments: Adjustments = self.row.parameters.adjustments
        return adjustments.after(self.taken) if adjustments else {}

    @property
    def salt(self) -> str:
        """Cache salt: rows with different salts share no prefix."""
        own: str = self.row.parameters.salt
        return own

    @property
    def adapter(self) -> str:
        """Name of the adapter that answers; empty for the model alone."""
        own: str = self.row.parameters.adapter
        return own

    @property
    def output(self) -> list[int]:
        """The tokens, with their logprobs if asked for."""
        return self.tokens if self.details is None else ScoredTokens(self.tokens, self.logprobs)


def make_sequence(task: TextGenerator, row: Row, done: Done, number: int) -> RunningSequence:
    """Make the sequence of a row, with its sampling parameters and no slot yet."""
    config, seed = task.generation_config(row.parameters)
    constraint = row.parameters.constraint
    opened = constraint is not None or bool(row.parameters.adjustments)
    sampling = SamplingParams(
        temperature=float(config.temperature or 1.0) if config.do_sample else 0.0,
        # Without sampling, `generate` ignores both.
        top_k=int(value_of(config, "top_k") or 0) if config.do_sample else 0,
        top_p=float(config.top_p or 1.0) if config.do_sample else 1.0,
        repetition_penalty=float(config.repetition_penalty or 1.0),
        seed=seed or 0,
        forbidden=tuple(task.eos),
        forbidden_until=row.tokens + int(config.min_new_tokens or 0),
        constrained=opened,
        min_p=float(config.min_p or 0.0) if config.do_sample else 0.0,
    )
    follower = SequenceStreamer(task, row) if row.emit is not None or row.parameters.stop else None
    grammar = None if constraint is None else task.grammars.start(constraint)
    return RunningSequence(
        -1, row, done, int(config.max_new_tokens), follower, sampling, number, grammar, row.features["input_ids"]
    )


def append_token(task: TextGenerator, running: RunningSequence, token: int, chance: TokenLogprob | None) -> None:
    """Append a computed token, unless the row had ended by then."""
    if running.ended:
        return
    running.tokens.append(token)
    if chance is not None:
        running.logprobs.append(chance)
    if running.row.on_token is not None:
        running.row.on_token(token, chance)
    stopped = running.follower.push(token, chance) if running.follower else False
    if task.stops is not None:
        stopped |= task.stops.ends(running.row.features["input_ids"], running.tokens)
    running.ended = stopped or is_end(task, running, token) or len(running.tokens) == running.most
    if running.grammar is not None and not running.ended:
        running.grammar.check()
        running.ended = running.grammar.ended


def is_end(task: TextGenerator, running: RunningSequence, token: int) -> bool:
    """Return True for a token that ends a row's answer."""
    return token in task.eos or token in running.row.parameters.stop_ids


def advance_open(task: TextGenerator, batch: Sequence[RunningSequence], tokens: Sequence[int]) -> None:
    """Have open rows take tokens that are to be appended, since their next ones are picked by what these leave.

    A text that ends an answer is found only as they are appended: its row may have taken one more.
    """
    bound: list[Grammar] = []
    taken: list[int] = []
    for running, token in zip(batch, tokens, strict=True):
        if not running.open or running.ended:
            continue
        if adjustments := running.row.parameters.adjustments:
            running.taken.append(token, adjustments.memory)
        if running.grammar is not None and len(running.tokens) + 1 < running.most:
            if is_end(task, running, token):
                running.grammar.ended = True
            else:
                bound.append(running.grammar)
                taken.append(token)
    if bound:
        task.grammars.advance(bound, taken)


def capacity(decoder: Decoder, limits: Limits) -> int:
    """Tokens that slots may hold at once: on a GPU as many as their memory holds, on a CPU a batch's budget."""
    whole = decoder.capacity
    return whole if decoder.model.device.type == "cuda" else min(whole, limits.max_batch_tokens)
