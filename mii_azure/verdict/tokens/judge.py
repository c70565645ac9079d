"""Verdict on a generative target by its tokens: a statistic, its bound, and the cause if it is exceeded."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from mii_azure.errors import SpecError
from mii_azure.verdict.tokens.causes import UNEXPLAINED, find_cause
from mii_azure.verdict.tokens.probes import Kind, TokenProbe, make_probes
from mii_azure.verdict.tokens.suspects import Suspect
from scoring.quantization.recognised import kind_of

if TYPE_CHECKING:
    from local_runner.targets.targets import Target
    from mii_azure.verdict.tokens.reference import ReferenceModel, Scored

TASKS = ("text-generation", "conversational")
KINDS: tuple[Kind, ...] = ("greedy", "seeded", "default")


class Rounding(NamedTuple):
    """Cost of rounding for a sound target's tokens, in nats: the mean margin, and its standard deviation."""

    mean: float
    spread: float

    def bound(self, tokens: int) -> float:
        """Mean margin over `tokens` tokens that a sound target stays below; other models' may be twice as much."""
        return 2 * self.mean + _DEVIATIONS * self.spread / math.sqrt(max(1, tokens))


_DEVIATIONS = 4.0
#: By what a target computes in, the most exact first. Sound tokens of float32 have no margin at all; the others are
#: those of benchmarks/results/token_margins.json, of the kind of answers that has more.
ROUNDING = {
    "float32": Rounding(5e-4, 0.0),
    "float16": Rounding(6e-5, 0.003),
    "bfloat16": Rounding(2e-3, 0.025),
    "int8": Rounding(4.3e-3, 0.071),
}
_CLIENTS = 8


class TokenVerdict(BaseModel):
    """Verdict on one target's tokens; margins are means in nats, per kind of probe and per suspect that was tried."""

    model_config = ConfigDict(frozen=True)

    target: str
    agree: bool
    tokens: int
    picked: int  # of them, exactly those that the reference picks
    bounds: dict[str, float]
    margins: dict[str, float]
    cause: str = ""
    suspects: dict[str, float] = {}


class Answered(BaseModel):
    """Answers of one target to the probes; of a probe that was refused there is none."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    target: str
    precision: str
    asked: int
    answers: tuple[tuple[Any, str], ...]


def ask(name: str, target: "Target", precision: str, probes: Sequence[TokenProbe]) -> Answered:
    """Send every probe, several at a time. Raises SpecError if the target answers none of them."""
    with ThreadPoolExecutor(_CLIENTS) as pool:
        replies = list(pool.map(lambda probe: target.send(probe.body), probes))
    texts = [_text(reply.body) if reply.status == 200 else None for reply in replies]
    answers = tuple((probe, text) for probe, text in zip(probes, texts, strict=True) if text is not None)
    if not answers:
        told = replies[0].body.decode(errors="replace")[:200]
        raise SpecError(
            f"{name} answered none of {len(probes)} requests for tokens, the first with {replies[0].status}: {told}",
            "Ask a target that generates text, with the task of the bundle.",
        )
    return Answered(target=name, precision=precision, asked=len(probes), answers=answers)


def askable(probes: Sequence[TokenProbe], metadata: Mapping[str, Any]) -> list[TokenProbe]:
    """Probes that a target can be judged by: seeded ones where its metadata tells of the static decoder's sampler.

    Plain `generate`, and servers that are not ours, draw other random numbers from the same seed.
    """
    ours = (metadata.get("optimisations") or {}).get("static_decode") == "applied"
    return [probe for probe in probes if ours or probe.kind != "seeded"]


def precision_of(metadata: Mapping[str, Any], asked: str, shipped: str = "") -> str:
    """Format whose rounding a target's tokens may show: the one asked for, or int8 where the start rounded to it.

    `shipped` is int4 or int8 where the model's folder holds such weights: on a GPU those are read as they are, and the
    reference has the same. On a CPU the inputs of products are rounded to int8 as well, whatever the weights are.
    """
    passes = metadata.get("optimisations") or {}
    if passes.get("weight_only") != "applied":
        return "int8" if metadata.get("precision") == "int8" else asked
    split = passes.get("tensor_parallel") == "applied"  # int4 of several GPUs is rounded again
    as_stored = shipped == "int8" or (shipped == "int4" and not split)
    return asked if as_stored and metadata.get("device") != "cpu" else "int8"


def shipped_numbers(folder: Path) -> str:
    """Numbers of the products' weights in the folder of a model, "int4" for one; empty where they are not quantised."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return kind_of(config.get("quantization_config") or {})


def _text(body: bytes) -> str | None:
    """Text of an answer; None if it has another form."""
    try:
        answer = json.loads(body)
        while isinstance(answer, list):
            answer = answer[0]
        text = answer["generated_text"]
    except (ValueError, LookupError, TypeError):
        return None
    return text if isinstance(text, str) else None


def judge(
    reference: "ReferenceModel",
    answered: Answered,
    named: Sequence[Suspect] = (),
    progress: Callable[[str], None] = lambda text: None,
) -> TokenVerdict:
    """Score a target's answers by the reference model; beyond the bound, find the suspect that explains them."""
    answers = answered.answers
    if not reference.greedy_by_default:
        answers = tuple(pair for pair in answers if pair[0].kind != "default")
    scored = [reference.score(probe, text) for probe, text in answers]
    by_kind = {kind: [margin for one in scored if one.probe.kind == kind for margin in one.margins] for kind in KINDS}
    means = {kind: fmean(found) if found else 0.0 for kind, found in by_kind.items()}
    bounds = {kind: ROUNDING[answered.precision].bound(len(found)) for kind, found in by_kind.items()}
    over = [kind for kind in KINDS if means[kind] > bounds[kind]]
    cause, tried = _cause(reference, scored, min(bounds.values()), over, named, progress) if over else ("", {})
    if cause == UNEXPLAINED:
        counted = {str(kind): (means[kind], len(found)) for kind, found in by_kind.items()}
        cause = rounding_cause(answered.precision, counted) or cause
    missing = answered.asked - len(answered.answers)
    if missing and not over:
        cause = f"{missing} of {answered.asked} requests for tokens were not answered"
    every = [margin for one in scored for margin in one.margins]
    return TokenVerdict(
        target=answered.target,
        agree=not over and not missing,
        tokens=len(every),
        picked=sum(margin == 0 for margin in every),
        bounds={str(kind): bound for kind, bound in bounds.items()},
        margins={str(kind): mean for kind, mean in means.items()},
        cause=cause,
        suspects=tried,
    )


def rounding_cause(precision: str, counted: Mapping[str, tuple[float, int]]) -> str:
    """Name the coarser number format whose rounding such margins are like; empty where they are beyond each one's.

    `counted` holds the mean margin and the number of tokens of each kind. No suspect picks the tokens of rounding
    again: a handful differ, and the order of a server's sums decides which.
    """
    names = list(ROUNDING)
    most = max(mean for mean, _ in counted.values())
    like = [
        name
        for name in names[names.index(precision) + 1 :]
        if all(mean <= ROUNDING[name].bound(tokens) for mean, tokens in counted.values())
    ]
    if not like:
        return ""
    nearest = min(like, key=lambda name: abs(math.log(most / ROUNDING[name].mean)))
    return f"rounding as of {nearest}: that number format (dtype), or another change as small"


def _cause(
    reference: "ReferenceModel",
    scored: Sequence["Scored"],
    bound: float,
    over: Sequence[str],
    named: Sequence[Suspect],
    progress: Callable[[str], None],
) -> tuple[str, dict[str, float]]:
    if over == ["seeded"]:
        return "the seed, or another sampler: greedy answers agree, seeded ones do not", {}
    if over == ["default"]:
        return "sampling defaults: only answers to requests that set nothing differ", {}
    return find_cause(reference, [one for one in scored if one.probe.kind != "default"], bound, named, progress)


def probes_for(task: str, tokens: int, context_length: int) -> list[TokenProbe]:
    """Probes of about `tokens` tokens. Raises SpecError for a task that generates no text, or for no tokens."""
    if task not in TASKS:
        raise SpecError(f"{task} has no tokens to judge.", f"Tasks whose tokens are: {', '.join(TASKS)}.")
    if tokens < 1:
        raise SpecError(f"No verdict comes of {tokens} tokens.", "Ask for 1,000 or more.")
    return make_probes(task, tokens, context_length)
