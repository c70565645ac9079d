"""Requests whose answers are judged token by token."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["greedy", "seeded", "default"]

NEW_TOKENS = 32  # of each answer: many short answers meet more of a model than a few long ones
#: In turn. A seeded answer says most of small differences, a greedy one holds against any server.
_KINDS: tuple[Kind, ...] = ("greedy", "seeded", "greedy", "seeded", "default")
_LONG_EVERY = 4  # probes; the others' prompts are short
_LONG_TOKENS = 600  # about, of a long prompt, where half of the context holds so many
_TOKENS_A_SENTENCE = 12
#: Said in each request, so that no default of a server's decides.
_PARAMETERS: dict[Kind, dict[str, Any]] = {
    "greedy": {"do_sample": False, "repetition_penalty": 1.0},
    "seeded": {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0},
    "default": {},
}
_ASKED = (
    "Tell me about {}.",
    "What is special about {}?",
    "Write two sentences on {}.",
    "Explain {} to a child.",
    "Give three facts about {}.",
    "Why do people care about {}?",
    "How would you describe {} in a letter?",
    "Make up a short story with {} in it.",
)
_BEGUN = (
    "The history of {} begins",
    "Most people think that {}",
    "In this chapter we look at {}. First,",
    "def count(items):\n    # of {}\n    ",
    "Question: What is known of {}?\nAnswer:",
    "Once there was a town that had {}, and",
)
_TOPICS = (
    "the sea",
    "an old clock",
    "bread",
    "the French Revolution",
    "prime numbers",
    "a red fox",
    "electric trains",
    "the moon",
    "tea",
    "volcanoes",
    "a broken bridge",
    "chess",
    "rice fields",
    "the violin",
    "honey bees",
    "snow in April",
    "libraries",
    "a lost key",
    "glass",
    "the river Nile",
    "winter markets",
    "salt",
    "a blue bicycle",
    "lighthouses",
    "the year 1969",
    "maps",
    "a stone wall",
    "coffee in Rome",
    "sleep",
)


@dataclass(frozen=True, eq=False)
class TokenProbe:
    """Request whose answer is judged by its tokens."""

    name: str
    kind: Kind
    value: Any  # messages of a conversation, or a prompt
    seed: int  # of the seeded kind

    @property
    def body(self) -> str:
        """Request as /score takes it."""
        parameters = {"max_new_tokens": NEW_TOKENS, "return_full_text": False, **_PARAMETERS[self.kind]}
        if self.kind == "seeded":
            parameters["seed"] = self.seed
        return json.dumps({"inputs": self.value, "parameters": parameters})


def make_probes(task: str, tokens: int, context_length: int) -> list[TokenProbe]:
    """Make probes whose answers have about `tokens` tokens in all; the same ones every time.

    A quarter has a long prompt, of half the `context_length` (in tokens) at most; these begin with the same notes,
    which servers and the reference compute once.
    """
    return list(_generate(task, max(len(_KINDS), -(-tokens // NEW_TOKENS)), context_length))


def _generate(task: str, count: int, context_length: int) -> Iterator[TokenProbe]:
    drawn = random.Random(0)  # noqa: S311  (probes, no secret)
    sentences = min(_LONG_TOKENS, max(0, context_length // 2 - NEW_TOKENS)) // _TOKENS_A_SENTENCE
    frames = _ASKED if task == "conversational" else _BEGUN
    notes = [f"Note {n}: {drawn.choice(_TOPICS)} is not {drawn.choice(_TOPICS)}." for n in range(sentences)]
    for number in range(count):
        kind = _KINDS[number % len(_KINDS)]
        text = drawn.choice(frames).format(f"{drawn.choice(_TOPICS)} and {drawn.choice(_TOPICS)}")
        long = number % _LONG_EVERY == _LONG_EVERY - 1
        if long:
            text = " ".join([*notes, text])
        value = [{"role": "user", "content": text}] if task == "conversational" else text
        yield TokenProbe(f"{kind}{' long' if long else ''} {number}", kind, value, drawn.getrandbits(31))
