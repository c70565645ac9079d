"""Quantisation of weights, once, when a bundle is generated: refused or planned on paper, then made and measured."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mii_azure.errors import NotAvailable
from mii_azure.model.adapters import CONV1D
from mii_azure.model.profile import Profile
from mii_azure.model.quantizable import LEFT_OUT
from mii_azure.model.resolved import INDEX, Model
from mii_azure.model.safetensors import DTYPE_BYTES
from mii_azure.planning.plan import Plan, Quantization
from mii_azure.planning.rationale import Decision
from mii_azure.spec import Spec
from scoring.quantization.layout import Made

_EACH: dict[str, float] = {"int8": 1, "fp8": 1, "int4": 0.516}  # bytes of a number with its share of the scales
_SCALES = {"int4": "one scale a group of inputs of each product"}  # of other kinds, one a row


def as_asked(spec: Spec, found: Model, facts: Profile) -> Profile:
    """Facts of a model as it will be shipped; raises NotAvailable if it cannot be quantised as the spec asks."""
    if spec.quantise == "none":
        return facts
    require(spec, found, facts)
    return as_shipped(found, facts, spec.quantise)


def require(spec: Spec, found: Model, facts: Profile) -> None:
    """Raise NotAvailable for a model whose weights cannot be quantised, as far as its headers tell."""
    if not facts.known:
        raise NotAvailable(f"{facts.model} is not opened, so it cannot be quantised.", "Give its folder or hub id.")
    if facts.kind == "diffusion":
        raise NotAvailable("The weights of text-to-image pipelines are not quantised.", LEFT_OUT)
    if facts.family in CONV1D:
        raise NotAvailable(
            f"{facts.family} keeps its products as Conv1D, which no shared format of quantised weights has.", LEFT_OUT
        )
    if facts.shipped:
        raise NotAvailable(
            f"The weights of {facts.model} are {facts.shipped} already.", f"{LEFT_OUT} They are shipped as they are."
        )
    if spec.trust_remote_code:
        raise NotAvailable(f"{facts.model} runs its own code, so its products are not known.", LEFT_OUT)
    if found.transformer:
        raise NotAvailable(
            f"{facts.model} has its transformer in {found.transformer}, where it is not quantised.",
            f'{LEFT_OUT} Or move those files one up, and set that path to "" in modules.json.',
        )
    if not found.weights.narrow_bytes and found.source != "recorded":
        raise NotAvailable(
            f"{facts.model} has no product in safetensors whose weights could be {spec.quantise}.",
            "Save it as safetensors (save_pretrained), or leave out --quantise.",
        )


def as_shipped(found: Model, facts: Profile, kind: Made) -> Profile:
    """Facts of a model with the size of its weight files after quantisation."""
    table = facts.vocab_size * facts.hidden_size + facts.row_parameters  # if no header is known: all but input tables
    guess = int((facts.parameters - table) * _EACH[kind]) + table * DTYPE_BYTES[facts.dtype]
    size = found.weights.narrow_bytes.get(kind, guess)
    return facts.model_copy(update={"weight_bytes": size, "shipped": kind})


def decision(facts: Profile, dtype: str, told: Quantization | None = None) -> Decision:
    """Decision on quantisation for the plan; with the measured errors once they exist."""
    wide = facts.parameters * DTYPE_BYTES[dtype] / 1e6
    widened = f"widened to {dtype} while it is loaded, tensor by tensor: {wide:,.1f} MB in memory"
    if facts.published:
        reason = f"As published, by {facts.published}; {widened}, and as fast as an unquantised model."
    else:
        scales = _SCALES.get(facts.shipped, "one scale a row of each product")
        reason = f"Shipped so, {scales}; {widened}."
    if told:
        reason += f" {told.sentence()}"
    return Decision(what="weights", value=f"{facts.shipped}, {facts.weight_bytes / 1e6:,.1f} MB", reason=reason)


@dataclass
class QuantizationJob:
    """Makes the files of a bundle's model folder that quantising changes; `told` is set once they are made."""

    folder: Path  # the original
    plan: Plan
    kind: Made
    told: Quantization | None = None

    def makes(self, path: str) -> bool:
        """True if a file of the bundle is made here, not copied."""
        return path.count("/") == 1 and (
            path.endswith(".safetensors") or path in ("model/config.json", f"model/{INDEX}")
        )

    @property
    def bytes(self) -> int:
        """Planned bytes on disk of the files that it makes."""
        return self.plan.profile.weight_bytes

    def make(self, target: Path, progress: Callable[[int, int], None]) -> dict[str, str]:
        """Write the files into `target`, which has the others; return {name: SHA-256}.

        Raises NotAvailable, WeightsCorrupt, OSError.
        """
        import torch

        from mii_azure.quantize.accuracy import output_error
        from mii_azure.quantize.writer import Writer

        plan, kind = self.plan, self.kind
        writer = Writer(self.folder, target, getattr(torch, plan.dtype), kind, progress)
        writer.write()
        error, note = output_error(self.folder, target, plan.task, plan.profile, plan.dtype, kind)
        self.told = Quantization(
            scheme=kind,
            products=writer.losses.products,
            weight_error=_rounded(writer.losses.relative),
            output_error=None if error is None else _rounded(error),
            note=note,
        )
        return writer.hashes

    def settled(self) -> Plan:
        """Plan with the measured errors."""
        plan, told = self.plan, self.told
        measured = decision(plan.profile, plan.dtype, told)
        decisions = tuple(measured if each.what == measured.what else each for each in plan.decisions)
        return plan.model_copy(update={"quantisation": told, "decisions": decisions})


def _rounded(error: float) -> float:
    """Round to the reported digits, so that the last digits of a sum change no bundle."""
    return float(f"{error:.2g}")
