"""Terminal output for people: plans, findings, verdicts and benchmarks as tables."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_COLOURS = {
    "error": "red",
    "warning": "yellow",
    "info": "cyan",
    "bytes": "green",
    "values": "green",
    "scores": "yellow",
    "different": "red",
}

_UNBOUNDED = 100_000  # columns


def _coloured(word: str) -> Text:
    return Text(word, style=_COLOURS.get(word, ""))


def table(*columns: str, named: int = 1) -> Table:
    """Table without a frame; the first `named` columns are names, which are never broken."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, overflow="fold", no_wrap=number < named)
    return made


def print_table(console: Console, made: Table) -> None:
    """Print a table; where no terminal sets a width, every row is one line."""
    if console.file.isatty():
        console.print(made)
        return
    width, console.width = console.width, _UNBOUNDED
    try:
        with console.capture() as written:
            console.print(made)
    finally:
        console.width = width
    for line in written.get().splitlines():
        console.print(line.rstrip(), soft_wrap=True)


def duration(seconds: float) -> str:
    """Format a time for people."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def show_findings(console: Console, findings: Iterable[Any]) -> None:
    """Print one line per finding with its remedy, or that there is none."""
    found = list(findings)
    if not found:
        console.print("no findings")
        return
    made = table("id", "severity", "where", "finding", "remedy", named=2)
    for entry in found:
        place = f"{entry.file}:{entry.line}" if entry.line else entry.file or entry.question
        made.add_row(entry.id, _coloured(entry.severity), place, entry.message, entry.remedy)
    print_table(console, made)


def show_verdict(console: Console, verdict: Any) -> None:
    """Print grades per target, each disagreement, and environment differences that may explain it."""
    made = table("target", "bytes", "values", "scores", "different", "environment against " + verdict.reference)
    made.add_row(verdict.reference, *[""] * 4, "the reference")
    for target in verdict.targets[1:]:
        counts = verdict.counts[target]
        numbers = [str(counts.get(grade, 0) or "") for grade in ("bytes", "values", "scores", "different")]
        made.add_row(target, *numbers, "; ".join(verdict.environment[target]) or "the same")
    print_table(console, made)
    for entry in verdict.comparisons:
        if entry.grade in ("scores", "different"):
            told = f", {entry.request}: {entry.difference} ({_cause(verdict, entry)})"
            console.print(Text.assemble((entry.target, "red"), told), soft_wrap=True)
    if verdict.load:
        moved = ", ".join(f"{target} {count}" for target, count in verdict.moved.items())
        told = f"with {verdict.load} requests in flight, of {verdict.requests} requests otherwise than alone: {moved}"
        console.print(told, soft_wrap=True)
    for judged in verdict.tokens:
        _show_tokens(console, judged)
    said, told = verdict.headline().split(":", 1)
    word = (said, "bold green" if verdict.agree else "bold red")
    console.print(Text.assemble(word, f":{told}"), soft_wrap=True)


def _show_tokens(console: Console, judged: Any) -> None:
    word = Text("its tokens are the model's", "green") if judged.agree else Text(judged.cause, "red")
    most = max(judged.margins, key=lambda kind: judged.margins[kind] / judged.bounds[kind])
    told = (
        f"{judged.target}, {judged.tokens:,} tokens of which the reference picks {judged.picked:,}; "
        f"mean margin {judged.margins[most]:.2g} nats ({most}), bound {judged.bounds[most]:.2g}: "
    )
    console.print(Text.assemble(told, word), soft_wrap=True)


def _cause(verdict: Any, entry: Any) -> str:
    if entry.under_load:
        return "alone it answered otherwise"
    explained: list[str] = verdict.environment[entry.target]
    return explained[0] if explained else "no difference in the environment explains it"


def show_status(console: Console, status: Any) -> None:
    """Print an endpoint's headline and one line per slot."""
    console.print(f"{status.endpoint}: {status.state}, {status.auth_mode}, {status.scoring_uri}", soft_wrap=True)
    adapted = any(slot.adapters for slot in status.slots)
    columns = ("slot", "state", "traffic %", "mirrored %", "instances", *(["adapters"] if adapted else []), "bundle")
    made = table(*columns)
    for slot in status.slots:
        numbers = [str(slot.traffic), str(slot.mirrored or ""), f"{slot.instances} x {slot.instance_type}"]
        adapters = [", ".join(slot.adapters)] if adapted else []
        made.add_row(slot.slot, slot.state, *numbers, *adapters, slot.bundle[:12] or "not ours")
    print_table(console, made)


def size(count: int) -> str:
    """Format bytes for people, in binary units."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
