"""Verdict on a generative target by its tokens: a statistic, its bound, and the cause if it is exceeded."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from mii_azure.errors import SpecError
from mii_azure.verdict.tokens.probes import Kind, TokenProbe, make_probes
from mii_azure.verdict.tokens.suspects import Suspect, suspects

if TYPE_CHECKING:
    from local_runner.targets.targets import Target
    from mii_azure.verdict.tokens.reference import ReferenceModel, Scored

TASKS = ("text-generation", "conversational")
#: Mean margins in nats that a sound target stays below, by what it computes in. A sound float32 run has 0;
#: the bounds of 16 bits and int8 allow for their rounding and are not calibrated yet.
BOUNDS = {"float32": 1e-3, "float16": 4e-3, "bfloat16": 1e-2, "int8": 2e-2}
_CLIENTS = 8
_EXPLAINED = 0.5  # of the mean margin; a suspect that leaves more does not name the cause
_MOST_EXPLAINED = 12  # answers
UNEXPLAINED = "other weights or other code: another revision, a fine-tune, or a change that no suspect stands for"


class TokenVerdict(BaseModel):
    """Verdict on one target's tokens; margins are means in nats, per kind of probe and per suspect that was tried."""

    model_config = ConfigDict(frozen=True)

    target: str
    agree: bool
    tokens: int
    picked: int  # of them, exactly those that the reference picks
    bound: float
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
    bound = BOUNDS[answered.precision]
    means = {kind: _mean([one for one in scored if one.probe.kind == kind]) for kind in ("greedy", "seeded", "default")}
    over = [kind for kind, mean in means.items() if mean > bound]
    cause, tried = _cause(reference, answers, scored, over, named, progress) if over else ("", {})
    missing = answered.asked - len(answered.answers)
    if missing and not over:
        cause = f"{missing} of {answered.asked} requests for tokens were not answered"
    every = [margin for one in scored for margin in one.margins]
    return TokenVerdict(
        target=answered.target,
        agree=not over and not missing,
        tokens=len(every),
        picked=sum(margin == 0 for margin in every),
        bound=bound,
        margins=means,
        cause=cause,
        suspects=tried,
    )


def _cause(
    reference: "ReferenceModel",
    answers: Sequence[tuple[TokenProbe, str]],
    scored: Sequence["Scored"],
    over: Sequence[str],
    named: Sequence[Suspect],
    progress: Callable[[str], None],
) -> tuple[str, dict[str, float]]:
    if over == ["seeded"]:
        return "the seed, or another sampler: greedy answers agree, seeded ones do not", {}
    if over == ["default"]:
        return "sampling defaults: only answers to requests that set nothing differ", {}
    kinds: tuple[Kind, ...] = ("greedy", "seeded")
    worst = _worst([one for one in scored if one.probe.kind in kinds], answers)
    tried: dict[str, float] = {}
    for suspect in suspects(reference.task, named):
        progress(f"is it {suspect.cause}?")
        tried[suspect.cause] = _explained(reference, suspect, worst)
    found = min(tried, key=lambda cause: tried[cause])
    before = _mean([reference.score(probe, text) for probe, text in worst])
    return (found if tried[found] < _EXPLAINED * before else UNEXPLAINED), tried


def _worst(scored: Sequence["Scored"], answers: Sequence[tuple[TokenProbe, str]]) -> list[tuple[TokenProbe, str]]:
    """Answers with the greatest margins, which say most of the cause; each suspect is asked to explain these."""
    texts = dict(answers)
    worst = sorted(scored, key=lambda one: -sum(one.margins))[:_MOST_EXPLAINED]
    return [(one.probe, texts[one.probe]) for one in worst]


def _explained(reference: "ReferenceModel", suspect: Suspect, answers: Sequence[tuple[TokenProbe, str]]) -> float:
    with suspect.model(reference):
        scored = [reference.score(probe, text, suspect.prompt(reference, probe.value)) for probe, text in answers]
    return _mean(scored)


def _mean(scored: Sequence["Scored"]) -> float:
    every = [margin for one in scored for margin in one.margins]
    return sum(every) / len(every) if every else 0.0


def probes_for(task: str, tokens: int, context_length: int) -> list[TokenProbe]:
    """Probes for so many tokens. Raises SpecError for a task that generates no text, or for no tokens."""
    if task not in TASKS:
        raise SpecError(f"{task} has no tokens to judge.", f"Tasks whose tokens are: {', '.join(TASKS)}.")
    if tokens < 1:
        raise SpecError(f"No verdict comes of {tokens} tokens.", "Ask for 1,000 or more.")
    return make_probes(task, tokens, context_length)
