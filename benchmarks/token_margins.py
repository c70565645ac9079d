"""Margins of sound servers that compute in fewer bits, which `parity --tokens` has to allow for, by number format.

`python -m benchmarks.token_margins NAME` takes answers of SmolLM2-135M-Instruct that `benchmarks.parity_faults` kept in
the folder of that name, and has the model in each format pick every token after the ones before it; the margin of a
pick is what the float32 model finds of it. Verdicts of 64 tokens a kind, the fewest that 320 tokens have, are drawn
from the answers. Writes results/token_margins.json.
"""

import datetime
import math
import random
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import NormalDist, fmean, quantiles
from typing import TYPE_CHECKING, Any

from benchmarks.common import table, write
from benchmarks.faulty_servers import TASK
from benchmarks.parity_faults import CLEAN, Kept, clean_probes, measured_revision
from mii_azure.model.packaged import packaged_model
from mii_azure.verdict.tokens.judge import ROUNDING
from mii_azure.verdict.tokens.margins import margins, pick_scores
from mii_azure.verdict.tokens.probes import NEW_TOKENS
from mii_azure.verdict.tokens.reference import ReferenceModel
from mii_azure.verdict.tokens.suspects import suspects
from scoring.telemetry.versions import versions

if TYPE_CHECKING:
    from torch import Tensor

_ANSWERS = 20
_SEEDS = 3  # of each answer: other noise on the same logits is another draw
_TOGETHER = 2  # answers of a kind in a verdict
_VERDICTS = 20_000
FORMATS = {
    "bfloat16": "dtype bfloat16",
    "float16": "dtype float16",
    "int8": "weights in int8, as `generate --quantise` makes them",
    "fp8": "weights in fp8, as `generate --quantise` makes them",
}


def logits_of(
    reference: ReferenceModel, store: Kept, change: Callable[..., AbstractContextManager[None]] | None
) -> list["Tensor"]:
    """Logits of each answer's tokens under a change of the model."""
    probes = [probe for run in clean_probes()[:10] for probe in run][:_ANSWERS]
    told = store.answers(f"{CLEAN}-0", probes)
    with reference.changed(change) if change else nullcontext():
        return [reference.logits(reference.prompt(probe.value), reference.read(text)) for probe, text in told.answers]


def margins_of(exact: list["Tensor"], changed: list["Tensor"]) -> dict[str, list[float]]:
    """Mean margin of each answer, by kind."""
    found: dict[str, list[float]] = {"greedy": [], "seeded": []}
    for right, other in zip(exact, changed, strict=True):
        for seed in (None, *range(_SEEDS)):
            picks = pick_scores(other, seed, 0).argmax(1).tolist()
            found["greedy" if seed is None else "seeded"].append(fmean(margins(pick_scores(right, seed, 0), picks)))
    return found


def row(name: str, found: dict[str, list[float]]) -> dict[str, Any]:
    """Mean margin of each kind in nats, and what of 1,000 verdicts 1 and 999 stay below."""
    drawn = random.Random(0)
    made: dict[str, Any] = {"format": name}
    for kind, values in found.items():
        verdicts = [fmean(drawn.choices(values, k=_TOGETHER)) for _ in range(_VERDICTS)]
        cuts = quantiles(verdicts, n=1000, method="inclusive")
        made |= {f"{kind} mean": fmean(values), f"{kind} low": cuts[0], f"{kind} high": cuts[-1]}
    return made | calibrated(made)


def calibrated(made: dict[str, Any]) -> dict[str, float]:
    """Mean and standard deviation of a token's margin, of the kind that has more; the latter by its verdicts' tail."""
    kinds = ("greedy", "seeded")
    tails = (made[f"{kind} high"] - made[f"{kind} mean"] for kind in kinds)
    return {
        "mean": max(made[f"{kind} mean"] for kind in kinds),
        "spread": max(tails) / NormalDist().inv_cdf(0.999) * math.sqrt(_TOGETHER * NEW_TOKENS),
    }


def main(store: Kept) -> None:
    """Measure, write and print."""
    reference = ReferenceModel(packaged_model("smollm2"), TASK)
    changes = {suspect.cause: suspect.model for suspect in suspects(TASK)}
    exact = logits_of(reference, store, None)
    rows = []
    for name, cause in FORMATS.items():
        rows.append(row(name, margins_of(exact, logits_of(reference, store, changes[cause]))))
        print(rows[-1], flush=True)
    tokens = sum(len(each) for each in exact)
    result = {"rows": rows, "tokens": tokens, "versions": versions(), "revision": store.judged}
    write("token_margins", result | {"date": datetime.date.today().isoformat()})
    allowed = {name: rounding.bound(_TOGETHER * NEW_TOKENS) for name, rounding in ROUNDING.items()}
    shown = [{**each, "bound": allowed.get(each["format"])} for each in rows]
    print(table(("format", "mean", "spread", "greedy high", "seeded high", "bound"), shown))


if __name__ == "__main__":
    now = measured_revision(dirty=False)
    main(Kept(now, sys.argv[1] if len(sys.argv) > 1 else ""))
