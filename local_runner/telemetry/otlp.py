"""Sends spans to a collector as OTLP over HTTP in its JSON form: https://opentelemetry.io/docs/specs/otlp.

OpenTelemetry's own exporter cannot be installed beside azureml-inference-server-http, which pins version 1.33.0 of the
SDK: the exporter of that version wants protobuf below 6, and later ones a later SDK.
"""

import json
import logging
import os
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from local_runner.protocol.addresses import opener

logger = logging.getLogger(__name__)
_TIMEOUT_S = 10.0


class Exporter(SpanExporter):
    """Posts each batch once; a batch that the collector does not accept is dropped and logged."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/json", **_headers()}

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export spans; called on the batch processor's thread."""
        request = urllib.request.Request(self._url, json.dumps(message(spans)).encode(), self._headers)  # noqa: S310
        try:
            with opener().open(request, timeout=_TIMEOUT_S):
                return SpanExportResult.SUCCESS
        except OSError as error:
            logger.warning("%d spans were not taken by %s: %s", len(spans), self._url, error)
            return SpanExportResult.FAILURE


def message(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """Build one ExportTraceServiceRequest; all spans are of one provider."""
    scope = {"name": spans[0].instrumentation_scope.name} if spans and spans[0].instrumentation_scope else {}
    resource = {"attributes": _attributes(spans[0].resource.attributes)} if spans else {}
    scoped = {"scope": scope, "spans": [_span(span) for span in spans]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [scoped]}]}


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = span.context
    fields = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": span.name,
        "kind": span.kind.value + 1,  # OTLP counts from UNSPECIFIED
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "events": [{"timeUnixNano": str(event.timestamp), "name": event.name} for event in span.events],
        "status": {"code": span.status.status_code.value},
    }
    return {**fields, "parentSpanId": f"{span.parent.span_id:016x}"} if span.parent else fields


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    return {"stringValue": str(value)}


def _headers() -> dict[str, str]:
    """Parse OTEL_EXPORTER_OTLP_HEADERS: key=value pairs, separated by commas, percent-encoded."""
    text = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "")
    pairs = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return {key.strip(): urllib.parse.unquote(value.strip()) for key, _, value in pairs}
