"""Report of a plan: whether it fits and how well, memory against the card, the roofline with its points, reasons."""

from collections.abc import Iterable
from pathlib import Path

from mii_azure.planning.plan import Plan
from mii_azure.platform import limits
from mii_azure.platform.limits import GB
from mii_azure.reports.charts import Axis, Series, lines, number, stack
from mii_azure.reports.html import Node, el, section, table, write


def write_plan(plan: Plan, headline: Iterable[tuple[str, str]], file: Path) -> None:
    """Write the report of a plan; `headline` are the lines that a terminal begins with."""
    parts = [el("section", table(["", ""], [(el("strong", name), text) for name, text in headline]))]
    if plan.profile.known and plan.fits is not None:
        parts.append(_memory(plan))
        parts += [part for part in [_roofline(plan)] if part is not None]
    rows = [(each.what, each.shown, each.reason) for each in plan.decisions]
    parts.append(section("Every setting", table(["What", "Chosen", "Why"], rows)))
    if plan.at_once:
        requests = [(f"{tokens:,}", f"{count:,}") for tokens, count in plan.at_once]
        heads = ["Tokens of a request, prompt and answer", "So many at once"]
        parts.append(section("How many fit", table(heads, requests, [0, 1])))
    profile = plan.profile
    model = f"{profile.architecture} · {profile.parameters / 1e6:,.1f} M parameters" if profile.known else "not opened"
    write(file, f"Plan for {Path(profile.model).name}", f"{plan.task} on {plan.instance_type} · {model}", *parts)


def _memory(plan: Plan) -> Node:
    memory = plan.memory
    held = [
        ("weights", memory.weights),
        ("keys and values", memory.kv_cache),
        ("activations", memory.activations),
        ("context and libraries", memory.context),
    ]
    where = "each GPU" if plan.tensor_parallel > 1 else "the GPU" if plan.device == "cuda" else "the machine"
    title = f"Memory that a plan may use of {where}: {memory.available / GB:,.1f} GB"
    parts = [(name, size / GB) for name, size in held if size]
    return section("Memory", stack(title, parts, memory.available / GB, "GB"))


def ceilings(plan: Plan) -> tuple[float, float]:
    """Peak FLOP and bytes a second of the device, or of its share of a GPU, as its data sheet says."""
    sku = plan.sku
    if sku.gpu is None:
        return sku.cores * limits.CPU_FLOPS, sku.cores * limits.CPU_BYTES_PER_S
    share = min(sku.gpus, 1.0)
    peak = sku.gpu.single_tflops if plan.dtype == "float32" else sku.gpu.half_tflops
    return peak * 1e12 * share, sku.gpu.bandwidth_gb_s * 1e9 * share


def points(plan: Plan) -> list[tuple[str, float, float]]:
    """Expected times as (name, FLOP a byte, FLOP a second): two FLOP for each parameter and token (roofline model).

    Bytes are the weights, once a step; keys and values are left out, so that points of long contexts lie too far right.
    """
    outlook, weights = plan.outlook, plan.memory.weights
    if outlook is None or outlook.request.unit == "images" or not weights:
        return []
    request, flops = outlook.request, 2.0 * plan.profile.parameters / plan.tensor_parallel
    if not request.answer or outlook.first_token_s is None:
        alone, many = flops * request.prompt, flops * request.prompt * outlook.batch
        rate = outlook.per_second * request.prompt
        return [
            ("one request alone", alone / weights, alone / outlook.alone_s),
            (f"{outlook.batch} at once", many / weights, flops * rate),
        ]
    prompt = flops * request.prompt
    step = (outlook.alone_s - outlook.first_token_s) / request.answer
    return [
        ("one request's prompt", prompt / weights, prompt / outlook.first_token_s),
        ("one request, token by token", flops / weights, flops / step),
        (f"{outlook.batch} at once, prompts included", flops * outlook.batch / weights, flops * outlook.per_second),
    ]


def _roofline(plan: Plan) -> Node | None:
    found = points(plan)
    if not found:
        return None
    peak, bandwidth = ceilings(plan)
    ridge = peak / bandwidth
    least = min(ridge, *(each[1] for each in found)) / 2
    most = max(ridge, *(each[1] for each in found)) * 2
    roof = [(least, least * bandwidth), (ridge, peak), (most, peak)]
    series = [Series("roof: what the data sheet allows", roof, dashed=True)]
    series += [Series(name, [(x, y)], joined=False, labels=[name]) for name, x, y in found]
    title = f"Roofline: {number(peak)}FLOP/s and {number(bandwidth)}B/s, which meet at {ridge:.0f} FLOP a byte"
    chart = lines(title, Axis("FLOP for each byte read", log=True), Axis("FLOP a second", log=True), series)
    rows = [(name, f"{x:,.1f}", number(y), f"{y / min(peak, x * bandwidth):.0%}") for name, x, y in found]
    heads = ["What", "FLOP a byte", "FLOP a second", "Of the roof"]
    basis = "The points are expected, not measured: the line `does` says what they rest on."
    return section("Speed", chart, table(heads, rows, [1, 2, 3]), el("p", basis, class_="soft"))
