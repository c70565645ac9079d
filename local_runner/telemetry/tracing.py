"""OpenTelemetry traces of requests, if the environment enables them; otherwise OpenTelemetry is not even imported.

A request is one span with the request's id, a child of the caller's if a W3C `traceparent` comes as an HTTP header or
gRPC metadata; below it is a span for each stage that the scoring package reports. The standard environment variables
apply: OTEL_EXPORTER_OTLP_ENDPOINT (of a collector's OTLP/HTTP port) or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_SDK_DISABLED and
those of the batch processor. No span holds prompts or answers.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from local_runner.bundle.script import Answer
from local_runner.errors import RunnerFailed
from local_runner.telemetry import logs

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


def of_environment(service: str) -> "Tracing | None":
    """Tracing as the environment sets it up, by default named `service`; None if disabled. Raises RunnerFailed."""
    url = endpoint()
    if not url:
        return None
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise RunnerFailed(
            f"Traces need the package {error.name!r}.", "pip install 'mii-azure[otel]', or unset the endpoint."
        ) from error
    from local_runner.telemetry.otlp import Exporter

    resource = Resource.create({} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service})
    try:
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(Exporter(url)))
    except ValueError as error:
        reason = str(error).strip().rstrip(".")
        raise RunnerFailed(f"The environment's settings of traces are wrong: {reason}.", "See OTEL_*.") from error
    return Tracing(provider)


def endpoint() -> str:
    """Endpoint for traces; empty if none is configured. Raises RunnerFailed for an unsupported protocol."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return ""
    base = os.environ.get(ENDPOINT, "")
    url = os.environ.get(_TRACES_ENDPOINT, "") or (f"{base.rstrip('/')}/v1/traces" if base else "")
    if url and not url.startswith(("http://", "https://")):
        raise RunnerFailed(f"{url!r} is no address for traces.", "It looks like http://collector:4318.")
    if url and os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") == "grpc":
        raise RunnerFailed("Traces are sent as OTLP over HTTP, not over gRPC.", "Name the collector's port 4318.")
    return url


class Tracing:
    """Creates spans through a provider of the SDK."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("mii_azure.local_runner")

    def begin(self, name: str, headers: Mapping[str, str], **attributes: Any) -> "Trace":
        """Begin the span of a request that came with these headers."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(headers)
        named = {f"mii_azure.{key}": value for key, value in attributes.items()}
        named["mii_azure.request_id"] = logs.current.get()
        return Trace(self._tracer, self._tracer.start_span(name, parent, SpanKind.SERVER, named))

    def close(self) -> None:
        """Export the remaining spans, within five seconds."""
        self._provider.force_flush(5_000)
        self._provider.shutdown()


class Trace:
    """Span of one request while it is open; its stages are collected through `telemetry.spans.taken`."""

    def __init__(self, tracer: Any, span: Any) -> None:
        self._tracer, self._span = tracer, span
        self._stages: list[tuple[str, float, float]] = []
        self._clock = time.time_ns() - time.perf_counter_ns()
        from scoring.host_api import taken

        taken.set(self._stages)

    def follow(self, answer: Answer) -> Answer:
        """Wrap the answer so that the span of a stream ends when the stream is closed."""
        if answer.chunks is None:
            self.end(answer.status)
            return answer

        def close() -> None:
            answer.close()
            self.end(answer.status)

        return replace(answer, began=lambda: self._span.add_event("first event"), close=close)

    def end(self, code: int) -> None:
        """End the request's span with that HTTP status."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        if not self._span.is_recording():
            return
        inside = set_span_in_context(self._span)
        for stage, began, ended in self._stages:
            span = self._tracer.start_span(stage, inside, start_time=self._at(began))
            span.end(self._at(ended))
        self._span.set_attribute("http.response.status_code", code)
        if code >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()

    def _at(self, counter: float) -> int:
        return int(counter * 1e9) + self._clock
