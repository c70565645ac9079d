"""The verb bench: what each host adds, or a sweep of load over targets."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mii_azure.cli import derived
from mii_azure.cli.price_verbs import PriceFile, known
from mii_azure.cli.progress import status
from mii_azure.cli.report import print_table, table
from mii_azure.cli.serving import ApiKeyFile, credentials
from mii_azure.cli.shared import AsJson, Bundle, Report, err, flag, out, print_json
from mii_azure.errors import SpecError

_SWEPT = "http"  # a sweep takes minutes a target


Targets = Annotated[
    str,
    flag("targets", "Comma-separated: in-process, grpc, http, azmlinfsrv, container; of a sweep also those of parity."),
]
Concurrency = Annotated[
    str, flag("concurrency", "With --sweep: comma-separated clients in flight; 1 to 32 when absent.")
]
Rates = Annotated[
    str, flag("rates", "With --sweep: comma-separated requests a second; shares of the best when absent.")
]
Export = Annotated[
    Path | None, flag("export", "With --sweep: folder for what AIPerf and GuideLLM would have written of these loads.")
]


def bench(
    bundle: Bundle,
    targets: Targets = "",
    count: Annotated[int, flag("count", "Requests per target; of a sweep, at each load.")] = 100,
    clients: Annotated[int, flag("clients", "Concurrent clients for the throughput column.")] = 8,
    sweep: Annotated[
        bool, flag("sweep", "Raise the load, in a closed loop and in an open one, and find the knee.")
    ] = False,
    concurrency: Concurrency = "",
    rates: Rates = "",
    export: Export = None,
    report: Report = None,
    prices: PriceFile = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Measure what each host adds, side by side; with --sweep latency against load, and where the knee is."""
    named = derived.split(targets)
    if not sweep:
        if concurrency or rates or export or report or prices:
            told = "--concurrency, --rates, --export, --report and --prices belong to a sweep."
            raise SpecError(told, "Give --sweep too.")
        _compare(bundle, {"targets": named} if named else {}, count, clients, as_json)
        return
    billed = known(prices)
    proof = credentials(tls=False, ca=None, cert=None, key=None, api_key_file=api_key_file)
    asked = {"count": count, "api_key": proof.api_key if proof else ""}
    swept = _swept(bundle, named or [_SWEPT], (concurrency, rates), asked, as_json)
    print_json(swept) if as_json else show_sweep(out, swept)
    # What was measured is told before a file that cannot be written ends the run.
    if export:
        from mii_azure.verdict import aiperf, guidellm

        aiperf.export(swept, export)
        guidellm.export(swept, export)
    if report:
        from mii_azure.reports.bench_report import write_bench

        write_bench(swept, report, billed)


def _compare(bundle: Path, named: dict[str, list[str]], count: int, clients: int, as_json: bool) -> None:
    from mii_azure.verdict.benchmark import bench as measure

    with status(err, enabled=not as_json) as told:
        measured = measure(bundle, count=count, clients=clients, progress=told, **named)
    print_json(measured) if as_json else show_bench(out, measured)


def _swept(bundle: Path, targets: list[str], loads: tuple[str, str], asked: dict[str, Any], quiet: bool) -> Any:
    from mii_azure.verdict.sweep import CLIENTS
    from mii_azure.verdict.sweep import sweep as measure

    clients = [int(number) for number in _numbers("concurrency", loads[0], int)] or CLIENTS
    rates = _numbers("rates", loads[1], float) or None
    with status(err, enabled=not quiet) as told:
        return measure(bundle, targets, clients, rates, progress=told, **asked)


def _numbers(name: str, text: str, kind: type[int] | type[float]) -> list[float]:
    try:
        return [kind(word) for word in derived.split(text)]
    except ValueError:
        raise SpecError(
            f"--{name} takes numbers with commas, not {text[:80]!r}.", f"For example --{name} 1,2,4."
        ) from None


def show_bench(console: Console, report: Any) -> None:
    """Print latency percentiles at one client and throughput at several, side by side."""
    made = table("target", "p50 ms", "p90 ms", "p99 ms", "added p50 ms", f"requests/s, {report.clients} clients")
    for row in report.rows:
        added = "" if row.added_p50_ms is None else f"{row.added_p50_ms:.2f}"
        figures = (f"{value:.2f}" for value in (row.p50_ms, row.p90_ms, row.p99_ms))
        made.add_row(row.target, *figures, added, f"{row.requests_per_s:,.0f}")
    print_table(console, made)


def show_sweep(console: Console, swept: Any) -> None:
    """Print each load's throughput and latencies, and each target's knee."""
    streams = any(point.first_token_ms for point in swept.points)
    more = ("tokens/s", "first token p50", "per token p50") if streams else ()
    made = table("target", "load", "requests/s", "p50 ms", "p90 ms", "p99 ms", *more, "failed", named=2)
    for point in swept.points:
        load = f"{point.load:g} at a time" if point.loop == "closed" else f"{point.load:.3g}/s"
        latency = point.latency_ms
        row = [f"{point.requests_per_s:,.1f}", *(f"{value:,.1f}" for value in (latency.p50, latency.p90, latency.p99))]
        if streams:
            shown = (point.first_token_ms, point.token_ms)
            row.append("" if point.tokens_per_s is None else f"{point.tokens_per_s:,.1f}")
            row += ["" if found is None else f"{found.p50:,.1f}" for found in shown]
        made.add_row(point.target, load, *row, str(point.failed or ""))
    print_table(console, made)
    for knee in swept.knees:
        share = knee.requests_per_s / knee.best_requests_per_s
        told = f"knee of {knee.target}: {knee.clients} at a time, {knee.requests_per_s:,.1f} requests/s at "
        told += f"{knee.latency_p50_ms:,.1f} ms; that is {share:.0%} of the most it did"
        console.print(told, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(bench)
