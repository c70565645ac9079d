"""Tables of what `parity --tokens` sees: planted faults, sound servers, and margins by number format."""

import math
from typing import Any

from benchmarks.serving_tables import changes_told
from mii_azure.verdict.tokens.judge import ROUNDING, Rounding

Result = dict[str, Any]

_NARROW = ("bfloat16", "int8")
_ENDLESS = 10**30  # tokens, whose spread says nothing
_VERDICT = 64  # tokens of a kind: the fewest of a verdict on 320


def shows_from(margin: float, rounding: Rounding) -> str:
    """Tokens of a kind from which so great a mean margin is beyond a format's bound, or that no number of them is."""
    least = rounding.bound(_ENDLESS)
    if margin <= least:
        return "no"
    tokens = math.ceil(((rounding.bound(1) - least) / (margin - least)) ** 2)
    return "yes" if tokens <= _VERDICT else f"from {tokens:,} tokens"


def _served(fault: str, margin: float) -> list[str]:
    """Whether bundles in fewer bits show a fault; of a dtype that is narrower than float32 nothing can be said."""
    return ["" if fault == "dtype" else shows_from(margin, ROUNDING[name]) for name in _NARROW]


def faults(result: Result) -> str:
    """Planted faults, whether they were seen and named, and what clean runs came to."""
    rows = [
        "| planted | seen in float32 | in bfloat16 | in int8 | cause that was told | tokens | not the model's "
        "| greatest mean margin | judged by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        most = max(row["margins"].values())
        seen, named = ("yes" if row["seen"] else "no"), ("" if row["named"] else " (not named)")
        rows.append(
            f"| {row['fault']} | {seen} | {' | '.join(_served(row['fault'], most))} | {row['cause'] or 'none'}{named} "
            f"| {row['tokens']} | {row['tokens'] - row['picked']} | {most:.2g} | {row['judged by']} |"
        )
    stamps = [each["judged by"] for each in (*result["rows"], result["clean"])]
    clean, when = result["clean"], max(row["date"] for row in result["rows"])
    note = (
        f"SmolLM2-135M-Instruct in float32, served with one fault at a time, {when}. "
        f"The columns of bfloat16 and int8 are computed, not served: whether the greatest mean margin is "
        f"beyond that format's bound at {_VERDICT} tokens of its kind, or at how many it is. Sound servers: "
        f"{clean['false_alarms']} false alarms in {clean['runs']} verdicts of "
        f"{clean['tokens'] // clean['runs']} tokens each, on requests of their own, judged by "
        f"{clean['judged by']}; of {clean['tokens']:,} tokens "
        f"{clean['tokens'] - clean['picked']} are not the model's. {changes_told(''.join(stamps))}"
    )
    return "\n".join([*rows, "", note.rstrip()])


def margins(result: Result) -> str:
    """Margins that rounding leaves, by format, and the bound that comes of them."""
    rows = ["| computes in | mean margin | 99.9 % of verdicts of 64 tokens a kind stay below | their bound |"]
    rows.append("|---|---|---|---|")
    for row in result["rows"]:
        high = max(row["greedy high"], row["seeded high"])
        rounding = ROUNDING.get(row["format"])
        bound = "" if rounding is None else f"{rounding.bound(_VERDICT):.2g}"
        rows.append(f"| {row['format']} | {row['mean']:.2g} | {high:.2g} | {bound} |")
    note = (
        f"SmolLM2-135M-Instruct, {result['tokens']} tokens of its answers, in nats against float32; {result['date']}, "
        f"revision {result['revision']}. {changes_told(result['revision'])}"
        "A bound is twice the mean and four standard deviations; it falls with the number of tokens."
    )
    return "\n".join([*rows, "", note])
