"""Metrics over several replicas: sums under the names that one process uses, and each replica's values by label."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_GAUGES = {
    "in_flight": "Requests and streams that the replica holds.",
    "waiting": "Rows that wait for a batch in the replica.",
    "active": "Rows that wait or run in the replica.",
}
_COUNTERS = {
    "restarts": "Times that the replica was started again.",
    "prompt_tokens": "Tokens that the replica took in.",
    "generated_tokens": "Tokens that the replica generated.",
}


class ReplicaMetrics:
    """Reports each replica when scraped; `each` returns their facts and statistics."""

    def __init__(self, each: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        self._each = each

    def describe(self) -> list[Metric]:
        """Return nothing, as in `metrics`."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One family per fact, one sample per replica."""
        facts = {str(each["replica"]): each for each in self._each()}
        ready = GaugeMetricFamily("mii_azure_replica_ready", "1 while the replica takes requests.", labels=["replica"])
        for index, values in facts.items():
            ready.add_metric([index], float(values["state"] == "ready"))
        yield ready
        families: list[tuple[Any, dict[str, str]]] = [(GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)]
        for kind, named in families:
            for name, text in named.items():
                family = kind(f"mii_azure_replica_{name}", text, labels=["replica"])
                for index, values in facts.items():
                    family.add_metric([index], float(values.get(name, 0)))
                yield family


def merged(parts: Sequence[Any]) -> Any:
    """Merge statistics of replicas: numbers and histogram counts are added; of other values the first is kept."""
    first = parts[0] if parts else {}
    if isinstance(first, bool):
        return first
    if isinstance(first, int | float):
        return sum(each for each in parts if isinstance(each, int | float))
    if isinstance(first, dict):
        names = dict.fromkeys(name for each in parts for name in each)
        return {name: merged([each[name] for each in parts if name in each]) for name in names}
    if isinstance(first, list) and all(isinstance(each, list) and len(each) == len(first) for each in parts):
        return [merged(column) for column in zip(*parts, strict=True)]
    return first
