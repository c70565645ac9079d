"""Plan for people: whether it fits, what it will do, what it needs, the next command; then each setting's reason."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mii_azure.cli.report import duration, print_table, size, table
from mii_azure.planning.expected import Outlook
from mii_azure.planning.plan import Plan
from mii_azure.platform.limits import GB
from mii_azure.spec import Spec, near_name

if TYPE_CHECKING:
    from mii_azure.hardware.prices import Prices
    from mii_azure.planning.cheaper import Cheaper

#: Shares of the memory that is not free for keys and values, and the words for them.
_TIGHT, _WELL = 0.9, 0.7
_BASES = {
    "measured": "fitted to measurements of that card",
    "scaled": "scaled from measurements of other hardware",
    "assumed": "assumed from the hardware's data sheet",
}


def show_plan(console: Console, plan: Plan, lines: Iterable[tuple[str, str]], verbose: bool = False) -> None:
    """Print the lines of `headline`, then the settings; passes only if `verbose`."""
    for name, text in lines:
        console.print(f"{name:<6} {text}", soft_wrap=True)
    console.print()
    _show_settings(console, plan, verbose)


def headline(
    plan: Plan,
    asked: Mapping[str, Any],
    command: str,
    prices: "Prices | None" = None,
    cheaper: "Cheaper | None" = None,
) -> list[tuple[str, str]]:
    """Answer in three lines, with prices in four, and the next command, each with its word."""
    instances = int(asked.get("instance_count") or 1)
    return [
        ("fits", _fits(plan)),
        ("does", _does(plan.outlook, plan, instances)),
        ("needs", _needs(plan, instances, prices)),
        *([("costs", cheaper.sentence())] if cheaper else []),
        ("next", command),
    ]


def show_written(console: Console, folder: Path, plan: Plan, spec: Spec, prices: "Prices | None" = None) -> None:
    """Print what was written, what it will run on and be called in Azure, and the next commands."""
    from mii_azure.bundle.bundle_view import told_by
    from mii_azure.bundle.manifest import load_manifest

    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    manifest, quantised = load_manifest(folder), told_by(folder)
    lines = [f"wrote {shown} ({len(manifest['files'])} files, bundle {manifest['bundle'][:12]})"]
    if quantised:
        lines.append(f"{quantised.scheme}: {quantised.sentence()}")
    why = "" if spec.azure_name == spec.name else ": names there have three characters at least"
    lines += [
        f"fits      {_fits(plan)}",
        *([f"assumes   {_assumes(plan)}"] if plan.fits is None else []),
        f"needs     {_needs(plan, spec.instance_count, prices)}",
        f"{_called(spec)}{why}",
        f"next      mii-azure serve {shown}    or    {shown}/deploy.sh --dry-run",
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


def _called(spec: Spec) -> str:
    """Names of the deployed bundle, and where it has them."""
    name = spec.azure_name
    if spec.kind == "kaito":
        return f"in the cluster it is the workspace {name.lower()} of KAITO, and a service of that name"
    if spec.kind == "template":
        assets = f"in the registry {spec.registry} it is {name}-model and {name}-template"
        return f"{assets}, in a workspace the endpoint {name}"
    if spec.kind == "batch":
        return f"in Azure it is the batch endpoint {name}, on {spec.compute}"
    return f"in Azure it is {name}" + (f", on {spec.compute}" if spec.kind == "kubernetes" else "")


def _show_settings(console: Console, plan: Plan, verbose: bool) -> None:
    profile = plan.profile
    console.print(
        f"{profile.model} for {plan.task}: {profile.architecture}, "
        f"{profile.parameters / 1e6:,.1f} M parameters, {size(profile.weight_bytes)} of weights, "
        f"context {plan.context_length:,} tokens",
        soft_wrap=True,
    )
    passes = {f"pass {each.name}" for each in plan.passes}
    made = table("what", "chosen", "why")
    for decision in plan.decisions:
        if verbose or decision.what not in passes:
            made.add_row(decision.what, decision.shown, decision.reason)
    taken = ", ".join(each.name for each in plan.passes if each.take)
    if plan.passes and not verbose:
        left = sum(not each.take for each in plan.passes)
        told = f"{left} are left out; --verbose tells why."
        if plan.fits is None:
            told = f"Decided at the start, on the machine; on {plan.sku.assumed_like} {taken or 'none'}."
            taken = "not known"
        made.add_row("passes", taken or "none", told)
    print_table(console, made)
    if plan.at_once:
        made = table("if your requests are, prompt and answer", "so many at once", named=2)
        for tokens, requests in plan.at_once:
            made.add_row(f"{tokens:,} tokens", str(requests))
        print_table(console, made)


def _fits(plan: Plan) -> str:
    place = f"{plan.sku} in {plan.dtype}"
    memory = plan.memory
    if plan.fits is None:
        return _wants(plan)
    if not plan.profile.known:
        return f"unknown on {place}: the reference is not opened"
    if not plan.fits:
        return f"no, on {place}: only in slices over {plan.tensor_parallel} GPUs, and its family cannot be sliced"
    held = (memory.needed - memory.kv_cache if plan.kv_cache_tokens else memory.needed) / memory.available
    word = "tightly" if held > _TIGHT else "well" if held <= _WELL else "yes"
    each = f" on each of {plan.tensor_parallel} GPUs" if plan.tensor_parallel > 1 else ""
    left = f"{memory.needed / GB:.1f} of {memory.available / GB:.1f} GB{each}"
    if plan.kv_cache_tokens:
        left += f", {memory.kv_cache / GB:.1f} of them to cache {plan.kv_cache_tokens:,} tokens"
    return f"{word}, on {place}: {left}"


def _wants(plan: Plan) -> str:
    """Needs of a model of a machine of which only the name is known."""
    told = f"unknown, the data do not know {plan.instance_type}"
    if not plan.profile.known:
        return f"{told}, and the reference is not opened"
    memory = plan.memory
    least = memory.needed - memory.kv_cache
    where = "RAM"
    if plan.device == "cuda":
        where = f"memory on each of {plan.tensor_parallel} GPUs" if plan.tensor_parallel > 1 else "memory of one GPU"
    told += f": in {plan.dtype} it needs {least / GB:.1f} GB of {where}"
    if plan.kv_cache_tokens:
        told += f"; with {memory.kv_cache / GB:.1f} GB more it caches {plan.kv_cache_tokens:,} tokens, as planned"
    return told


def _assumes(plan: Plan) -> str:
    """Settings that a bundle for a machine of which only the name is known was written with."""
    holds = " that holds the model" if plan.profile.known else ""
    batch = f"{plan.slots} sequences at once" if plan.slots else f"batches of {plan.max_batch_size} rows"
    told = f"what fits {plan.sku.assumed_like}, the smallest known{holds}: {plan.dtype}, {batch} and"
    told += (
        f" {plan.max_batch_tokens:,} tokens, {plan.request_timeout_ms // 1000} s for a request; passes are decided at"
    )
    return f"{told} the start"


def _does(outlook: Outlook | None, plan: Plan, instances: int) -> str:
    if outlook is None:
        what = "the machine is not known" if plan.profile.known else "the reference is not opened"
        return f"unknown: {what}"
    request = outlook.request
    several = f" on {instances} instances" if instances > 1 else ""
    told = f"about {_number(outlook.per_second)} {request.unit}/s with {outlook.batch} at once{several}"
    told += f"; alone {duration(outlook.alone_s)}"
    if outlook.first_token_s is not None:
        told += f", first token {duration(outlook.first_token_s)}"
    length = f"{request.prompt} tokens" + (f" and {request.answer} new ones" if request.answer else "")
    length = "" if request.unit == "images" else f"requests of {length}, "
    return f"{told} ({length}{_BASES[outlook.basis]})"


def _needs(plan: Plan, instances: int, prices: "Prices | None") -> str:
    if not plan.quota_cores:
        pods = "1 pod" if instances == 1 else f"{instances} pods"
        return f"a node of your cluster with {plan.sku.cores} cores and {plan.sku.ram_gb:g} GB or more for {pods}"
    told = f"{plan.quota_cores} cores of {plan.quota_family} quota for {instances} "
    told += "instance" if instances == 1 else "instances"
    retires = plan.sku.retires
    told += f", of a series that Azure retires on {retires}" if retires else ""
    if prices is None:
        without = "price, and whether CPU or GPU serves a million requests for less, unknown without --prices FILE"
        return f"{told}; {without} (mii-azure prices writes one)"
    hourly = prices.of(plan.instance_type)
    if hourly is None:
        return f"{told}; the price file has no {plan.instance_type}"
    return f"{told}; {hourly * instances:,.3f} {prices.currency}/h in {prices.region}, {prices.date}"


def next_command(plan: Plan, asked: Mapping[str, Any], file: Path | None = None) -> str:
    """Command that writes what was planned: by the fields `asked`, or by a file and those that go before it."""
    if plan.fits is False:
        return "plan a smaller model of the family, or another instance type"
    words = ["mii-azure", "generate", *(["-f", str(file)] if file else [])]
    for name, value in (asked if file else {**asked, "name": near_name(str(asked["model"]))}).items():
        flag = name.replace("_", "-")
        default = Spec.model_fields[name].get_default(call_default_factory=True)
        if value in (None, "", [], ()) or (value == default and (isinstance(value, bool) or not file)):
            continue
        if default is True:
            words.append(f"--no-{flag}")
        elif value is True:
            words.append(f"--{flag}")
        else:
            words += [f"--{flag}", ",".join(value) if isinstance(value, (list, tuple)) else str(value)]
    return shlex.join(words)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
