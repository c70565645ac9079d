"""The gRPC services: our own Scoring, the Open Inference Protocol, health and reflection, over one Host."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from importlib import metadata
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from local_runner.bundle.script import Answer
from local_runner.errors import RequestStalled
from local_runner.grpc import malformed
from local_runner.host.host import Host, internal
from local_runner.http import uvicorn_protocol
from local_runner.protocol import errors, oip
from local_runner.protos import inference_pb2, inference_pb2_grpc, scoring_pb2, scoring_pb2_grpc
from local_runner.telemetry import logs
from scoring.errors import InvalidParameter, MiiAzureError, Overloaded

SERVICES = (
    scoring_pb2.DESCRIPTOR.services_by_name["Scoring"].full_name,
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


MOST_WATCHES = 512  # concurrent health watches, 12 KB each; a client has one
TRUNCATED = "x-truncated-inputs"  # scoring's header, and the trailing metadatum: inputs that truncation cut
LONGEST_SERVICE = 256  # characters in the service name of a health request


class _Servicer(health.aio.HealthServicer):  # type: ignore[misc]
    """gRPC's health servicer with a limit on concurrent watches: watching needs no key."""

    def __init__(self) -> None:
        super().__init__()
        self._watches = 0

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        async with _reporting(context):
            if len(request.service) > LONGEST_SERVICE:
                raise InvalidParameter("No service has so long a name.", "Leave it empty for the server as a whole.")
            if self._watches >= MOST_WATCHES:
                raise Overloaded(f"{self._watches} watch health already.", "Ask with Check.")
            self._watches += 1
            try:
                await super().Watch(request, context)
            finally:
                self._watches -= 1


class Health:
    """grpc.health.v1, driven by the host's readiness."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._known: bool | None = None
        self.servicer: Any = _Servicer()

    async def update(self) -> None:
        """Publish the readiness, if it changed, for the server as a whole and for each service."""
        ready = self._host.ready
        if ready is self._known:
            return
        self._known = ready
        states = health_pb2.HealthCheckResponse
        for name in ("", *SERVICES):
            await self.servicer.set(name, states.SERVING if ready else states.NOT_SERVING)


class Scoring(scoring_pb2_grpc.ScoringServicer):  # type: ignore[misc]  # generated code is untyped
    """JSON in, JSON out, as in POST /score."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def Score(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with _reporting(context):
            body = await _whole(self._host, request.json, context)
            return scoring_pb2.ScoreReply(json=body.decode())

    async def ScoreStream(self, request: Any, context: Any) -> None:  # noqa: N802
        async with _reporting(context):
            answer = await self._host.score(request.json, dict(context.invocation_metadata()))
            await _refuse_failure(answer, context)
            if answer.chunks is None:
                await _write(context, scoring_pb2.ScoreEvent(json=answer.body.decode()))
                return
            parser = errors.EventParser()
            async with aclosing(self._host.chunks(answer)) as chunks:
                async for chunk in chunks:
                    for event in parser.feed(chunk):
                        await _write(context, scoring_pb2.ScoreEvent(json=event))

    async def Metadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with _reporting(context):
            body = await _whole(self._host, errors.METADATA_BODY, context)
            return scoring_pb2.MetadataReply(json=body.decode())


class OpenInference(inference_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The protocol's six calls; `local_runner.protocol.oip` reads and writes the tensors."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._names = host.deployment.names

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return inference_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return inference_pb2.ServerReadyResponse(ready=self._host.ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with _reporting(context):
            oip.check_model(request.name, request.version, self._names)
            return inference_pb2.ModelReadyResponse(ready=self._host.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return inference_pb2.ServerMetadataResponse(name="mii-azure", version=metadata.version("mii-azure"))

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with _reporting(context):
            oip.check_model(request.name, request.version, self._names)
            facts = oip.model_metadata(self._host.deployment, request.name)
            return inference_pb2.ModelMetadataResponse(**facts)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with _reporting(context):
            oip.check_model(request.model_name, request.model_version, self._names)
            call = _inference(request)
            body = await _whole(self._host, oip.to_raw(call, self._host.deployment.task), context)
            name, elements = oip.from_answer(call, body)
            return _infer_response(request, name, elements)


def build(host: Host, health_: Health, interceptors: Sequence[Any] = (), shared: bool = False) -> Any:
    """Build a grpc.aio server with every service; the caller binds and starts it.

    Unless its port is `shared` on purpose, no second runner may share it silently.
    """
    options = (*_OPTIONS, ("grpc.so_reuseport", int(shared)), ("grpc.max_receive_message_length", host.max_body))
    server = grpc.aio.server(interceptors=interceptors, options=options)
    registry = malformed.Registry(server)
    scoring_pb2_grpc.add_ScoringServicer_to_server(Scoring(host), registry)
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(OpenInference(host), registry)
    health_pb2_grpc.add_HealthServicer_to_server(health_.servicer, registry)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server


@asynccontextmanager
async def _reporting(context: Any) -> AsyncIterator[None]:
    """Turn an error into a gRPC status with its JSON body."""
    number = logs.take(dict(context.invocation_metadata() or ()).get(logs.HEADER))
    context.set_trailing_metadata(((logs.HEADER, number),))
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as unforeseen:
        error = unforeseen if isinstance(unforeseen, MiiAzureError) else internal(unforeseen)
        code = grpc.StatusCode[error.grpc_status]
        await _abort(context, code, error.http_status, error.headers, errors.body_of(error))


async def _write(context: Any, event: Any) -> None:
    """Send an event of a stream; raises RequestStalled if the client stops reading."""
    try:
        async with asyncio.timeout(uvicorn_protocol.READER_S):
            await context.write(event)
    except TimeoutError:
        raise RequestStalled("The answer was not read on.", "Read what is streamed as it comes.") from None


async def _abort(context: Any, code: Any, status: int, headers: dict[str, str], body: bytes) -> None:
    sentence, trailing = errors.trailers(status, headers, body)
    await context.abort(code, sentence, (*trailing, (logs.HEADER, logs.current.get())))


async def _refuse_failure(answer: Answer, context: Any) -> None:
    """Abort the call if the scoring script answered with an error."""
    if answer.status >= 400:
        await _abort(context, errors.grpc_status(answer.status), answer.status, answer.headers, answer.read())


async def _whole(host: Host, raw: str, context: Any) -> bytes:
    """Body of an answer that must not be a stream."""
    answer = await host.score(raw, dict(context.invocation_metadata()))
    await _refuse_failure(answer, context)
    if answer.chunks is not None:
        answer.close()
        raise InvalidParameter(
            "A unary call cannot stream its answer.", "Use ScoreStream, or leave `stream` out.", "stream"
        )
    if cut := {key.lower(): value for key, value in answer.headers.items()}.get(TRUNCATED):
        context.set_trailing_metadata(((logs.HEADER, logs.current.get()), (TRUNCATED, cut)))
    return answer.body


def _inference(request: Any) -> oip.Inference:
    raw = list(request.raw_input_contents)
    tensors: dict[str, list[bytes]] = {}
    for at, tensor in enumerate(request.inputs):
        elements = oip.unpack(raw[at]) if at < len(raw) else list(tensor.contents.bytes_contents)
        oip.check_tensor(tensor.name, tensor.datatype, tensor.shape, elements)
        tensors[tensor.name] = elements
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
        for name, value in request.parameters.items()
    }
    return oip.Inference(tensors, oip.of_task(parameters), tuple(output.name for output in request.outputs))


def _infer_response(request: Any, name: str, elements: list[bytes]) -> Any:
    response = inference_pb2.ModelInferResponse(model_name=request.model_name, model_version=oip.VERSION, id=request.id)
    output = response.outputs.add(name=name, datatype=oip.DATATYPE, shape=[len(elements)])
    # The reply uses the same encoding as the request.
    if request.raw_input_contents:
        response.raw_output_contents.append(oip.pack(elements))
    else:
        output.contents.bytes_contents.extend(elements)
    return response
