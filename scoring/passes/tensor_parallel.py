"""Tensor slicing: DeepSpeed's AutoTP over rank processes that this pass starts and watches."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from scoring.limits.memory_shares import WEIGHTS
from scoring.model.loaded import Runtime
from scoring.passes.base import Applicability, Applied, Facts, Hardware, Pass, PassRefused
from scoring.passes.families import TENSOR_SLICING, uncut

if TYPE_CHECKING:
    from scoring.tensor_parallel.workers import Workers

DEGREES = (2, 4, 8, 16)


class TensorParallel(Pass):
    """Cuts every layer over `degree` ranks, one a GPU; 0 leaves the degree to the weights and the GPUs."""

    name: ClassVar[str] = "tensor_slicing"
    public: ClassVar[bool] = True
    places: ClassVar[bool] = True
    supersedes: ClassVar[tuple[str, ...]] = (
        "fused_encoder",
        "w8a8",
        "deepspeed_kernels",
        "compile",
        "cuda_graph",
        "cpu",
        "zero_inference",
    )

    def __init__(self, degree: int = 0, call_s: float = 60.0) -> None:
        self._asked = degree
        self.degree = degree  # as decided last
        self._call_s = call_s
        self.ranks: Workers | None = None  # while it is applied

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        """Take it for weights that need several GPUs; a given degree is checked, and taken."""
        if facts.family in TENSOR_SLICING.refused:
            return Applicability(False, f"{facts.family} cannot be sliced: {TENSOR_SLICING.refused[facts.family]}")
        if facts.family not in TENSOR_SLICING.served:
            return Applicability(
                False, f"slicing {facts.family} is unproven; proven are {', '.join(TENSOR_SLICING.served)}"
            )
        if self._asked == 1:
            return Applicability(False, "one rank is no slicing")
        if self._asked > 1:
            reason = impossible(self._asked, facts, hardware)
            return Applicability(not reason, reason or f"{self._asked} ranks, as asked for")
        if hardware.device != "cuda" or hardware.gpus < 2:
            return Applicability(False, "it needs two GPUs or more")
        degrees = [n for n in DEGREES if not impossible(n, facts, hardware)]
        if not degrees:
            return Applicability(False, f"no degree up to {hardware.gpus} divides {facts.heads} heads")
        return self._choose(degrees, facts, hardware)

    def _choose(self, degrees: list[int], facts: Facts, hardware: Hardware) -> Applicability:
        room = WEIGHTS * hardware.memory_bytes
        if facts.weight_bytes <= room:
            return Applicability(False, "one GPU holds the weights, and its own passes are faster than slices")
        enough = next((n for n in degrees if facts.weight_bytes <= n * room), None)
        if enough is None:
            return Applicability(False, f"not even {degrees[-1]} GPUs hold the weights")
        self.degree = enough
        return Applicability(True, f"the weights need {enough} GPUs")

    def apply(self, model: Any) -> Applied:
        """Cut the model; raises PassRefused if a rank cannot be started, and the model is then loaded again."""
        import torch

        from scoring.passes.hf_verify import reload
        from scoring.tensor_parallel.rpc import RpcClient
        from scoring.tensor_parallel.workers import Workers, calls, new_shard_spec, slice_model

        if torch.distributed.is_initialized():
            raise PassRefused("this process has a process group already, and a model is cut over one of its own")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        ranks = Workers(new_shard_spec(model, self.degree, device, self._call_s))
        whole = sum(parameter.numel() for parameter in model.parameters())
        try:
            ranks.wait_loaded()
            slice_model(model, ranks.plan, 0)
            ranks.wait_ready()
        except Exception as error:
            ranks.stop()
            reload(model)
            raise PassRefused(
                f"the ranks did not start: {(str(error).strip().splitlines() or [''])[0][:300]}"
            ) from error
        inside = [False]
        for name in calls(model):
            setattr(model, name, RpcClient(name, getattr(model, name), ranks, inside))
        self.ranks = ranks

        def undo() -> None:
            self.ranks = None
            ranks.stop()
            reload(model)

        share = sum(parameter.numel() for parameter in model.parameters()) / whole
        count = sum("LinearLayer" in type(m).__name__ or "Allreduce" in type(m).__name__ for m in model.modules())
        if not count:
            undo()
            raise PassRefused("DeepSpeed cut nothing")
        return Applied(
            count,
            f"{count} products over {self.degree} ranks, {share:.0%} of the weights on each",
            undo,
            Runtime(ranks=ranks),
        )

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        """Prefill and cached decode for decoders, padded batches for encoders."""
        from scoring.passes.hf_verify import verify_model

        return verify_model(model, reference)

    def bound(self, reference: Callable[..., Any]) -> float:
        return self.own_bound(reference)


def impossible(degree: int, facts: Facts, hardware: Hardware) -> str:
    """Reason why a model cannot be cut over `degree` ranks; empty if it can."""
    if hardware.device == "cuda" and degree > hardware.gpus:
        return f"{degree} ranks need {degree} GPUs; there {'is' if hardware.gpus == 1 else 'are'} {hardware.gpus}"
    heads = uncut(facts.family, degree, facts.heads, facts.kv_heads)
    return f"{heads} cannot be divided over {degree} ranks" if heads else ""
