"""Text generation on a `Decoder`'s slots: what `generate` computes, a step at a time, nothing waiting on the host.

Each step is enqueued before the tokens of the one before are read; a row that turns out to have ended costs one
unused step of its slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scoring.decode import Decoder, Pending
from scoring.decoder_state import FORBIDDEN, Sampling

if TYPE_CHECKING:
    from scoring.tasks.base import Row
    from scoring.tasks.generation import Follower, Generative

#: What a generation config may hold beside greedy search and plain sampling, with the values that mean nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "min_p": (None, 0, 0.0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "guidance_scale": (None, 1.0),
    "use_cache": (None, True),
    "bad_words_ids": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None,),
    "exponential_decay_length_penalty": (None,),
    "prompt_lookup_num_tokens": (None,),
}


def covers(config: Any, ends: Sequence[int], tokens: int, decoder: Decoder) -> bool:
    """Whether slots give what `generate` would under a generation config, for a row of at most `tokens` tokens."""
    neutral = all(getattr(config, name, None) in values for name, values in _NEUTRAL.items())
    return neutral and len(ends) <= FORBIDDEN and tokens <= decoder.max_length


@dataclass
class _Sequence:
    """One row in its slot."""

    slot: int
    row: "Row"
    most: int  # tokens to generate
    follower: "Follower | None"
    tokens: list[int] = field(default_factory=list)
    enqueued: int = 0  # tokens that are generated or under way
    ended: bool = False


def run(task: "Generative", decoder: Decoder, rows: Sequence["Row"]) -> list[list[int]]:
    """Generate for at most `decoder.slots` rows; per row its new tokens, the end token included."""
    sequences = [_open(task, decoder, slot, row) for slot, row in enumerate(rows)]
    for sequence in sequences:
        decoder.prefill(sequence.slot, sequence.row.features["input_ids"])
    batch = sequences
    pending: Pending = decoder.sample([sequence.slot for sequence in batch])
    for sequence in batch:
        sequence.enqueued = 1
    while batch:
        going = [s for s in batch if not s.ended and not s.row.cancelled.is_set() and s.enqueued < s.most]
        following = decoder.step([sequence.slot for sequence in going]) if going else None
        for sequence in going:
            sequence.enqueued += 1
        for sequence, token in zip(batch, pending.tokens(), strict=True):
            _take(task, sequence, token)
        batch = going
        if following is not None:
            pending = following
    return [sequence.tokens for sequence in sequences]


def _open(task: "Generative", decoder: Decoder, slot: int, row: "Row") -> _Sequence:
    from scoring.tasks.generation import Follower

    config, seed = task.generation_config(row.parameters)
    prompt = row.tokens
    decoder.open(
        slot,
        Sampling(
            temperature=float(config.temperature or 1.0) if config.do_sample else 0.0,
            # Without sampling, `generate` leaves both out of account.
            top_k=int(config.top_k or 0) if config.do_sample else 0,
            top_p=float(config.top_p or 1.0) if config.do_sample else 1.0,
            repetition_penalty=float(config.repetition_penalty or 1.0),
            seed=seed or 0,
            forbidden=tuple(task.eos),
            forbidden_until=prompt + int(config.min_new_tokens or 0),
        ),
    )
    wanted = row.emit is not None or bool(row.parameters.stop)
    return _Sequence(slot, row, int(config.max_new_tokens), Follower(task, row) if wanted else None)


def _take(task: "Generative", sequence: _Sequence, token: int) -> None:
    """Add a token that was computed, unless the sequence had ended by then."""
    if sequence.ended:
        return
    sequence.tokens.append(token)
    stopped = sequence.follower.push(token) if sequence.follower else False
    sequence.ended = stopped or token in task.eos or len(sequence.tokens) == sequence.most
