"""Times expected of a placed model, from the measured constants of what will run it.

Timeouts are not set by these but by `planning/latency.py`, which allows for several times as long.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from local_runner.front_ends.number import usual
from mii_azure.hardware import roofline
from mii_azure.hardware.skus import Sku
from mii_azure.hardware.speed import Effort, speeds
from mii_azure.planning import latency
from mii_azure.planning.budget import Work, device_of, kv_bytes_per_token, seen_tokens, state_bytes
from mii_azure.planning.memory import Fit
from mii_azure.platform import limits
from scoring.passes.families import (
    CPU_STACK,
    FUSED_ENCODER,
    NATIVE_STEP,
    WORTH_ON_CPU,
    decoder_tier,
    text_family,
)

#: measured: constants of this card; scaled: of another, by the data sheets; assumed: a share of the floor's speed.
Basis = Literal["measured", "scaled", "assumed"]

Unit = Literal["tokens", "requests", "images"]

GENERATES = ("text-generation", "conversational", "summarization", "translation")
FEW_ROWS = 2  # sequences up to which a step multiplies vectors and no matrices (scoring/decoder/decode_step.py)
_MOVES = 3  # times that a GPU's step reads or writes recurrent states and its copies of them
_NARROW = {"int8": 1 / 4, "int4": (0.5 + 4 / 64) / 4}  # bytes that a CPU's step reads, of the float32 ones


def decoder_runner(tier: str, rows: int, shipped: str = "") -> str:
    """Name of the kernels of a decode step: few rows are read by others than many, quantised numbers by their own."""
    return f"{tier} decode, {'few' if rows <= FEW_ROWS else 'many'} rows{shipped and ', ' + shipped}"


#: What reads a text: JSON in, tokens, and JSON out, by one core.
READING = "token read, one core"


def hands_on(front_ends: bool, streams: bool) -> str:
    """Name of the processes that hand tokens on to clients: front ends, or the engine's process by itself."""
    return "token, front ends" if front_ends else f"{'streamed' if streams else 'whole'} token, one process"


def runner(work: Work, placed: Fit, rows: int) -> str:
    """Name of the code that runs a step of `rows` rows, or a forward if it generates nothing; empty if not measured."""
    if device_of(placed.sku) == "cpu":
        name = _on_cpu(work, placed, rows)
    elif work.profile.kind == "encoder":
        name = "fused encoder" if work.profile.family in FUSED_ENCODER.served else ""
    elif work.profile.kind == "diffusion":
        name = "diffusion"
    else:
        tier = decoder_tier(work.profile.family).tier if placed.room.pool else None
        name = decoder_runner(tier, rows, work.profile.shipped) if tier else ""
    return name if name in speeds() else ""


def _on_cpu(work: Work, placed: Fit, rows: int) -> str:
    """Runner on a CPU: what all processors of the size have the instructions for, and a pass takes by itself.

    Encoders are in eight bits where there is VNNI; AVX2 reads a decoder's narrow weights too, at a pace of its own.
    """
    profile, sets = work.profile, [each.sets for each in placed.sku.processors]
    narrow_pays = work.demand.eight and bool(sets)
    eight = narrow_pays and all("VNNI" in each for each in sets)
    if profile.kind == "encoder":
        return "cpu encoder, int8" if eight and profile.family in CPU_STACK else "cpu encoder"
    native = profile.kind == "decoder" and work.task in GENERATES and text_family(profile.family) in NATIVE_STEP.served
    worth = (
        placed.dtype == "float32" and 4 * profile.parameters >= WORTH_ON_CPU and rows <= limits.MAX_BATCH_SIZE["cpu"]
    )
    narrow = "int4" if profile.shipped == "int4" else "int8"
    if not (narrow_pays and native and worth and all("AVX2" in each for each in sets)):
        return ""
    return decoder_runner("cpu" if eight else "cpu AVX2", rows, narrow)


def prompt_seconds(work: Work, placed: Fit, tokens: int, length: int) -> float:
    """Seconds for a forward pass over `tokens` tokens in sequences of `length`."""
    profile = work.profile
    name = runner(work, placed, 1)
    if profile.kind != "encoder" and name:
        name = (
            "" if profile.shipped or name.startswith("cpu") else name.partition(" ")[0] + " prompt"
        )  # widened, by products of 16 bits
    if name not in speeds():
        return latency.prefill_seconds(work, placed, tokens, length)
    causal = 1 if profile.kind == "encoder" else 0.5  # a token attends to those before it only
    products = 2.0 * _multiplied(work) * tokens
    flops = roofline.flops(round(_multiplied(work)), profile.layers, profile.hidden_size, tokens, length)
    work_flops = (products + causal * (flops - products)) / placed.gpus
    seconds = _seconds(name, placed, Effort(latency.read_weights(work, placed), work_flops, profile.layers))
    # The fewest tokens go through the layers one after the other, as a step's do.
    return seconds if profile.kind == "encoder" else max(seconds, step_seconds(work, placed, 0, 1))


def step_seconds(work: Work, placed: Fit, kv_bytes: int, rows: int) -> float:
    """Seconds for the next token of `rows` sequences whose keys and values take `kv_bytes`."""
    name = runner(work, placed, rows)
    if not name:
        return latency.step_seconds(work, placed, kv_bytes, rows)
    multiplied = _multiplied(work) + work.profile.vocab_size * work.profile.hidden_size  # scores of the vocabulary
    flops = 2.0 * multiplied * rows / placed.gpus
    read = _read(work, placed, rows)
    if device_of(placed.sku) == "cpu":
        read *= next(share for kind, share in _NARROW.items() if name.endswith(kind))
    else:
        read += _MOVES * state_bytes(work, placed.sku, rows)
    return _seconds(name, placed, Effort(read + kv_bytes, flops, work.profile.layers))


def drawing_seconds(work: Work, placed: Fit, images: int) -> float:
    """Seconds for `images` at once."""
    if not (name := runner(work, placed, images)):
        return latency.drawing_seconds(work, placed, images)
    passes = latency.one_pass(work, placed, images) * (2 * limits.IMAGE_STEPS + limits.VAE_PASSES)
    return _seconds(name, placed, Effort(0.0, passes, 0))


def _multiplied(work: Work) -> float:
    """Parameters that one token is multiplied by: of experts those that it goes through."""
    profile = work.profile
    return max(latency.multiplied(work) - profile.expert_parameters * (1 - profile.expert_share), 1.0)


def _read(work: Work, placed: Fit, rows: int) -> float:
    """Bytes of weights that a step of `rows` rows reads."""
    profile = work.profile
    all_of_it = max(profile.parameters, 1)
    read = roofline.touched(all_of_it, profile.expert_parameters, profile.expert_share, rows)
    whole = placed.memory.weights
    return whole * read / all_of_it - (whole - latency.read_weights(work, placed))


def _seconds(name: str, placed: Fit, effort: Effort) -> float:
    peak, bandwidth = latency.ceilings(placed)
    if name.startswith("cpu") and name.endswith(tuple(_NARROW)):  # VNNI multiplies four where float32 multiplies one
        peak *= 4
    return speeds()[name].seconds(effort, bandwidth, peak)


def basis(work: Work, placed: Fit, rows: int) -> Basis:
    """Basis of the times of a step, or of a forward if nothing is generated."""
    name = runner(work, placed, rows)
    if not name:
        return "assumed"
    gpu = placed.sku.gpu
    return "measured" if gpu is not None and gpu.name in speeds()[name].cards else "scaled"


def handing_seconds(work: Work, placed: Fit, tokens: int) -> float:
    """Seconds that an instance's server takes to hand so many tokens on to its clients, beside the engine's own.

    Azure's server streams nothing and has one process; ours is counted as streaming.
    """
    if not placed.room.pool or not decoder_tier(work.profile.family).tier:
        return 0.0  # plain generate: what its tokens cost was not measured, and is little beside its steps
    ours, sku = work.demand.server == "http", placed.sku
    name = hands_on(ours and usual(work.task, sku.cores, sku.gpu is not None) > 0, ours)
    return speeds()[name].seconds(Effort(0.0, 0.0, tokens), 1.0, 1.0)


def most_read(sku: Sku, tokens: int) -> float:
    """Texts of so many tokens that all cores of an instance read in a second, if they do nothing else."""
    return sku.cores / speeds()[READING].seconds(Effort(0.0, 0.0, tokens), 1.0, 1.0)


class Workload(BaseModel):
    """Request for which speeds are stated: tokens of its prompt and of its answer, and the unit of an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: Unit
    prompt: int
    answer: int  # 0 where nothing is generated


def request_of(work: Work) -> Workload:
    """Workload that the spec expects, else the one that instance types are ranked by, within the model's context."""
    if work.profile.kind == "diffusion":
        return Workload(unit="images", prompt=work.context or limits.PROMPT_TOKENS, answer=0)
    asked = work.demand.prompt, work.demand.new
    if asked == (limits.EXPECTED_PROMPT_TOKENS, limits.EXPECTED_NEW_TOKENS):
        asked = limits.RANKED_PROMPT_TOKENS, limits.RANKED_ANSWER_TOKENS
    answer = asked[1] if work.profile.kind != "encoder" and work.task in GENERATES else 0
    return Workload(
        unit="tokens" if answer else "requests", prompt=max(min(asked[0], work.context - answer), 1), answer=answer
    )


class Outlook(BaseModel):
    """Speed expected of a deployment, of requests as `request` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: Workload
    batch: int  # requests served at once in `per_second`, on each instance
    per_second: float  # tokens generated, requests or images, of all instances
    alone_s: float  # one request alone, to its end
    first_token_s: float | None  # of one request alone; None where nothing is generated
    basis: Basis


def outlook(work: Work, placed: Fit, instances: int = 1, batch: int = 0) -> Outlook:
    """Speed expected of a placed model; `batch` requests at once, or 0 for the most that it serves."""
    request, room = request_of(work), placed.room
    length, answer = request.prompt, request.answer
    most = room.rows if room.pool or request.unit == "images" else min(room.tokens // (length + answer), room.rows)
    rows = min(batch or most, most) or 1
    seconds = request_seconds(work, placed, rows, request) + handing_seconds(work, placed, rows * answer)
    return Outlook(
        request=request,
        batch=rows,
        per_second=rows * (answer or 1) / seconds * instances,
        alone_s=request_seconds(work, placed, 1, request),
        first_token_s=prompt_seconds(work, placed, length, length) if answer else None,
        basis=basis(work, placed, rows),
    )


def request_seconds(work: Work, placed: Fit, rows: int, request: Workload) -> float:
    """Seconds for `rows` requests at once, to the end of their answers."""
    if request.unit == "images":
        return drawing_seconds(work, placed, rows)
    seconds = prompt_seconds(work, placed, rows * request.prompt, request.prompt)
    if not request.answer:
        return seconds
    kept = (
        kv_bytes_per_token(work, placed.dtype) * rows * seen_tokens(work, request.prompt + request.answer // 2)
    )  # keys and values that the average step reads
    return seconds + request.answer * step_seconds(work, placed, kept, rows)
