"""Table of ranked instance types, with the conditions that its numbers hold for."""

from rich.console import Console

from mii_azure.cli.report import duration, print_table, table
from mii_azure.hardware.speed import speeds
from mii_azure.planning.ranking import Ranked, Ranking


def show_ranking(console: Console, ranking: Ranking, verbose: bool = False) -> None:
    """Print the few instance types worth a look, each with its reason, or all of them, also those that do not fit."""
    chosen = next((pick.instance_type for pick in ranking.picks if pick.chosen), "")
    reasons = {pick.instance_type: pick.reason for pick in ranking.picks}
    columns = ["", "instance type", "batch", "alone", f"{ranking.unit}/s", "cores"]
    columns += [f"{ranking.currency}/h", f"{ranking.currency}/M {ranking.unit}"] if ranking.currency else []
    columns += ["dtype", "memory left", "basis"] if verbose else ["basis"]
    made = table(*columns, "why", named=len(columns))
    for row in ranking.rows:
        if row.fits and (verbose or row.instance_type in reasons):
            mark = ">" if row.instance_type == chosen else ""
            made.add_row(mark, *_cells(row, bool(ranking.currency), verbose), reasons.get(row.instance_type, ""))
    print_table(console, made)
    shown, unfit = len(made.rows), [row for row in ranking.rows if not row.fits]
    if verbose:
        for row in unfit:
            console.print(f"{row.instance_type} does not fit: {row.why}", soft_wrap=True)
    else:
        rest = len(ranking.rows) - len(unfit) - shown
        console.print(f"\n{rest} more fit and {len(unfit)} do not; --verbose tells of each.", soft_wrap=True)
    console.print(f"\n{_basis(ranking)}", soft_wrap=True)
    if ranking.currency:
        told = ranking.cheaper.sentence().rstrip(".")
        told += f". Batches are full, and instances busy {ranking.utilisation:.0%} of the time."
        console.print(f"\n{told}", soft_wrap=True)


def _cells(row: Ranked, priced: bool, verbose: bool) -> list[str]:
    cells = [
        row.instance_type,
        str(row.batch),
        duration(row.latency_s or 0.0),
        f"{row.throughput or 0:,.0f}",
        str(row.quota_cores),
    ]
    if priced:
        cells.append("" if row.price_per_hour is None else f"{row.price_per_hour:,.3f}")
        cells.append("" if row.cost_per_million is None else f"{row.cost_per_million:,.4g}")
    return [*cells, *([str(row.dtype), f"{row.headroom or 0:.0%}"] if verbose else []), str(row.basis)]


def _basis(ranking: Ranking) -> str:
    """Assumptions of the predictions, in sentences."""
    answer = f" with answers of {ranking.new_tokens}" if ranking.new_tokens else ""
    text = f"Expected, of requests of {ranking.request_tokens} tokens{answer}, {ranking.instance_count} instance(s),"
    text += " one copy of the model each."
    if ranking.unit == "requests":
        text += " They are the model's times: the server's own, a few milliseconds, come on top."
    if ranking.unit == "tokens":
        text += " Throughput counts the model's time and the server's, one after the other."
    text += f" {_bases(ranking)}"
    if not ranking.currency:
        return f"{text} No prices: give --prices FILE, which `mii-azure prices` writes."
    text += f" Prices of {ranking.prices_of} in {ranking.region}, {ranking.currency}. Cost at the batch shown,"
    return f"{text} busy {ranking.utilisation:.0%} of the time."


def _bases(ranking: Ranking) -> str:
    """Meanings of the bases that occur, with their measured errors."""
    bases = {row.basis for row in ranking.rows}
    texts = []
    if bases & {"measured", "scaled"}:
        worst = max(speed.worst_error for speed in speeds().values())
        middle = max(speed.median_error for speed in speeds().values())
        errors = f"{middle:.0%} (median) and {worst:.0%} (worst)"
        texts.append(f"Measured: fitted to rows of that card, which it meets within {errors}.")
    if "scaled" in bases:
        texts.append("Scaled: from another card's rows by the data sheets, not verified.")
    if "assumed" in bases:
        counted = ", ".join(f"{share:.0%} on {device}" for device, share in ranking.efficiency.items())
        texts.append(f"Assumed: a share of the speed of the floor ({counted}), not verified.")
    return " ".join(texts)
