"""Table of a runner's /metrics for the terminal: printed once, or live with rates between two scrapes."""

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live
from rich.table import Table

from local_runner.access.security import check_certificates, read_keys
from local_runner.errors import RunnerFailed, Unauthenticated
from local_runner.protocol.addresses import opener, read_host_port

Samples = dict[str, float]
_TIMEOUT_S = 5.0
_STAGES = ("parse", "encode", "queue", "forward", "decode")


class Source:
    """The /metrics endpoint of the runner whose HTTP port is `address`."""

    def __init__(self, address: str, tls: bool, ca: Path | None, api_key_file: Path | None) -> None:
        try:
            read_host_port(address)
        except ValueError as error:
            raise RunnerFailed(
                f"{address!r} is no address: {error}.", "Give HOST:PORT of the runner's HTTP side."
            ) from None
        self._url = f"{'https' if tls or ca else 'http'}://{address}/metrics"
        self._headers = {"Authorization": f"Bearer {read_keys(api_key_file)[0]}"} if api_key_file else {}
        if ca:
            check_certificates(ca)
        context = ssl.create_default_context(cafile=ca)
        # No proxy is used for a runner.
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        self._open = opener(*handlers).open

    def read(self) -> Samples:
        """Samples keyed by name, a comma and label; raises RunnerFailed or Unauthenticated."""
        try:
            with self._open(urllib.request.Request(self._url, headers=self._headers), timeout=_TIMEOUT_S) as answer:  # noqa: S310
                text = answer.read().decode()
            families = list(text_string_to_metric_families(text))
        except urllib.error.HTTPError as error:
            with error:
                if error.code == Unauthenticated.http_status:
                    raise Unauthenticated("The runner wants a key.", "Give --api-key-file.") from None
                raise RunnerFailed(f"{self._url} answered {error.code}.", "Give the runner's HTTP port.") from None
        except http.client.HTTPException as error:
            raise RunnerFailed(f"{self._url} is no HTTP server's.", "Give the runner's HTTP port.") from error
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", error)
            raise RunnerFailed(f"{self._url} cannot be read: {why}.", "Give the runner's HTTP port.") from error
        return {
            ",".join((sample.name, *sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }


def table(now: Samples, before: Samples | None = None, seconds: float = 0.0) -> Table:
    """Table of the most important figures; without an earlier scrape, totals and means since the start."""
    grown = {name: value - (before or {}).get(name, 0.0) for name, value in now.items()}
    shown = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _rows(now, grown, seconds if before is not None else 0.0):
        shown.add_row(name, value)
    return shown


def _rows(now: Samples, grown: Samples, seconds: float) -> Iterator[tuple[str, str]]:
    phase = next((name.split(",")[1] for name in now if name.startswith("mii_azure_phase,") and now[name]), "unknown")
    yield "phase", f"{phase} for {now.get('mii_azure_phase_seconds', 0):.0f} s"
    codes = {name.split(",")[1]: value for name, value in grown.items() if name.startswith("mii_azure_requests_total,")}
    yield "requests", _rate(sum(codes.values()), seconds)
    yield "by code", "  ".join(f"{code}: {count:.0f}" for code, count in sorted(codes.items())) or "none"
    yield "in flight", f"{now.get('mii_azure_in_flight', 0):.0f}"
    yield "queue, rows", f"{now.get('mii_azure_queue_rows', 0):.0f}"
    yield "active, rows", f"{now.get('mii_azure_active_rows', 0):.0f}"
    yield "answer ms, mean", _mean(grown, "mii_azure_request_seconds", "", 1e3)
    yield "first event ms, mean", _mean(grown, "mii_azure_first_token_seconds", "", 1e3)
    yield "time to first token ms, mean", _mean(grown, "mii_azure_time_to_first_token_seconds", "", 1e3)
    yield "time per token ms, mean", _mean(grown, "mii_azure_inter_token_latency_seconds", "", 1e3)
    if "mii_azure_kv_cache_tokens" in now:
        used, most = now["mii_azure_kv_cache_tokens"], now["mii_azure_kv_cache_capacity_tokens"]
        yield "KV cache, tokens", f"{used:,.0f} of {most:,.0f} ({used / most if most else 0:.1%})"
    yield "batch rows, mean", _mean(grown, "mii_azure_batch_rows", "", 1)
    for stage in _STAGES:
        yield f"{stage} ms, mean", _mean(grown, "mii_azure_stage_seconds", f",{stage}", 1e3)
    yield "tokens in", _rate(grown.get("mii_azure_prompt_tokens_total", 0), seconds)
    yield "tokens in, cached", _rate(grown.get("mii_azure_cached_prompt_tokens_total", 0), seconds)
    yield "tokens out", _rate(grown.get("mii_azure_generated_tokens_total", 0), seconds)


def _rate(count: float, seconds: float) -> str:
    return f"{count / seconds:,.1f}/s" if seconds else f"{count:,.0f}"


def _mean(grown: Samples, name: str, label: str, scale: float) -> str:
    count = grown.get(f"{name}_count{label}", 0)
    return f"{grown[f'{name}_sum{label}'] / count * scale:,.2f}" if count else "-"


def show(source: Source, console: Console, once: bool, interval_s: float) -> None:
    """Print the table once, or keep it current until Ctrl-C."""
    before, at = source.read(), time.monotonic()
    if once:
        console.print(table(before))
        return
    with suppress(KeyboardInterrupt), Live(table(before), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            now, then = source.read(), time.monotonic()
            live.update(table(now, before, then - at), refresh=True)
            before, at = now, then
