"""/metrics in Prometheus' format: the host's counters, and the scoring package's statistics, read when scraped."""

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

PHASES = ("importing", "loading", "optimising", "warming", "ready", "draining", "failed")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

ReadStatistics = Callable[[], dict[str, Any]]


class Metrics:
    """Metrics of one host; `told` returns `entry.statistics()` with the host's own phase."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, statistics: ReadStatistics) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "mii_azure_requests", "Requests answered, by HTTP status.", ["code"], registry=self._registry
        )
        self._seconds = Histogram(
            "mii_azure_request_seconds",
            "From a request to its answer; of a stream, to its beginning.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first = Histogram(
            "mii_azure_first_token_seconds",
            "From a streamed request to its first event.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge("mii_azure_in_flight", "Requests and streams not answered yet.", registry=self._registry)
        self._registry.register(_Scoring(statistics))

    def add(self, collector: Any) -> None:
        """Expose another collector's metrics too."""
        self._registry.register(collector)

    def answered(self, code: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(str(code)).inc()
        self._seconds.observe(seconds)

    def first_event(self, seconds: float) -> None:
        """Record the time to a stream's first event."""
        self._first.observe(seconds)

    def expose(self) -> bytes:
        """Metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Scoring:
    """Reads the scoring package's statistics when scraped, so that nothing is counted twice."""

    def __init__(self, statistics: ReadStatistics) -> None:
        self._statistics = statistics

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not query a scoring package that is not loaded."""
        return []

    def collect(self) -> Iterator[Metric]:
        statistics = self._statistics()
        phases = GaugeMetricFamily("mii_azure_phase", "1 for the phase that the runner is in.", labels=["phase"])
        for phase in PHASES:
            phases.add_metric([phase], float(phase == statistics["phase"]))
        yield phases
        yield GaugeMetricFamily("mii_azure_phase_seconds", "Time in this phase.", statistics["phase_seconds"])
        if "replicas" in statistics:
            replicas = GaugeMetricFamily("mii_azure_replicas", "Replicas by their state.", labels=["state"])
            for state, count in statistics["replicas"].items():
                replicas.add_metric([state.lower()], count)
            yield replicas
            asked = "Requests asked of another replica because theirs was lost."
            yield CounterMetricFamily("mii_azure_asked_again", asked, statistics["asked_again"])
        if "stages" not in statistics:
            return
        yield GaugeMetricFamily("mii_azure_queue_rows", "Rows that wait for a batch.", statistics["waiting"])
        yield GaugeMetricFamily("mii_azure_active_rows", "Rows that wait or run.", statistics["active"])
        yield CounterMetricFamily("mii_azure_prompt_tokens", "Tokens taken in.", statistics["prompt_tokens"])
        yield CounterMetricFamily("mii_azure_generated_tokens", "Tokens generated.", statistics["generated_tokens"])
        yield from _tokens(statistics)
        stages = HistogramMetricFamily("mii_azure_stage_seconds", "Time per stage of scoring.", labels=["stage"])
        for name, stage in statistics["stages"].items():
            stages.add_metric([name], [tuple(bucket) for bucket in stage["buckets"]], stage["sum"])
        yield stages
        yield _histogram("mii_azure_batch_rows", "Rows per forward.", statistics["batch_rows"])


def _tokens(statistics: dict[str, Any]) -> Iterator[Metric]:
    """Token metrics of generation; none for a bundle made before they existed."""
    if "first_token" in statistics:
        text = "From a row's arrival in the queue to its first token."
        yield _histogram("mii_azure_time_to_first_token_seconds", text, statistics["first_token"])
        text = "From a token of a row to its next."
        yield _histogram("mii_azure_inter_token_latency_seconds", text, statistics["next_token"])
        text = "Tokens taken in whose keys and values a slot held already."
        yield CounterMetricFamily("mii_azure_cached_prompt_tokens", text, statistics.get("cached_tokens", 0))
        text = "Times that a row gave up its slot to be continued later."
        yield CounterMetricFamily("mii_azure_preemptions", text, statistics.get("preemptions", 0))
        text = "Tokens drafted, which a step checks beside the next one."
        yield CounterMetricFamily("mii_azure_drafted_tokens", text, statistics.get("drafted_tokens", 0))
        text = "Drafted tokens that were right."
        yield CounterMetricFamily("mii_azure_accepted_tokens", text, statistics.get("accepted_tokens", 0))
    if "kv_tokens" in statistics:
        used, capacity = statistics["kv_tokens"], statistics["kv_capacity"]
        yield GaugeMetricFamily("mii_azure_kv_cache_tokens", "Tokens that rows hold keys and values of.", used)
        yield GaugeMetricFamily("mii_azure_kv_cache_capacity_tokens", "Most tokens that they may hold.", capacity)
        usage = used / capacity if capacity else 0.0
        yield GaugeMetricFamily("mii_azure_kv_cache_usage_ratio", "Tokens held, of those that may be.", usage)


def _histogram(name: str, text: str, histogram: dict[str, Any]) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, text, [tuple(bucket) for bucket in histogram["buckets"]], histogram["sum"])
