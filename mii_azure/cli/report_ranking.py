"""Table of ranked instance types, with the conditions that its numbers hold for."""

from rich.console import Console
from rich.table import Table

from mii_azure.hardware.speed import speeds
from mii_azure.planning.ranking import Ranked, Ranking


def show_ranking(console: Console, ranking: Ranking) -> None:
    """Print the instance types that fit, best first, then those that do not, each with its reason."""
    unit = ranking.unit
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ["instance type", "dtype", "memory left", "batch", "alone", f"{unit}/s", "basis", "quota cores"]
    if ranking.currency:
        columns += [f"{ranking.currency}/h", f"{ranking.currency}/million {unit}"]
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in ranking.rows:
        if row.fits:
            table.add_row(*_cells(row, priced=bool(ranking.currency)))
    console.print(table)
    for row in ranking.rows:
        if not row.fits:
            console.print(f"{row.instance_type} does not fit: {row.why}", soft_wrap=True)
    console.print(f"\n{_basis(ranking)}", soft_wrap=True)


def _cells(row: Ranked, priced: bool) -> list[str]:
    latency = row.latency_s or 0.0
    shown = f"{latency:.1f} s" if latency >= 1 else f"{latency * 1000:.1f} ms"
    cells = [row.instance_type, str(row.dtype), f"{row.headroom or 0:.0%}", str(row.batch), shown]
    cells += [f"{row.throughput or 0:,.0f}", str(row.basis), str(row.quota_cores)]
    if priced:
        cells.append("" if row.price_per_hour is None else f"{row.price_per_hour:,.3f}")
        cells.append("" if row.cost_per_million is None else f"{row.cost_per_million:,.4g}")
    return cells


def _basis(ranking: Ranking) -> str:
    """Assumptions of the predictions, in sentences."""
    answer = f" with answers of {ranking.new_tokens}" if ranking.new_tokens else ""
    text = f"Expected, of requests of {ranking.request_tokens} tokens{answer}, {ranking.instance_count} instance(s),"
    text += f" one copy of the model each. {_bases(ranking)}"
    if not ranking.currency:
        return f"{text} No prices: give --prices FILE, which `mii-azure prices --refresh` writes."
    text += f" Prices of {ranking.prices_of} in {ranking.region}, {ranking.currency}. Cost at the batch shown,"
    return f"{text} busy {ranking.utilisation:.0%} of the time."


def _bases(ranking: Ranking) -> str:
    """What the bases that occur mean, with the errors that were found."""
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
        texts.append(f"Assumed: a share of the speed of the floor ({counted}).")
    return " ".join(texts)
