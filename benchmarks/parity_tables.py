"""Tables of what `parity --tokens` sees: planted faults, sound servers, and margins by number format."""

from typing import Any

from mii_azure.verdict.tokens.judge import ROUNDING

Result = dict[str, Any]

_VERDICT = 64  # tokens of a kind: the fewest of a verdict on 320


def faults(result: Result) -> str:
    """Planted faults, whether they were seen and named, and what clean runs came to."""
    rows = ["| planted | seen | cause that was told | tokens | not the model's | greatest mean margin |"]
    rows.append("|---|---|---|---|---|---|")
    for row in result["rows"]:
        most = max(row["margins"].values())
        seen, named = ("yes" if row["seen"] else "no"), ("" if row["named"] else " (not named)")
        rows.append(
            f"| {row['fault']} | {seen} | {row['cause'] or 'none'}{named} | {row['tokens']} "
            f"| {row['tokens'] - row['picked']} | {most:.2g} |"
        )
    clean = result["clean"]
    note = (
        f"SmolLM2-135M-Instruct in float32, served with one fault at a time; {result['date']}, revision "
        f"{result['revision']}. Sound servers: {clean['false_alarms']} false alarms in {clean['runs']} verdicts of "
        f"{clean['tokens'] // clean['runs']} tokens each, on requests of their own; of {clean['tokens']:,} tokens "
        f"{clean['tokens'] - clean['picked']} are not the model's."
    )
    return "\n".join([*rows, "", note])


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
        f"revision {result['revision']}. A bound is twice the mean and four standard deviations; it falls with the "
        "number of tokens."
    )
    return "\n".join([*rows, "", note])
