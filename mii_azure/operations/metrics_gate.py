"""Gate on Azure Monitor's metrics of a slot's own traffic: a new slot must not do worse than the old one."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

API = "2018-01-01"
_COUNT, _SLOW = "RequestsPerMinute", "RequestLatency_P90"  # metrics of the endpoint, by deployment


@dataclass(frozen=True)
class Allowed:
    """Limits on how much worse the new slot may do than the old one."""

    errors_percent: float = 1.0  # percentage points of failed requests
    slower_percent: float = 50.0  # increase of the 90th percentile


@dataclass(frozen=True)
class Numbers:
    """Metrics of one slot's requests in a period."""

    requests: float
    errors_percent: float
    p90_ms: float | None


class MetricsGate:
    """Reads the metrics of an endpoint; raises azure-core's errors, also on creation if reading is not permitted."""

    def __init__(self, client: Any, endpoint: str, allowed: Allowed) -> None:
        from mii_azure.azure.arm import Arm

        self.allowed = allowed
        self._arm = Arm(client)
        self._path = f"{client.online_endpoints.get(endpoint).id}/providers/Microsoft.Insights/metrics"
        self.began = datetime.now(UTC)
        self.numbers("any")

    def restart(self) -> None:
        """Restart the period now."""
        self.began = datetime.now(UTC)

    def numbers(self, slot: str) -> Numbers:
        """Metrics of the slot's requests since `began`."""
        counts = self._read(_COUNT, f"deployment eq '{slot}' and statusCodeClass eq '*'")
        by_class = {entry: sum(values) for entry, values in counts.items()}
        total = sum(by_class.values())
        bad = sum(count for entry, count in by_class.items() if not entry.startswith("2"))
        slow = [value for values in self._read(_SLOW, f"deployment eq '{slot}'").values() for value in values]
        return Numbers(total, 100 * bad / total if total else 0.0, sum(slow) / len(slow) if slow else None)

    def close(self) -> None:
        """Close the connections."""
        self._arm.close()

    def _read(self, metric: str, which: str) -> dict[str, list[float]]:
        """{status class, "" if there is none: averages of each minute}."""
        span = f"{self.began:%Y-%m-%dT%H:%M:%SZ}/{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        found = self._arm.get(
            self._path,
            API,
            metricnames=metric,
            timespan=span,
            interval="PT1M",
            aggregation="Average",
            filter=which,
        )
        series = [entry for value in found.get("value", []) for entry in value.get("timeseries", [])]
        return {
            _class(entry): [point["average"] for point in entry.get("data", []) if point.get("average") is not None]
            for entry in series
        }


def _class(series: dict[str, Any]) -> str:
    named = {str(entry["name"]["value"]).lower(): str(entry["value"]) for entry in series.get("metadatavalues") or []}
    return named.get("statuscodeclass", "")


def worse(new: Numbers, old: Numbers, allowed: Allowed) -> str:
    """Sentence on where the new slot does worse than allowed; empty if nowhere."""
    if new.errors_percent > old.errors_percent + allowed.errors_percent:
        return (
            f"{new.errors_percent:.1f} % of its requests failed, and {old.errors_percent:.1f} % of the old slot's;"
            f" {allowed.errors_percent:g} points more are allowed."
        )
    if new.p90_ms is not None and old.p90_ms and new.p90_ms > old.p90_ms * (1 + allowed.slower_percent / 100):
        return (
            f"its 90th percentile is {new.p90_ms:.0f} ms, and {old.p90_ms:.0f} ms the old slot's;"
            f" {allowed.slower_percent:g} % more are allowed."
        )
    return ""
