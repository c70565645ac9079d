"""ZeRO-Inference: weights wait in host memory and visit the GPU layer by layer, so that a larger model runs."""

from collections.abc import Callable
from typing import Any, ClassVar

from scoring.distributed.process_group import join, leave
from scoring.limits.memory_shares import FETCHED_LAYERS, LIVE_LAYERS, WEIGHTS
from scoring.model.loaded import Runtime
from scoring.passes.base import Applicability, Applied, Facts, Hardware, Pass, PassRefused

_TIMEOUT_S = 120.0


class ZeroInference(Pass):
    """DeepSpeed's stage 3 with the parameters offloaded to the CPU."""

    name: ClassVar[str] = "zero_inference"
    public: ClassVar[bool] = True
    places: ClassVar[bool] = True
    supersedes: ClassVar[tuple[str, ...]] = (
        "static_decode",
        "weight_only",
        "fused_encoder",
        "w8a8",
        "deepspeed_kernels",
        "compile",
        "cuda_graph",
        "cpu",
    )

    def __init__(self, forced: bool = False) -> None:
        self._forced = forced

    def applies(self, facts: Facts, hardware: Hardware, objective: str) -> Applicability:
        """Take it if the weights do not fit one GPU, or if forced."""
        if self._forced:
            return Applicability(True, "forced on: parameters wait in host memory")
        if hardware.device != "cuda":
            return Applicability(False, "the weights are in the CPU's memory already")
        if facts.weight_bytes <= WEIGHTS * hardware.memory_bytes:
            return Applicability(False, f"the weights fit {hardware.name}'s memory, where they are read much faster")
        size, room = facts.weight_bytes / 2**30, hardware.memory_bytes / 2**30
        return Applicability(
            True, f"{size:.0f} GiB of weights exceed {WEIGHTS:.0%} of {room:.0f} GiB: they wait in host memory"
        )

    def apply(self, model: Any) -> Applied:
        """Hand the model to DeepSpeed; raises PassRefused if it fails. The model must be on the CPU, or fit."""
        import torch

        from scoring.passes.hf_verify import reload

        device = "cuda" if torch.cuda.is_available() else "cpu"
        names = [name for name, _ in model.named_parameters()]
        try:
            deepspeed = join(0, 1, "", device, _TIMEOUT_S)
            config = self._config(model, device)
            # One parameter at a time: `initialize` alone moves the whole model to the GPU first, which cannot hold it.
            deepspeed.zero.Init(module=model, config_dict_or_path=config, dtype=model.dtype)
            engine, *_ = deepspeed.initialize(model=model, config=config)
        except Exception as error:
            leave()
            raise PassRefused(f"DeepSpeed failed: {(str(error).strip().splitlines() or [''])[0][:200]}") from error
        engine.module.eval()
        offloaded = [p for p in model.parameters() if getattr(p, "ds_id", None) is not None]
        size = sum(p.ds_numel * p.element_size() for p in offloaded)

        def undo() -> None:
            engine.destroy()
            leave()
            reload(model)

        detail = f"{len(offloaded)} of {len(names)} parameters, {size / 2**20:.0f} MiB in host memory"
        return Applied(len(offloaded), detail, undo, Runtime(zero_engine=engine))

    def _config(self, model: Any, device: str) -> dict[str, Any]:
        offload: dict[str, Any] = {"device": "cpu", "pin_memory": device == "cuda"}
        kinds = {"torch.float16": {"fp16": {"enabled": True}}, "torch.bfloat16": {"bf16": {"enabled": True}}}
        layer = sum(parameter.numel() for parameter in model.parameters()) // max(1, model.config.num_hidden_layers)
        zero = {
            "stage": 3,
            "offload_param": offload,
            "memory_efficient_linear": False,  # it would replace torch's own linear for the whole process
            # A layer is fetched while the one before computes; no weight is kept for the next token.
            "stage3_prefetch_bucket_size": FETCHED_LAYERS * layer,
            "stage3_max_live_parameters": LIVE_LAYERS * layer,
            "stage3_max_reuse_distance": layer,
        }
        return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero} | kinds.get(str(model.dtype), {})

    def verify(self, model: Any, reference: Callable[..., Any]) -> float:
        """Prefill and cached decode for decoders, padded batches for encoders."""
        from scoring.passes.hf_verify import verify_model

        return verify_model(model, reference)

    def bound(self, reference: Callable[..., Any]) -> float:
        return self.own_bound(reference)
